"""Leaks: training prompts that are prompts of a benchmark.

The benchmark's prompts themselves are not kept, only the SHA-256 of each in normal form. Anyone can make the file of
GenEval's again from its list:

    python -m pdgen.synthesis.leaks evaluation_metadata.jsonl > geneval_prompts.sha256
"""

import functools
import pathlib
import sys
import unicodedata
from typing import Literal

from pdgen.assets import geneval_prompts_file
from pdgen.data.prompts import PromptError, read_prompt_texts
from pdgen.files import sha256


def normalise_prompt(prompt: str) -> str:
    """The prompt in normal form: what punctuation, case and spacing cannot change.

    Unicode is brought to NFKC and lower case (``str.casefold``); whatever is neither a letter nor a digit becomes
    a blank; blanks in a row become one, and none stand at either end.

    >>> normalise("A  photo of a bench.")
    'a photo of a bench'
    """
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def digest_text(text: str) -> str:
    """SHA-256 of the text in UTF-8, in hexadecimal."""
    return sha256(text.encode())


def compute_benchmark_digests(metadata: str | pathlib.Path) -> list[str]:
    """The sorted digests of the normalised prompts of a list, such as GenEval's: one a line, or as a JSON object.

    Raises:
      PromptError: see ``pdgen.data.prompts.read_prompt_file``.
    """
    prompts = read_prompt_texts(pathlib.Path(metadata))
    return sorted({digest_text(normalise_prompt(prompt)) for prompt in prompts})


@functools.cache
def load_geneval_digests() -> frozenset[str]:
    """The digests of GenEval's prompts that the package ships."""
    return frozenset(geneval_prompts_file().read_text().split())


def find_leak(prompt: str, digests: frozenset[str] | None = None) -> Literal["exact", "normalised"] | None:
    """Whether a prompt is one of a benchmark's: to the letter, only in normal form, or not at all.

    "exact" supposes that the benchmark's own prompts are in normal form, as all of GenEval's are.

    Args:
      digests: of the benchmark's prompts, by default GenEval's.
    """
    digests = load_geneval_digests() if digests is None else digests
    if digest_text(prompt) in digests:
        return "exact"
    return "normalised" if digest_text(normalise_prompt(prompt)) in digests else None


def main(argv: list[str]) -> int:
    """Prints the digests of the list that is named; the exit status."""
    if len(argv) != 2:
        print("leaks: usage: python -m pdgen.synthesis.leaks METADATA.jsonl", file=sys.stderr)
        return 2
    try:
        print("\n".join(compute_benchmark_digests(argv[1])))
    except PromptError as fault:
        print(f"leaks: {fault}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
