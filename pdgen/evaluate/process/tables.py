"""Tables of process measures over many trajectories. Every interval resamples prompts."""

import collections
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from pdgen.evaluate.process.measures import ProcessFacts
from pdgen.evaluate.statistics import Estimate, estimate_pooled
from pdgen.evaluate.tables import Cell, Table, to_cells
from pdgen.sequence.images import CHANGE
from pdgen.sequence.trajectory import Trajectory

_Known = TypeVar("_Known", bound=ProcessFacts | Trajectory)
# A benchmark's intervals resample within each task, but trajectories do not record their prompt's task.
_RESAMPLED = "Intervals resample prompts of all tasks together, each with all its values."

# Each measure's values in one trajectory. A measure is the mean of all trajectories' values.
MEASURES: Mapping[str, Callable[[ProcessFacts], Sequence[float | bool]]] = {
    "final score": lambda f: [f.final] if f.final is not None else [],
    "first draft's score": lambda f: [f.first] if f.first is not None else [],
    "final beats first draft": lambda f: [f.final > f.first] if f.first is not None and f.final is not None else [],
    "final below first draft": lambda f: [f.final < f.first] if f.first is not None and f.final is not None else [],
    "steps kept": lambda f: [step.kept for step in f.steps if step.kept is not None],
    "plans that agree with the prompt": lambda f: [
        step.planned for step in f.steps if step.plan is not None and step.planned is not None
    ],
    "pictures as planned": lambda f: [step.shown for step in f.steps if step.shown is not None],
    "rest left alone": lambda f: [step.untouched for step in f.steps if step.untouched is not None],
    "pixels changed by a step": lambda f: [step.changed for step in f.steps if step.changed is not None],
    "inspection precision": lambda f: [i.fault for i in f.inspections if i.alarm and i.fault is not None],
    "inspection recall": lambda f: [i.alarm for i in f.inspections if i.fault],
    "false alarms": lambda f: [i.alarm for i in f.inspections if i.fault is False],
    "false alarms on what is not drawn yet": lambda f: [
        i.alarm for i in f.inspections if i.fault is False and i.unfinished
    ],
    "refinements that mend": lambda f: [r.effect == "mends" for r in f.refinements if r.effect is not None],
    "refinements that do nothing": lambda f: [r.effect == "nothing" for r in f.refinements if r.effect is not None],
    "refinements that harm": lambda f: [r.effect == "harms" for r in f.refinements if r.effect is not None],
    "images": lambda f: [f.images],
    "finished": lambda f: [f.finished],
}


def make_process_table(facts: Sequence[ProcessFacts]) -> Table:
    """Return every measure that has a value in some trajectory, with its interval, prompts and number of values."""
    rows = [_make_row(name, facts, values) for name, values in MEASURES.items()]
    return Table(
        title="Process",
        columns=("measure", "value", "low", "high", "prompts", "values"),
        rows=[row for row in rows if row is not None],
        note="Means over all known values of all trajectories; a plan that cannot be read gives none. A step without a "
        "plan has the prompt as its plan. Precision: share of <refine> where the judge finds a fault; recall: share of "
        f"the judge's faults with <refine>. A pixel has changed where a channel differs by more than {CHANGE} of 255. "
        f"{_RESAMPLED}",
    )


def make_cost_table(facts: Sequence[ProcessFacts | Trajectory]) -> Table:
    """Return the mean of every cost of a trajectory. The trajectories need not be judged."""
    names = list(dict.fromkeys(name for one in facts for name in one.costs))
    rows = [_make_row(name, facts, lambda f, name=name: [f.costs[name]] if name in f.costs else []) for name in names]
    return Table(
        title="Costs",
        columns=("for a trajectory", "value", "low", "high", "prompts", "values"),
        rows=[row for row in rows if row is not None],
        note=f"Network evaluations count every guidance branch. {_RESAMPLED}",
    )


def make_length_table(facts: Sequence[ProcessFacts]) -> Table:
    """Return images drawn and final score by the number of entities that the prompt asks for."""
    groups: dict[int, list[ProcessFacts]] = {}
    for one in facts:
        groups.setdefault(one.entities, []).append(one)
    rows = []
    for entities, group in sorted(groups.items()):
        images = float(np.mean([one.images for one in group]))
        scores = [one.final for one in group if one.final is not None]
        prompts = len({one.prompt for one in group})
        rows.append((str(entities), images, float(np.mean(scores)) if scores else None, prompts))
    return Table("Length", ("things asked for", "images", "final score", "prompts"), rows)


def make_lost_table(facts: Sequence[ProcessFacts]) -> Table:
    """Return where trajectories with an incorrect last image first deviate from the prompt, most frequent first."""
    scored = [one for one in facts if one.final is not None]
    counts = collections.Counter(f"step {f.lost_at[0] + 1}: {f.lost_at[1]}" for f in scored if f.lost_at is not None)
    rows: list[tuple[str | float | None, ...]]
    rows = [(where, n, len(scored)) for where, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return Table(
        "Lost",
        ("first thing wrong", "trajectories", "of"),
        rows,
        note='"plan": it contradicts the prompt; "picture": it does not show its plan, or the prompt where there is no '
        'plan; "unfinished": all steps were kept and the trajectory ended too early; "unknown": the plan cannot be '
        "read, so the cause may be this step or a later one.",
    )


def make_tables(facts: Sequence[ProcessFacts]) -> list[Table]:
    """Return all tables that have rows."""
    made = [make_process_table(facts), make_cost_table(facts), make_length_table(facts), make_lost_table(facts)]
    return [table for table in made if table.rows]


def estimate_measure(
    runs: Sequence[Sequence[_Known]], values: Callable[[_Known], Sequence[float | bool]]
) -> tuple[Estimate, int] | None:
    """Estimate the mean of all values over prompts and runs.

    Args:
      runs: By training seed, facts of trajectories for the same prompts.
      values: Returns the values of one trajectory, see ``MEASURES``.

    Returns:
      The estimate and the number of values; None if there is no value.
    """
    by_prompt: dict[str, list[list[float]]] = {}
    for number, facts in enumerate(runs):
        for one in facts:
            by_prompt.setdefault(one.prompt, [[] for _ in runs])[number].extend(map(float, values(one)))
    known = [own for own in by_prompt.values() if any(own)]
    if not known:
        return None
    return estimate_pooled(list(zip(*known))), sum(len(part) for own in known for part in own)


def _make_row(
    name: str, facts: Sequence[_Known], values: Callable[[_Known], Sequence[float | bool]]
) -> tuple[Cell, ...] | None:
    found = estimate_measure([facts], values)
    return found and (name, *to_cells(found[0]), found[1])


def find_trajectories(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of all trajectories below a folder, sorted."""
    return sorted(path.parent for path in folder.rglob("trajectory.json"))
