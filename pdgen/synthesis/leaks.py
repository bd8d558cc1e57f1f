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
from pdgen.cli import fail
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


def find_leak(prompt: str) -> Literal["exact", "normalised"] | None:
    """Return whether a prompt is one of GenEval's: "exact", only after normalisation ("normalised"), or None.

    "exact" assumes that the benchmark's own prompts are in normal form, as all of GenEval's are.
    """
    if digest_text(prompt) in load_geneval_digests():
        return "exact"
    return "normalised" if digest_text(normalise_prompt(prompt)) in load_geneval_digests() else None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        fail("usage: python -m pdgen.synthesis.leaks METADATA.jsonl")
    try:
        print("\n".join(compute_benchmark_digests(sys.argv[1])))
    except PromptError as fault:
        fail(fault)
