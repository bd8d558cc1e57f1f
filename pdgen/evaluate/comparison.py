"""Comparison of evaluated runs: their scores, and each run's difference to the first one, prompt by prompt.

A run is an output folder of ``launch/evaluate.py``. Runs are comparable only if they were scored on the same prompts in
the same order.
"""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.rule import GenEvalResult
from pdgen.evaluate.geneval.scoring import RESULTS, compare_results, group_by_task, read_results, summarise
from pdgen.evaluate.page import PUBLISHED, RunCost, render_evaluation
from pdgen.evaluate.statistics import LEVEL, Estimate, estimate_difference
from pdgen.evaluate.tables import Table, format_csv, format_json, format_text, to_cells, write_files
from pdgen.evaluate.wise import (
    CATEGORIES,
    JUDGEMENTS,
    PROMPTS_FILE,
    SCORINGS,
    WiseFigures,
    compute_figures,
    read_wise_prompts,
)
from pdgen.json_text import decode_json
from pdgen.messages import name_some

SUMMARY = "summary.json"
TOTAL = "overall"
MIN_PROMPTS = 10  # with fewer the interval is not reliable
_COST = "network_evaluations"
_OWN_CATEGORIES = ("A", "B")  # scorings of WISE whose categories are listed; C's are A's


class WiseJudge(msgspec.Struct, frozen=True):
    """WISE's judge: its model, the version of its questions, the hash of its rules by judgement, its parameters."""

    model: str
    questions: int
    rules: dict[str, str]
    parameters: dict[str, Any]


class RunFacts(msgspec.Struct, frozen=True):
    """The part of a ``summary.json`` that a comparison needs.

    Attributes:
      findings: The findings at the head of the report.
      detector: The detector's identity, for GenEval and the shapes benchmark.
      judge: The judge, for WISE.
      prompts: The digest of the list, for WISE.
    """

    benchmark: Literal["geneval", "shapes", "wise"]
    findings: list[str]
    tables: list[Table]
    detector: str | None = None
    judge: WiseJudge | None = None
    prompts: str | None = None

    def __post_init__(self) -> None:
        needed = ("judge", "prompts") if self.benchmark == "wise" else ("detector",)
        if lacking := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"no '{lacking[0]}'")


class EvaluatedRun(NamedTuple):
    """An evaluated run.

    Attributes:
      name: A name that is unique among the compared runs.
      results: The results of GenEval or the shapes benchmark. Empty for WISE.
      wise: By scoring of WISE, the score of each prompt id. Empty for the other benchmarks.
      scored: By scoring of WISE, its figures.
    """

    name: str
    folder: pathlib.Path
    facts: RunFacts
    results: list[GenEvalResult]
    wise: dict[str, dict[int, float]]
    scored: dict[str, WiseFigures]


