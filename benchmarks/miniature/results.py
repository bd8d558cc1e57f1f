"""The numbers of ``benchmarks.miniature``: every row's scores, differences, costs and process measures, as JSON.

Intervals are over prompts and training seeds, see ``pdgen.evaluate.statistics``. The base was trained once, so the
intervals of its rows are over prompts only.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.metadata import decode_metadata
from pdgen.evaluate.geneval.rule import GenEvalResult
from pdgen.evaluate.geneval.scoring import RESULTS, TaskScores, group_by_task, read_results
from pdgen.evaluate.process.measures import ProcessFacts
from pdgen.evaluate.process.tables import MEASURES, estimate_measure
from pdgen.evaluate.statistics import Estimate, estimate, estimate_difference
from pdgen.evaluate.tables import to_cells

Numbers = dict[str, dict[str, Any]]  # by row
COSTS = {
    "network evaluations": lambda f: [f.costs["network_evaluations"]],
    "tokens written": lambda f: [f.costs["text_tokens"]],
}


class Row(NamedTuple):
    """A way to make an image.

    Attributes:
      name: Its key and the name of its folder.
      says: Its name in tables.
      model: The kind of model that draws.
      strategy: One of ``pdgen.sample.strategies.table.STRATEGIES``.
      settings: NAME=VALUE of sampler and strategy, in addition to those of all rows.
      paper: The published overall score on GenEval, if there is one.
    """

    name: str
    says: str
    model: Literal["base", "process"]
    strategy: str
    settings: tuple[str, ...] = ()
    paper: float | None = None


class RowEvaluation(NamedTuple):
    """One evaluation. ``model`` is the digest of the manifest of the model that drew."""

    results: list[GenEvalResult]
    facts: list[ProcessFacts]
    model: str


def read_row_evaluation(folder: pathlib.Path) -> RowEvaluation:
    """Read an evaluation of ``launch/evaluate.py``. Raises EvaluationError that names a missing or broken file."""
    try:
        lines = (folder / "process.jsonl").read_bytes().splitlines()
        facts = [msgspec.json.decode(line, type=ProcessFacts) for line in lines]
        model = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["made_by"]["manifest"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise EvaluationError(
            f"{folder}: process.jsonl or summary.json is not of an evaluation of shapes ({fault}); "
            f"remove {folder.parent} and start again"
        ) from None
    return RowEvaluation(read_results(folder / RESULTS), facts, model)


def collect(rows: Sequence[Row], runs: Mapping[str, Sequence[RowEvaluation]]) -> Numbers:
    """Return the numbers of every row by name.

    "scores" are by task and "overall", "objects" by the number of objects asked for, "length" and "share" by the kinds
    of things asked for, "measures" by name. "than_first" and "than_own", also with "_objects", are differences to the
    first row and to the first row of the same kind of model; those rows lack their own. "right" has, by training seed
    and task, the number of correct images of each prompt.

    Args:
      rows: The rows. The first is the reference.
      runs: The evaluations of each row, one for each training seed.

    Raises:
      EvaluationError: Rows of one kind of model were drawn by different models, or two of a row's models are the same.
    """
    found: Numbers = {}
    own: dict[str, Row] = {}
    for row in rows:
        reference = own.setdefault(row.model, row)
        models = [one.model for one in runs[row.name]]
        _check_models(row, models, reference, [one.model for one in runs[reference.name]])
        compared = {"than_first": rows[0].name, "than_own": reference.name}
        others = {name: runs[other] for name, other in compared.items() if other != row.name}
        found[row.name] = {**row._asdict(), "models": models, **_collect_row(runs[row.name], others)}
    return found


def _check_models(row: Row, models: list[str], reference: Row, expected: list[str]) -> None:
    if models != expected:
        raise EvaluationError(f"{row.name}: was drawn by other models than {reference.name}; choose another --output")
    if len(set(models)) < len(models):
        raise EvaluationError(f"{row.name}: two of its models are the same; name each training seed's once")


def _collect_row(runs: Sequence[RowEvaluation], compared: Mapping[str, Sequence[RowEvaluation]]) -> dict[str, Any]:
    by_objects = _stack_seeds([group_by_objects(one.results) for one in runs])
    tasks = _stack_seeds([group_by_task(one.results) for one in runs])
    facts = [one.facts for one in runs]
    measures = {name: estimate_measure(facts, values) for name, values in (COSTS | MEASURES).items()}
    found = {
        "scores": _estimate_tasks(tasks),
        "by_seed": np.mean([scores.mean(1) for scores in tasks.values()], axis=0).tolist(),
        "objects": {name: _flatten_estimate(estimate([scores])) for name, scores in by_objects.items()},
        "measures": {name: _flatten_estimate(one[0]) | {"values": one[1]} for name, one in measures.items() if one},
        "length": estimate_by_kinds(facts, "images"),
        "share": estimate_by_kinds(facts, "final score"),
        "right": [
            {task: _format_counts(scores) for task, scores in group_by_task(one.results).items()} for one in runs
        ],
    }
    for name, reference in compared.items():
        others = _stack_seeds([group_by_task(one.results) for one in reference])
        found[name] = _estimate_differences(others, tasks)
        others = _stack_seeds([group_by_objects(one.results) for one in reference])
        found[f"{name}_objects"] = {
            n: _flatten_estimate(estimate_difference([others[n]], [own])) for n, own in by_objects.items()
        }
    return found


def group_by_objects(results: Sequence[GenEvalResult]) -> TaskScores:
    """Group scores as ``group_by_task`` does, but by the number of objects that the prompt asks for."""
    counts = [sum(one.count for one in decode_metadata(result.metadata).include) for result in results]
    scores = group_by_task([result._replace(tag=str(count)) for result, count in zip(results, counts)])
    return {count: scores[count] for count in sorted(scores, key=int)}


def estimate_by_kinds(runs: Sequence[Sequence[ProcessFacts]], measure: str) -> dict[str, dict[str, Any]]:
    """Estimate a measure of ``MEASURES`` by the kinds of things that the prompt asks for."""
    found = {}
    for kinds in sorted({one.entities for one in runs[0]}):
        one = estimate_measure(
            [[fact for fact in facts if fact.entities == kinds] for facts in runs], MEASURES[measure]
        )
        if one:
            found[str(kinds)] = _flatten_estimate(one[0])
    return found


Tasks = dict[str, Float[np.ndarray, "seeds prompts"]]


def _stack_seeds(runs: Sequence[TaskScores]) -> Tasks:
    return {task: np.stack([run[task].mean(1) for run in runs]) for task in runs[0]}


def _estimate_tasks(tasks: Tasks) -> dict[str, dict[str, Any]]:
    found = {"overall": estimate(list(tasks.values()))} | {task: estimate([own]) for task, own in tasks.items()}
    return {name: _flatten_estimate(one) for name, one in found.items()}


def _estimate_differences(first: Tasks, second: Tasks) -> dict[str, dict[str, Any]]:
    found = {"overall": estimate_difference(list(first.values()), list(second.values()))}
    found |= {task: estimate_difference([first[task]], [own]) for task, own in second.items()}
    return {name: _flatten_estimate(one) for name, one in found.items()}


def _flatten_estimate(one: Estimate) -> dict[str, Any]:
    return dict(zip(("value", "low", "high", "prompts"), to_cells(one)))


def _format_counts(scores: Float[np.ndarray, "prompts samples"]) -> str:
    return " ".join(f"{count:.0f}" for count in scores.sum(1))
