"""Overlap of a training set with a benchmark's prompts: exact matches, and matches in normal form.

A score on prompts that the model was trained on means little. ``pdgen.synthesis.leaks`` keeps GenEval's prompts out of
the data that this project builds; this module compares any training set with any list.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

from pdgen.data.prompts import PromptError, read_prompt_texts
from pdgen.data.records import RecordSource, is_dataset
from pdgen.evaluate.errors import EvaluationError
from pdgen.synthesis.leaks import normalise_prompt


class Leaks(msgspec.Struct, frozen=True):
    """The prompts of a benchmark that a training set holds."""

    training: list[str]  # the names of the training sets; empty if nothing was compared
    records: int  # the number of prompts in the training sets, with repetitions
    benchmark: int  # the number of distinct prompts of the benchmark
    exact: list[str]  # the prompts that are training prompts verbatim
    normalised: list[str]  # the other prompts that match up to case, punctuation and spacing


def find_leaks(training: Iterable[str], benchmark: Iterable[str], names: Iterable[str] = ()) -> Leaks:
    """Compare the prompts of training sets, called ``names``, with those of a benchmark."""
    asked = list(dict.fromkeys(prompt.strip() for prompt in benchmark))
    normal = {normalise_prompt(prompt) for prompt in asked}
    records, exact, normalised = 0, set(), set()
    for prompt in training:
        records += 1
        exact.add(prompt.strip())
        if (form := normalise_prompt(prompt)) in normal:
            normalised.add(form)
    verbatim = [prompt for prompt in asked if prompt in exact]
    alike = [prompt for prompt in asked if prompt not in exact and normalise_prompt(prompt) in normalised]
    return Leaks(list(names), records, len(asked), verbatim, alike)


def describe_leaks(leaks: Leaks) -> str:
    """Return the finding as a sentence, for the head of a report."""
    if not leaks.training:
        return "Leaks: not compared with any training set (pass --training_data)."
    where = f"{', '.join(leaks.training)} ({leaks.records:,} prompts)"
    if not leaks.exact and not leaks.normalised:
        return f"Leaks: none of the {leaks.benchmark:,} prompts is in {where}."
    return (
        f"Leaks: of the {leaks.benchmark:,} prompts, {len(leaks.exact):,} are in {where} verbatim and "
        f"{len(leaks.normalised):,} more up to case, punctuation and spacing; scores on them mean little."
    )


def read_training_prompts(path: pathlib.Path, progress: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """Read the prompts of a training set.

    Args:
      path: A data set folder, or a file with one prompt a line, as text or as JSON with the key "prompt".
      progress: Called with 1 for each record or line read.

    Raises:
      EvaluationError: The path is neither, a line has no prompt, or there is no prompt at all.
      RecordError: The data set is broken.
    """
    count = 0
    for prompts in _iterate_prompts(path):
        yield from prompts
        count += len(prompts)
        progress(1)
    if not count:
        raise EvaluationError(f"{path}: holds no prompts; name a data set, or a file with a prompt a line")


def _iterate_prompts(path: pathlib.Path) -> Iterator[list[str]]:
    """Yield the prompts of each record or line."""
    if path.is_dir():
        if not is_dataset(path):
            raise EvaluationError(f"{path}: not a data set (no dataset.json); name an output folder of build_data")
        source = RecordSource(path)
        for number in range(len(source)):
            yield [s.text for s in source[number].segments if s.stage == "prompt"]
        return
    try:
        prompts = read_prompt_texts(path)
    except PromptError as fault:
        raise EvaluationError(f"{fault}; name a data set, or a file with a prompt a line") from None
    yield from ([prompt] for prompt in prompts)
