"""Whether a training set holds a benchmark's prompts: compared to the letter and in normal form, told at the head.

A score on prompts that were trained on says little. ``pdgen.synthesis.leaks`` keeps GenEval's own out of the data that
this project builds; here any training set is compared with any list.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

from pdgen.data.prompts import PromptError, read_prompt_texts
from pdgen.data.records import RecordSource, is_dataset
from pdgen.evaluate.errors import EvaluationError
from pdgen.synthesis.leaks import normalise_prompt


class Leaks(msgspec.Struct, frozen=True):
    """What of a benchmark a training set holds.

    Attributes:
      training: names of what was compared; none if nothing was.
      records: prompts of the training set, repeated ones counted each time.
      benchmark: distinct prompts of the benchmark.
      exact: those of them that are training prompts to the letter.
      normalised: those that are so only without regard to case, punctuation and spacing.
    """

    training: list[str]
    records: int
    benchmark: int
    exact: list[str]
    normalised: list[str]


def find_leaks(training: Iterable[str], benchmark: Iterable[str], names: Iterable[str] = ()) -> Leaks:
    """Compares the prompts of a training set, of which ``names`` tell, with those of a benchmark."""
    asked = list(dict.fromkeys(prompt.strip() for prompt in benchmark))
    normal = {normalise_prompt(prompt) for prompt in asked}
    records, exact, normalised = 0, set(), set()
    for prompt in training:
        records += 1
        exact.add(prompt.strip())
        if (form := normalise_prompt(prompt)) in normal:
            normalised.add(form)
    letter = [prompt for prompt in asked if prompt in exact]
    alike = [prompt for prompt in asked if prompt not in exact and normalise_prompt(prompt) in normalised]
    return Leaks(list(names), records, len(asked), letter, alike)


def sentence(leaks: Leaks) -> str:
    """The finding in a sentence, for the head of a report."""
    if not leaks.training:
        return "Leaks: not compared with any training set (--training_data names one)."
    where = f"{', '.join(leaks.training)} ({leaks.records:,} prompts)"
    if not leaks.exact and not leaks.normalised:
        return f"Leaks: none of the {leaks.benchmark:,} prompts is in {where}."
    return (
        f"Leaks: of the {leaks.benchmark:,} prompts, {len(leaks.exact):,} are in {where} to the letter and "
        f"{len(leaks.normalised):,} more but for case, punctuation and spacing; scores on them say little."
    )


def training_prompts(path: pathlib.Path, progress: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """The prompts of a training set.

    Args:
      path: a data set folder, or a file with a prompt a line, each as text or as JSON with the key "prompt".
      progress: told how many more were read.

    Raises:
      EvaluationError: it is neither, a line has no prompt, or there are no prompts at all.
      RecordError: the data set is broken.
    """
    count = 0
    for prompts in _prompts(path):
        yield from prompts
        count += len(prompts)
        progress(1)
    if not count:
        raise EvaluationError(f"{path}: holds no prompts; name a data set, or a file with a prompt a line")


def _prompts(path: pathlib.Path) -> Iterator[list[str]]:
    """Record by record, or line by line."""
    if path.is_dir():
        if not is_dataset(path):
            raise EvaluationError(f"{path}: no data set (no dataset.json); name a folder that build_data made")
        source = RecordSource(path)
        for number in range(len(source)):
            yield [s.text for s in source[number].segments if s.stage == "prompt"]
        return
    try:
        prompts = read_prompt_texts(path)
    except PromptError as fault:
        raise EvaluationError(f"{fault}; name a data set, or a file with a prompt a line") from None
    yield from ([prompt] for prompt in prompts)
