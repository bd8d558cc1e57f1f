"""Evaluated runs side by side: their scores, and how much each differs from the first one, prompt by prompt.

A run is an output folder of ``launch/evaluate.py``. Runs are compared by the prompts that they were scored on: the
same ones in the same order, or not at all.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval import Result
from pdgen.evaluate.scoring import RESULTS, by_task, compare, read_results, summarise
from pdgen.evaluate.statistics import Estimate, difference
from pdgen.evaluate.tables import Table, interval
from pdgen.evaluate.wise import JUDGEMENTS, NAMES, SCORINGS, score

SUMMARY = "summary.json"
_COST = "network_evaluations"


class Run(NamedTuple):
    """An evaluated run.

    Attributes:
      name: its folder's.
      facts: of its ``summary.json``, tables included.
      results: of GenEval and the shapes benchmark; empty for WISE.
      wise: by scoring of WISE the score of each prompt id; empty for the others.
    """

    name: str
    folder: pathlib.Path
    facts: dict[str, Any]
    results: list[Result]
    wise: dict[str, dict[int, float]]

    @property
    def benchmark(self) -> str:
        """ "geneval", "wise" or "shapes"."""
        return self.facts["benchmark"]


def read_run(folder: pathlib.Path) -> Run:
    """Reads what ``launch/evaluate.py`` wrote. Raises EvaluationError naming the file at fault."""
    path = folder / SUMMARY
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        benchmark = facts["benchmark"]
    except OSError as fault:
        raise EvaluationError(f"{path}: {fault.strerror}; name an output folder of launch/evaluate.py") from None
    except (ValueError, KeyError, TypeError) as fault:
        raise EvaluationError(f"{path}: no summary of an evaluation ({fault}); evaluate again") from None
    if benchmark == "wise":
        return Run(folder.name, folder, facts, [], _wise_scores(folder))
    return Run(folder.name, folder, facts, read_results(folder / RESULTS), {})


def _wise_scores(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    found = {}
    for label, scoring in SCORINGS.items():
        judgement = JUDGEMENTS[scoring.judgement]
        path = folder / judgement.file
        if not path.exists():
            continue
        scores = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = json.loads(line)
                identity, _ = values.pop("prompt_id"), values.pop("Subcategory")
                scores[identity] = msgspec.convert(values, judgement.answer).score
            except (ValueError, KeyError, TypeError) as fault:
                raise EvaluationError(f"{path}: line {number}: no score of WISE ({fault}); judge again") from None
        found[label] = scores
    return found


def scores_of(run: Run) -> dict[str, Estimate]:
    """Every score of a run by name, its total last; of WISE the totals of its scorings, where there are such."""
    if run.benchmark == "wise":
        totals = {label: score(SCORINGS[label], scores).overall for label, scores in run.wise.items()}
        return {f"scoring {label}": total for label, total in totals.items() if total is not None}
    summary = summarise(by_task(run.results))
    return {**summary.tasks, "overall": summary.overall}


def differences(first: Run, second: Run) -> dict[str, Estimate]:
    """How much more the second run scores, by the names of ``scores_of``.

    Raises:
      EvaluationError: the runs are of other benchmarks or prompts.
    """
    if first.benchmark != second.benchmark:
        raise EvaluationError(f"{second.folder}: is of {second.benchmark}, {first.folder} of {first.benchmark}; "
                              "compare runs of the same benchmark")  # fmt: skip
    if first.benchmark != "wise":
        return compare(first.results, second.results)
    found = {}
    for label, scoring in SCORINGS.items():
        a, b = first.wise.get(label, {}), second.wise.get(label, {})
        if all(i in a and i in b for ids in scoring.categories.values() for i in ids):
            strata = [[np.array([one[i] for i in scoring.categories[name]]) for name in NAMES] for one in (a, b)]
            found[f"scoring {label}"] = difference(*strata, scoring.weights)
    return found


def evaluations(run: Run) -> float | None:
    """Evaluations of the network for an image, from the run's table of costs; None where it has none."""
    rows = [row for table in run.facts.get("tables", ()) if table["title"] == "Costs" for row in table["rows"]]
    return next((float(row[1]) for row in rows if row[0] == _COST), None)


def comparison(runs: Sequence[Run]) -> list[Table]:
    """Scores side by side, and the differences of the others to the first run.

    Raises:
      EvaluationError: see ``differences``; or there are fewer than two runs.
    """
    if len(runs) < 2:
        raise EvaluationError("name at least two runs to compare")
    apart = {run.name: differences(runs[0], run) for run in runs[1:]}
    own = [scores_of(run) for run in runs]
    columns = ["score"]
    for run in runs:
        columns += [run.name, f"{run.name} low", f"{run.name} high"]
    names = [name for name in own[0] if all(name in scores for scores in own)]
    rows = []
    for name in names:
        cells = [cell for scores in own for cell in interval(scores[name])[:3]]
        rows.append((name, *cells, own[0][name].n))
    side = Table("Scores", (*columns, "prompts"), rows)
    changes = [(f"{other}: {name}", *interval(one)) for other, found in apart.items() for name, one in found.items()]
    note = f"How much more than {runs[0].name}, on the same prompts. Where both ends of the interval have one sign, "
    note += "prompts drawn anew would hardly turn it round."
    return [side, Table("Differences", ("run and score", "difference", "low", "high", "prompts"), changes, note)]