def read_evaluations(folders: Sequence[pathlib.Path]) -> list[EvaluatedRun]:
    """Read evaluated runs. A run's name is the end of its path, as long as needed to make the names unique.

    Raises:
      EvaluationError: A folder cannot be read (see ``read_evaluation``), or is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    if twice := [folder for folder, path in zip(folders, paths) if paths.count(path) > 1]:
        raise EvaluationError(f"{twice[0]}: given twice; name each run once")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return [read_evaluation(folder, "/".join(path.parts[-parts:])) for folder, path in zip(folders, paths)]


def read_evaluation(folder: pathlib.Path, name: str) -> EvaluatedRun:
    """Read the output folder of one evaluation.

    Raises:
      EvaluationError: A file is missing or broken. The message names it.
    """
    path = folder / SUMMARY
    try:
        facts = decode_json(path.read_bytes(), RunFacts)
    except OSError as fault:
        raise EvaluationError(f"{path}: {fault.strerror}; name an output folder of launch/evaluate.py") from None
    except ValueError as fault:
        raise EvaluationError(f"{path}: no summary of an evaluation ({fault}); evaluate again") from None
    if facts.benchmark != "wise":
        return EvaluatedRun(name, folder, facts, read_results(folder / RESULTS), {}, {})
    if not (folder / PROMPTS_FILE).is_file():
        raise EvaluationError(f"{folder / PROMPTS_FILE}: missing; evaluate again (answers of the judge are kept)")
    wise, prompts = _read_wise_scores(folder), read_wise_prompts([folder / PROMPTS_FILE])
    return EvaluatedRun(
        name, folder, facts, [], wise, {label: compute_figures(SCORINGS[label], wise[label], prompts) for label in wise}
    )


def _read_wise_scores(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    found = {}
    for label, scoring in SCORINGS.items():
        judgement = JUDGEMENTS[scoring.judgement]
        path = folder / judgement.file
        if not path.exists():
            continue
        scores = {}
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                values = decode_json(line, dict[str, Any])
                identity, _ = msgspec.convert(values.pop("prompt_id"), int), values.pop("Subcategory")
                scores[identity] = msgspec.convert(values, judgement.answer).score
            except (ValueError, KeyError, TypeError) as fault:
                raise EvaluationError(f"{path}: line {number}: no score of WISE ({fault}); judge again") from None
        found[label] = scores
    return found


def collect_scores(run: EvaluatedRun) -> dict[str, Estimate | None]:
    """Return every score of a run by name, the total after its parts. Unknown scores are None.

    For WISE a name is a scoring's label and a category or "overall". C's categories are A's and are listed only there.
    """
    if run.facts.benchmark != "wise":
        summary = summarise(group_by_task(run.results))
        return {**summary.tasks, TOTAL: summary.overall}
    found: dict[str, Estimate | None] = {}
    for label in SCORINGS:
        one = run.scored.get(label)
        if label in _OWN_CATEGORIES:
            found |= {f"{label} {name}": one.categories[name] if one else None for name in CATEGORIES}
        found[f"{label} {TOTAL}"] = one.overall if one else None
    return found


def compute_differences(first: EvaluatedRun, second: EvaluatedRun) -> dict[str, Estimate]:
    """Compute how much higher the second run scores, for each score that both runs have.

    Raises:
      EvaluationError: The runs have different benchmarks or prompts.
    """
    if first.facts.benchmark != second.facts.benchmark:
        raise EvaluationError(
            f"{second.folder}: has benchmark {second.facts.benchmark}, {first.folder} has "
            f"{first.facts.benchmark}; compare runs of the same benchmark"
        )
    if first.facts.benchmark != "wise":
        try:
            return compare_results(first.results, second.results)
        except ValueError as fault:
            raise EvaluationError(f"{second.folder}, compared with {first.folder}: {fault}") from None
    if first.facts.prompts != second.facts.prompts:
        raise EvaluationError(
            f"{second.folder}: was judged on another list of prompts than {first.folder}; evaluate both on one list"
        )
    found = {}
    for label in [label for label in SCORINGS if label in first.scored and label in second.scored]:
        a, b = (run.scored[label] for run in (first, second))
        scoring, strata = SCORINGS[label], {}
        for name in CATEGORIES:
            if a.categories[name] is not None and b.categories[name] is not None:
                strata[name] = [
                    np.array([run.wise[label][i] for i in scoring.categories[name]]) for run in (first, second)
                ]
                if label in _OWN_CATEGORIES:
                    found[f"{label} {name}"] = estimate_difference([strata[name][0]], [strata[name][1]])
        if a.overall is not None and b.overall is not None:
            found[f"{label} {TOTAL}"] = estimate_difference(
                [own for own, _ in strata.values()], [other for _, other in strata.values()], scoring.weights
            )
    return found


def find_judge_differences(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return a sentence for each judgement that the runs got from different judges or detectors."""
    if runs[0].facts.benchmark == "wise":
        judges = {run.name: run.facts.judge for run in runs}
        by = {
            f" ({name})": {
                run: _describe_judge(judge, name) for run, judge in judges.items() if judge and name in judge.rules
            }
            for name in JUDGEMENTS
        }
    else:
        by = {"": {run.name: run.facts.detector for run in runs}}
    sentences = []
    for which, judges in by.items():
        if len(different := list(dict.fromkeys(judges.values()))) > 1:
            judged = [f"{', '.join(name for name in judges if judges[name] == one)} by {one}" for one in different]
            sentences.append(f"Judged differently{which}: {'; '.join(judged)}. The differences include the judges'.")
    return sentences


def _describe_judge(judge: WiseJudge, judgement: str) -> str:
    settings = {"questions": judge.questions, "rules": judge.rules[judgement], **dict(sorted(judge.parameters.items()))}
    return f"{judge.model} ({', '.join(f'{name} {value}' for name, value in settings.items())})"


def read_network_evaluations(run: EvaluatedRun) -> float | None:
    """Return the network evaluations for an image from the run's table of costs; None if there are none."""
    rows = [row for table in run.facts.tables if table.title == "Costs" for row in table.rows]
    values = [row[1] for row in rows if row[0] == _COST]
    return float(values[0]) if values and isinstance(values[0], float | int) else None


