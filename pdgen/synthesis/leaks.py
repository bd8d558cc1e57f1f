"""Leaks: training prompts that are benchmark prompts.

The package contains only the SHA-256 of each benchmark prompt in normal form. This makes GenEval's file from its list:

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
    """Normalise punctuation, case and spacing of a prompt.

    The text is converted to NFKC and lower case (``str.casefold``). All characters other than letters and digits become
    spaces. Repeated, leading and trailing spaces are removed.

    >>> normalise("A  photo of a bench.")
    'a photo of a bench'
    """
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def digest_text(text: str) -> str:
    """Compute SHA-256 of the text in UTF-8, in hexadecimal."""
    return sha256(text.encode())


def compute_benchmark_digests(metadata: str | pathlib.Path) -> list[str]:
    """Compute the sorted digests of the normalised prompts of a file: one prompt or JSON object per line.

    Raises:
      PromptError: see ``pdgen.data.prompts.read_prompt_file``.
    """
    prompts = read_prompt_texts(pathlib.Path(metadata))
    return sorted({digest_text(normalise_prompt(prompt)) for prompt in prompts})


@functools.cache
def load_geneval_digests() -> frozenset[str]:
    """Load the digests of GenEval's prompts from the package."""
    return frozenset(geneval_prompts_file().read_text().split())


def find_leak(prompt: str, digests: frozenset[str] | None = None) -> Literal["exact", "normalised"] | None:
    """Return whether a prompt is a benchmark prompt: "exact", only after normalisation ("normalised"), or None.

    "exact" assumes that the benchmark's own prompts are in normal form, as all of GenEval's are.

    Args:
      prompt: the prompt.
      digests: digests of the benchmark's prompts; None: GenEval's.
    """
    digests = load_geneval_digests() if digests is None else digests
    if digest_text(prompt) in digests:
        return "exact"
    return "normalised" if digest_text(normalise_prompt(prompt)) in digests else None


def main(argv: list[str]) -> int:
    """Print the digests of the prompts in a file. Returns the exit status."""
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
