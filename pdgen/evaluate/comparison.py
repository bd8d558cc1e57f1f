"""Evaluated runs side by side: their scores, and how much each differs from the first one, prompt by prompt.

A run is an output folder of ``launch/evaluate.py``. Runs are compared by the prompts that they were scored on: the
same ones in the same order, or not at all.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval import Result
from pdgen.evaluate.page import PUBLISHED, Cost, evaluation_page
from pdgen.evaluate.scoring import RESULTS, by_task, compare, read_results, summarise
from pdgen.evaluate.statistics import LEVEL, Estimate, difference
from pdgen.evaluate.tables import Table, as_csv, as_json, as_text, interval
from pdgen.evaluate.wise import JUDGEMENTS, LIST, NAMES, SCORINGS, Scored, read_wise, score
from pdgen.files import new_file

SUMMARY = "summary.json"
TOTAL = "overall"
ENOUGH = 10  # prompts; of fewer an interval says nothing that could be relied on
_COST = "network_evaluations"
_OWN_CATEGORIES = ("A", "B")  # scorings of WISE whose categories are told; C's are A's


class Judge(msgspec.Struct, frozen=True):
    """Who judged WISE's images: a model, the version of the questions, by judgement the rules' hash, its parameters."""

    model: str
    questions: int
    rules: dict[str, str]
    parameters: dict[str, Any]


class Facts(msgspec.Struct, frozen=True):
    """What a comparison needs of a ``summary.json``.

    Attributes:
      detector: of GenEval and the shapes benchmark.
      judge, prompts: of WISE; who judged, and the digest of the list.
    """

    benchmark: Literal["geneval", "shapes", "wise"]
    findings: list[str]
    tables: list[Table]
    detector: str | None = None
    judge: Judge | None = None
    prompts: str | None = None

    def __post_init__(self) -> None:
        needed = ("judge", "prompts") if self.benchmark == "wise" else ("detector",)
        if lacking := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"no '{lacking[0]}'")


class Run(NamedTuple):
    """An evaluated run.

    Attributes:
      name: tells it from the others that it is compared with.
      results: of GenEval and the shapes benchmark; empty for WISE.
      wise: by scoring of WISE the score of each prompt id; empty for the others.
      scored: by scoring of WISE its figures.
    """

    name: str
    folder: pathlib.Path
    facts: Facts
    results: list[Result]
    wise: dict[str, dict[int, float]]
    scored: dict[str, Scored]


def read_runs(folders: Sequence[pathlib.Path]) -> list[Run]:
    """Reads the runs and names each by as many last parts of its path as tell all of them apart.

    Raises:
      EvaluationError: see ``read_run``; or a folder is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    if twice := [folder for folder, path in zip(folders, paths) if paths.count(path) > 1]:
        raise EvaluationError(f"{twice[0]}: named twice; name each run once")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return [read_run(folder, "/".join(path.parts[-parts:])) for folder, path in zip(folders, paths)]


def read_run(folder: pathlib.Path, name: str) -> Run:
    """Reads what ``launch/evaluate.py`` wrote. Raises EvaluationError naming the file at fault."""
    path = folder / SUMMARY
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=Facts)
    except OSError as fault:
        raise EvaluationError(f"{path}: {fault.strerror}; name an output folder of launch/evaluate.py") from None
    except ValueError as fault:
        raise EvaluationError(f"{path}: no summary of an evaluation ({fault}); evaluate again") from None
    if facts.benchmark != "wise":
        return Run(name, folder, facts, read_results(folder / RESULTS), {}, {})
    if not (folder / LIST).is_file():
        raise EvaluationError(f"{folder / LIST}: missing; evaluate again (answers of the judge are kept)")
    wise, prompts = _wise_scores(folder), read_wise([folder / LIST])
    return Run(name, folder, facts, [], wise, {label: score(SCORINGS[label], wise[label], prompts) for label in wise})


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