def make_comparison_tables(runs: Sequence[EvaluatedRun]) -> list[Table]:
    """Return the runs' scores, and the differences of the other runs to the first.

    Raises:
      EvaluationError: There are fewer than two runs, no score is common to two of them, or they cannot be compared (see
        ``compute_differences``).
    """
    if len(runs) < 2:
        raise EvaluationError("name at least two runs to compare")
    against_first = {run.name: compute_differences(runs[0], run) for run in runs[1:]}
    lacking = _explain_missing_totals(runs)
    if not any(against_first.values()):
        raise EvaluationError(
            f"nothing to compare: {name_some(lacking, '; ')}; evaluate again with all images and answers"
        )
    own = {run.name: collect_scores(run) for run in runs}
    names = list(own[runs[0].name])
    sources = [f"{label}: {one.source}" for label, one in SCORINGS.items() if any(label in run.scored for run in runs)]
    note = "\n".join(f"{line}." for line in [*lacking, *sources])
    caution = _make_caution(runs[0].name, [one for found in against_first.values() for one in found.values()])
    return [_make_table("Scores", names, own, note), _make_table("Differences", names, against_first, caution)]


def _make_table(
    title: str, names: Sequence[str], runs: Mapping[str, Mapping[str, Estimate | None]], note: str
) -> Table:
    """Return a table with a row for each name that some run has a score of, and columns for every run."""
    columns = [column for run in runs for column in (run, f"{run} low", f"{run} high")]
    rows = []
    for name in names:
        figures = [found.get(name) for found in runs.values()]
        if known := [one for one in figures if one is not None]:
            rows.append((name, *[cell for one in figures for cell in to_cells(one)[:3]], known[0].n))
    return Table(title, ("score", *columns, "prompts"), rows, note)


def _explain_missing_totals(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the missing totals of WISE with their reasons."""
    lines = []
    for run in runs:
        reasons: dict[str, list[str]] = {}
        for label, one in run.scored.items():
            reasons.setdefault(one.missing_reason, []).append(label)
        for label in SCORINGS:
            if label not in run.scored and any(label in other.scored for other in runs):
                reasons.setdefault("not judged", []).append(label)
        lines += [f"{run.name}: {', '.join(labels)}: {reason}" for reason, labels in reasons.items() if reason]
    return lines


def _make_caution(first: str, found: Sequence[Estimate]) -> str:
    """Return what the differences to the first run imply for other prompts."""
    if any(
        one.low is not None and one.high is not None and one.low < one.high and one.n >= MIN_PROMPTS for one in found
    ):
        meaning = (
            f"If an interval has a width and at least {MIN_PROMPTS} prompts, and both its ends have the same sign, "
            "other prompts would hardly change the difference's sign."
        )
    else:
        meaning = f"No interval has a width and at least {MIN_PROMPTS} prompts: this says nothing about other prompts."
    return (
        f"How much higher than {first}, on the same prompts. {meaning} Differences compared: {len(found)}, not "
        f"corrected for multiple comparisons; about one interval in {1 / (1 - LEVEL):.0f} misses the truth by chance."
    )


def collect_costs(runs: Sequence[EvaluatedRun]) -> list[RunCost]:
    """Return the cost and total score of every run whose cost is known.

    For WISE the total is of the last scoring that all runs have a total of.
    """
    own = [collect_scores(run) for run in runs]
    totals = [name for name in own[0] if name.endswith(TOTAL) and all(scores[name] is not None for scores in own)]
    if not totals:
        return []
    found = []
    for run, scores in zip(runs, own):
        if spent := read_network_evaluations(run):
            total = scores[totals[-1]]
            assert total is not None  # all runs have it
            name = run.name if totals[-1] == TOTAL else f"{run.name}, {totals[-1]}"
            found.append(RunCost(name, spent, total.value, total.low, total.high))
    return found


def write_comparison(folders: Sequence[pathlib.Path], output: pathlib.Path) -> str:
    """Write ``index.html``, ``comparison.json`` and a CSV file for each table; return findings and tables as text.

    Args:
      folders: Output folders of ``launch/evaluate.py``, at least two.
      output: The folder to write.

    Raises:
      EvaluationError: See ``read_evaluations`` and ``make_comparison_tables``.
      OSError: The folder cannot be written.
    """
    runs = read_evaluations(folders)
    tables, benchmark = make_comparison_tables(runs), runs[0].facts.benchmark
    output.mkdir(parents=True, exist_ok=True)
    found = collections.defaultdict(list)
    for run in runs:
        for line in run.facts.findings:
            found[line].append(run.name)
    findings = [*find_judge_differences(runs), *(f"{', '.join(names)}: {line}" for line, names in found.items())]
    facts = {run.name: str(run.folder) for run in runs}
    title = f"{benchmark}: {len(runs)} runs"
    page = render_evaluation(title, findings, facts, tables, PUBLISHED[benchmark], costs=collect_costs(runs))
    files = {f"{table.title.lower()}.csv": format_csv(table) for table in tables}
    write_files(output, {"index.html": page, "comparison.json": format_json(tables), **files})
    return "\n\n".join([*findings, *map(format_text, tables)])
