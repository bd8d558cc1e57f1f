"""A learned verifier beside the exact one, by the share of the steps after which a picture was judged.

Both predict whether the finished picture shows its prompt. The exact verifier says so where an estimate meets all
requirements. The learned one gives a probability, which is calibrated if of the pictures with probability p a share p
is right.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from pdgen.data.records import RecordSource
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.statistics import estimate_pooled
from pdgen.evaluate.tables import Table, to_cells
from pdgen.progress_bar import ProgressBar
from pdgen.sample.strategies.verifier import YES
from pdgen.sequence.images import decode_image
from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.teachers.protocols import Verifier

BINS = 10  # of equal width in the probability, for the calibration error

# (prompt, learned probability, exact verdict, whether the finished picture is right)
Judgement = tuple[str, float, bool, bool]


def judge_estimates(verifier: Verifier, data: Sequence[pathlib.Path]) -> dict[float, list[Judgement]]:
    """Let a verifier judge the pictures of data sets that ``build_data.py estimates`` wrote, by share of the steps.

    Raises:
      RecordError: a data set cannot be read.
      EvaluationError: a record is no question about an estimate.
    """
    records = [(source, number) for source in map(RecordSource, data) for number in range(len(source))]
    found: dict[float, list[Judgement]] = {}
    for source, number in ProgressBar(records, desc="judging", unit="picture"):
        record = source[number]
        picture, right = _read_question(record, source.folder)
        facts = record.scene or {}
        probability = verifier.score(facts["prompt"], picture)
        found.setdefault(facts["share"], []).append((facts["prompt"], probability, facts["exact"] == 1, right))
    return found


def _read_question(record: Record, data: pathlib.Path) -> tuple[np.ndarray, bool]:
    """Return the picture and whether the answer is yes."""
    match record.segments:
        case [Image(stage="given", png=png), Text(stage="prompt"), Text(stage="answer", text=answer)] if (
            record.scene and {"prompt", "share", "exact"} <= record.scene.keys()
        ):
            return np.asarray(decode_image(png, record.id)), answer == YES
    raise EvaluationError(f"{data}: record {record.id} is no question about an estimate; name data of mode estimates")


def compute_calibration_error(probabilities: Sequence[float], right: Sequence[bool]) -> float:
    """Compute the mean over pictures of |mean probability - share of right ones| of the picture's bin."""
    p, y = np.asarray(probabilities), np.asarray(right, float)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(sum(abs((p - y)[bins == n].sum()) for n in range(BINS)) / len(p))


def make_verifier_table(judgements: Mapping[float, Sequence[Judgement]]) -> Table:
    """Make the table of accuracies, with intervals that resample prompts, and calibration errors."""
    columns = ("steps done", "learned", "low", "high", "prompts", "exact", "exact low", "exact high")
    rows = []
    for share, judged in sorted(judgements.items()):
        learned = _estimate_accuracy([(prompt, (p > 0.5) == right) for prompt, p, _, right in judged])
        exact = _estimate_accuracy([(prompt, said == right) for prompt, _, said, right in judged])
        error = compute_calibration_error([p for _, p, _, _ in judged], [right for *_, right in judged])
        shown = float(np.mean([right for *_, right in judged]))
        rows.append((share, *learned, *exact[:3], error, shown, len(judged)))
    return Table(
        title="Verifier",
        columns=(*columns, "calibration error", "right", "pictures"),
        rows=rows,
        note="learned, exact: share of the pictures of which it is rightly predicted whether they will show their "
        f"prompt. right: share of those that will. The calibration error has {BINS} bins.",
    )


def _estimate_accuracy(
    values: Sequence[tuple[str, bool]],
) -> tuple[float | None, float | None, float | None, int | None]:
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        by_prompt.setdefault(prompt, []).append(float(value))
    return to_cells(estimate_pooled([list(by_prompt.values())]))