def scores_of(run: Run) -> dict[str, Estimate | None]:
    """Every score of a run by name, None where it cannot be told; the total after its parts.

    Of WISE the names are a scoring's label and a category or "overall"; C's categories are A's and told there.
    """
    if run.facts.benchmark != "wise":
        summary = summarise(by_task(run.results))
        return {**summary.tasks, TOTAL: summary.overall}
    found: dict[str, Estimate | None] = {}
    for label in SCORINGS:
        one = run.scored.get(label)
        if label in _OWN_CATEGORIES:
            found |= {f"{label} {name}": one.categories[name] if one else None for name in NAMES}
        found[f"{label} {TOTAL}"] = one.overall if one else None
    return found


def differences(first: Run, second: Run) -> dict[str, Estimate]:
    """How much more the second run scores, by the names of ``scores_of``; where both have a score.

    Raises:
      EvaluationError: the runs are of other benchmarks or prompts.
    """
    if first.facts.benchmark != second.facts.benchmark:
        raise EvaluationError(
            f"{second.folder}: is of {second.facts.benchmark}, {first.folder} of "
            f"{first.facts.benchmark}; compare runs of the same benchmark"
        )
    if first.facts.benchmark != "wise":
        return compare(first.results, second.results)
    if first.facts.prompts != second.facts.prompts:
        raise EvaluationError(
            f"{second.folder}: was judged on another list of prompts than {first.folder}; evaluate both on one list"
        )
    found = {}
    for label in [label for label in SCORINGS if label in first.scored and label in second.scored]:
        a, b = (run.scored[label] for run in (first, second))
        scoring, strata = SCORINGS[label], {}
        for name in NAMES:
            if a.categories[name] is not None and b.categories[name] is not None:
                strata[name] = [
                    np.array([run.wise[label][i] for i in scoring.categories[name]]) for run in (first, second)
                ]
                if label in _OWN_CATEGORIES:
                    found[f"{label} {name}"] = difference([strata[name][0]], [strata[name][1]])
        if a.overall is not None and b.overall is not None:
            found[f"{label} {TOTAL}"] = difference(
                [own for own, _ in strata.values()], [other for _, other in strata.values()], scoring.weights
            )
    return found


def judged_differently(runs: Sequence[Run]) -> list[str]:
    """A sentence for the head of a report for every judgement that the runs do not owe to the same judge."""
    if runs[0].facts.benchmark == "wise":
        judges = {run.name: run.facts.judge for run in runs}
        by = {
            f" ({name})": {run: _judge(judge, name) for run, judge in judges.items() if judge and name in judge.rules}
            for name in JUDGEMENTS
        }
    else:
        by = {"": {run.name: run.facts.detector for run in runs}}
    sentences = []
    for which, judges in by.items():
        if len(different := list(dict.fromkeys(judges.values()))) > 1:
            told = [f"{', '.join(name for name in judges if judges[name] == one)} by {one}" for one in different]
            sentences.append(f"Judged differently{which}: {'; '.join(told)}. Differences are the judges' too.")
    return sentences


def _judge(judge: Judge, judgement: str) -> str:
    how = {"questions": judge.questions, "rules": judge.rules[judgement], **dict(sorted(judge.parameters.items()))}
    return f"{judge.model} ({', '.join(f'{name} {value}' for name, value in how.items())})"


def evaluations(run: Run) -> float | None:
    """Evaluations of the network for an image, from the run's table of costs; None where it has none."""
    rows = [row for table in run.facts.tables if table.title == "Costs" for row in table.rows]
    return next((float(row[1]) for row in rows if row[0] == _COST), None)


def comparison(runs: Sequence[Run]) -> list[Table]:
    """Scores side by side, and the differences of the others to the first run.

    Raises:
      EvaluationError: see ``differences``; or there are fewer than two runs, or no score that two of them have.
    """
    if len(runs) < 2:
        raise EvaluationError("name at least two runs to compare")
    apart = {run.name: differences(runs[0], run) for run in runs[1:]}
    lacking = _lacking(runs)
    if not any(apart.values()):
        raise EvaluationError(f"nothing to compare: {'; '.join(lacking)}; evaluate again with all images and answers")
    own = {run.name: scores_of(run) for run in runs}
    names = list(own[runs[0].name])
    sources = [f"{label}: {one.source}" for label, one in SCORINGS.items() if any(label in run.scored for run in runs)]
    note = "\n".join(f"{line}." for line in [*lacking, *sources])
    caution = _caution(runs[0].name, [one for found in apart.values() for one in found.values()])
    return [_side_by_side("Scores", names, own, note), _side_by_side("Differences", names, apart, caution)]


