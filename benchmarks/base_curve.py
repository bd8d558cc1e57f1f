"""A base model's abilities by image draws: checkpoints of one run on a reduced abilities benchmark.

    python -m benchmarks.base_curve --run=out/base --checkpoint=2000=out/base_2000 --checkpoint=20000=out/base

A checkpoint is given with its step. Each answers the same prompts, ``--count`` of every row of ``ROWS`` (see
``pdgen.evaluate.abilities.prompts``). A killed run resumes. Image draws are steps times the noised images of a step,
which come from the run's metrics or ``--images_per_step``. Writes ``benchmarks/results/base_curve.json`` and
``docs/base_curve.png``.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.result import get_cpu_name, get_versions, write_json
from pdgen.checkpoints.load import find
from pdgen.evaluate.abilities.prompts import AbilityDraw, make_draws
from pdgen.evaluate.abilities.run import read_ability_settings, run_draws
from pdgen.evaluate.abilities.scores import AbilityOutcome, average_by_prompt
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.generator import parse_assignments
from pdgen.evaluate.statistics import estimate
from pdgen.evaluate.tables import to_cells
from pdgen.files import new_file
from pdgen.sample.compiled import keep_compiled
from pdgen.train.monitor.curves import COLOURS
from pdgen.train.monitor.run_log import read_run_log

FLAGS = flags.FLAGS
PLOT = pathlib.Path(__file__).parents[1] / "docs" / "base_curve.png"
ROWS = {
    "drawing": ("one thing", "one thing, unseen pair", "two things", "position", "counting", "four things"),
    "editing": ("add", "modify", "move", "remove"),
    "reading": ("caption", "color", "count", "check"),
}


def define_flags() -> None:
    """Define the flags of this benchmark."""
    flags.DEFINE_string("run", None, "the workdir of the training run, whose metrics have the images of a step")
    flags.DEFINE_multi_string("checkpoint", None, "STEP=FOLDER of an exported checkpoint (repeat it)", required=True)
    flags.DEFINE_float("images_per_step", None, "noised images of a step; default: from the metrics", lower_bound=0.0)
    flags.DEFINE_integer("count", 60, "prompts of a row", lower_bound=1)
    flags.DEFINE_integer("batch", 8, "draws that are sampled at once", lower_bound=1)
    flags.DEFINE_multi_string("setting", [], "NAME=VALUE of the sampler, as of launch/evaluate.py (repeat it)")
    flags.DEFINE_string("output", "out/base_curve", "folder of the draws, one below it for each step")


def read_checkpoints(named: Sequence[str]) -> dict[int, str]:
    """Parse "STEP=FOLDER" pairs and sort them by step. Raises EvaluationError for another form."""
    found: dict[int, str] = {}
    for text in named:
        step, equals, path = text.partition("=")
        if not (equals and path and step.isdecimal()) or int(step) in found:
            raise EvaluationError(f"--checkpoint={text}: write STEP=FOLDER, each step once, such as 2000=out/base_2000")
        found[int(step)] = path
    return dict(sorted(found.items()))


def count_images_per_step(workdir: str | None, given: float | None) -> float:
    """Return the noised images of a step, or their mean over the run's metrics. Raises EvaluationError, RunError."""
    if given is not None:
        return given
    if workdir is None:
        raise EvaluationError("--run: name the run's workdir, or --images_per_step")
    rows = read_run_log(pathlib.Path(workdir)).metrics.rows
    images = [r["images_per_second"] * r["step_seconds"] for r in rows if {"images_per_second", "step_seconds"} <= {*r}]
    if not images:
        raise EvaluationError(f"--run={workdir}: its metrics have no images_per_second; pass --images_per_step")
    return float(np.mean(images))


def compute_scores(outcomes: Sequence[AbilityOutcome]) -> dict[str, dict[str, Any]]:
    """Return for every row, named "group: row", the share of correct draws, its interval and the number of prompts."""
    rows: dict[str, list[AbilityOutcome]] = {}
    for one in outcomes:
        rows.setdefault(f"{one.group}: {one.row}", []).append(one)
    return {
        row: dict(
            zip(("value", "low", "high", "prompts"), to_cells(estimate([np.array(average_by_prompt(own, "right"))])))
        )
        for row, own in rows.items()
    }


def plot_scores(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot score against image draws, with a panel for each group and a band for each interval.

    Args:
      points: "image_draws" and "rows" of every checkpoint, as in the JSON file.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (group, names) in zip(figure.subplots(1, len(ROWS), sharey=True), ROWS.items()):
        for name, colour in zip(names, COLOURS):
            own = [(p["image_draws"], p["rows"][f"{group}: {name}"]) for p in points if f"{group}: {name}" in p["rows"]]
            at, values = [x for x, _ in own], [row["value"] for _, row in own]
            axes.plot(at, values, marker=".", color=colour, label=name)
            band = [[row["value"] if row[end] is None else row[end] for _, row in own] for end in ("low", "high")]
            axes.fill_between(at, *band, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=group, xlabel="image draws", xscale="log", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("right")
    return figure


def measure(step: int, path: str, every: Sequence[AbilityDraw], values: Mapping[str, Any]) -> list[AbilityOutcome]:
    """Return the outcomes of one checkpoint. Raises ValueError for invalid input."""
    settings, folder = read_ability_settings(values), pathlib.Path(FLAGS.output) / f"{step:08d}"
    with tqdm(total=len(every), unit=" draws", desc=f"step {step}", smoothing=0.1) as bar:
        return run_draws(every, find(path), settings, folder, bar.update)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    logging.set_verbosity(logging.WARNING)  # Orbax logs each of its steps
    keep_compiled()
    try:
        checkpoints, images = (
            read_checkpoints(FLAGS.checkpoint),
            count_images_per_step(FLAGS.run, FLAGS.images_per_step),
        )
        values, every = (
            {"batch_size": FLAGS.batch} | parse_assignments(FLAGS.setting),
            make_draws(FLAGS.count, rows=ROWS),
        )
        points = []
        for step, path in checkpoints.items():
            rows = compute_scores(measure(step, path, every, values))
            points.append({"step": step, "image_draws": round(step * images), "rows": rows})
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        print(f"base_curve: {fault}", file=sys.stderr)
        sys.exit(2)
    settings = {mode: one.flatten() for mode, one in read_ability_settings(values).items()}
    facts = {"cpu": get_cpu_name(), **get_versions("jax", "pdgen"), "count": FLAGS.count, "settings": settings}
    print(write_json("base_curve", {**facts, "images_per_step": images, "checkpoints": points}))
    with new_file(PLOT) as partial:
        plot_scores(points).savefig(partial, dpi=100, format="png")
    print(PLOT)


if __name__ == "__main__":
    define_flags()
    app.run(main)