def _side_by_side(
    title: str, names: Sequence[str], runs: Mapping[str, Mapping[str, Estimate | None]], note: str
) -> Table:
    """A row for each of the names that some run has a figure of, a column with its interval for every run."""
    columns = [column for run in runs for column in (run, f"{run} low", f"{run} high")]
    rows = []
    for name in names:
        figures = [found.get(name) for found in runs.values()]
        if known := [one for one in figures if one is not None]:
            cells = [interval(one)[:3] if one is not None else (None, None, None) for one in figures]
            rows.append((name, *[cell for three in cells for cell in three], known[0].n))
    return Table(title, ("score", *columns, "prompts"), rows, note)


def _lacking(runs: Sequence[Run]) -> list[str]:
    """Which totals of WISE cannot be told, and why."""
    lines = []
    for run in runs:
        reasons: dict[str, list[str]] = {}
        for label, one in run.scored.items():
            reasons.setdefault(one.lacking, []).append(label)
        for label in SCORINGS:
            if label not in run.scored and any(label in other.scored for other in runs):
                reasons.setdefault("not judged", []).append(label)
        lines += [f"{run.name}: {', '.join(labels)}: {reason}" for reason, labels in reasons.items() if reason]
    return lines


def _caution(first: str, found: Iterable[Estimate]) -> str:
    """What the differences to the first run say of other prompts."""
    found = list(found)
    note = f"How much more than {first}, on the same prompts. "
    if any(one.low is not None and one.high is not None and one.low < one.high and one.n >= ENOUGH for one in found):
        note += (
            f"Where an interval has a width, rests on {ENOUGH} prompts or more and both its ends have one sign, "
            "prompts drawn anew would hardly turn the difference round."
        )
    else:
        note += f"No interval has a width and {ENOUGH} prompts to rest on: nothing is said of other prompts."
    return note + (
        f" Differences compared: {len(found)}, none corrected for their number; about one interval in "
        f"{1 / (1 - LEVEL):.0f} leaves out the truth by chance alone."
    )


def costs(runs: Sequence[Run]) -> list[Cost]:
    """Cost and total of every run whose cost is known; of WISE the last scoring of which all runs have a total."""
    own = [scores_of(run) for run in runs]
    totals = [name for name in own[0] if name.endswith(TOTAL) and all(scores[name] is not None for scores in own)]
    if not totals:
        return []
    found = []
    for run, scores in zip(runs, own):
        if spent := evaluations(run):
            total = scores[totals[-1]]
            name = run.name if totals[-1] == TOTAL else f"{run.name}, {totals[-1]}"
            found.append(Cost(name, spent, total.value, total.low, total.high))
    return found


def write_comparison(folders: Sequence[pathlib.Path], output: pathlib.Path) -> str:
    """Compares evaluated runs and writes ``index.html``, ``comparison.json`` and a CSV file for each table.

    Args:
      folders: Output folders of ``launch/evaluate.py``, at least two.
      output: The folder to write.

    Returns:
      Findings and tables as text.

    Raises:
      EvaluationError: See ``read_runs`` and ``comparison``.
      OSError: The folder cannot be written.
    """
    runs = read_runs(folders)
    tables, benchmark = comparison(runs), runs[0].facts.benchmark
    output.mkdir(parents=True, exist_ok=True)
    found = collections.defaultdict(list)
    for run in runs:
        for line in run.facts.findings:
            found[line].append(run.name)
    findings = [*judged_differently(runs), *(f"{', '.join(names)}: {line}" for line, names in found.items())]
    facts = {run.name: str(run.folder) for run in runs}
    title = f"{benchmark}: {len(runs)} runs"
    page = evaluation_page(title, findings, facts, tables, PUBLISHED[benchmark], costs=costs(runs))
    files = {"index.html": page.encode(), "comparison.json": as_json(tables)}
    files |= {f"{table.title.lower()}.csv": as_csv(table).encode() for table in tables}
    for name, content in files.items():
        with new_file(output / name) as partial:
            partial.write_bytes(content)
    return "\n\n".join([*findings, *map(as_text, tables)])
