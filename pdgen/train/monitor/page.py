"""The page of a training run, or of several beside each other: facts, curves and pictures along the way."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from pdgen.report.page import render, split_tags
from pdgen.sequence.trajectory import ImageStage, Trajectory
from pdgen.sequence.trajectory_folder import load_trajectory
from pdgen.synthesis.page import make_thumbnail
from pdgen.train.monitor.curves import COLOURS, LEVEL, Line, chart, number
from pdgen.train.monitor.run_log import RunLog

_COLUMNS = 12  # steps of a grid of pictures, at most
_NORMS = {"": "all", "_und": "understanding", "_gen": "generation", "_other": "other"}
_STAGES = {"_plan": "plan", "_inspect": "inspect", "_refine": "refine", "_switch": "switch"}
_BANDS = {"_0": "t below 0.25", "_1": "0.25 to 0.5", "_2": "0.5 to 0.75", "_3": "from 0.75"}


class Panel(NamedTuple):
    """One chart of the page.

    Attributes:
      title: its heading.
      series: label of each metric.
      exact: the metrics do not vary from batch to batch, so there is nothing to smooth.
      level: (metric of the held-out log, label) that a model must beat.
      log: a log axis where the values call for one.
      scale, unit: the values are shown times ``scale``, followed by ``unit``.
    """

    title: str
    series: Mapping[str, str]
    exact: bool = False
    level: tuple[str, str] | None = None
    log: bool = False
    scale: float = 1.0
    unit: str = ""


def _suffixed(stem: str, labels: Mapping[str, str]) -> dict[str, str]:
    return {f"{stem}{suffix}": label for suffix, label in labels.items()}


PANELS = {
    "Losses": (
        Panel("Loss", {"loss": "loss"}, log=True),
        Panel("Cross-entropy", {"ce": "texts and switches"}, level=("unigram_ce", "unigram model"), log=True),
        Panel("Cross-entropy by stage", _suffixed("ce", _STAGES), log=True),
        Panel("Flow loss (MSE)", {"mse": "images"}, level=("constant_mse", "best constant"), log=True),
        Panel("Flow loss by timestep (t = 1 is noise)", _suffixed("mse", _BANDS), log=True),
    ),
    "Norms": (
        Panel("Gradients", _suffixed("grad_norm", _NORMS), log=True),
        Panel("Updates", _suffixed("update_norm", _NORMS), log=True),
        Panel("Parameters", _suffixed("param_norm", _NORMS), exact=True, log=True),
        Panel("Learning rate", {"learning_rate": "learning rate"}, exact=True),
        Panel("Skipped loss spikes", {"skipped_spikes": "updates left out so far"}, exact=True),
    ),
    "Speed and memory": (
        Panel("Tokens per second", {"tokens_per_second": "tokens/s"}),
        Panel("Model FLOPs utilisation", {"mfu": "MFU"}, scale=100, unit="%"),
        Panel("Wait for data", {"data_wait": "of the step"}, scale=100, unit="%"),
        Panel(
            "Fill of the packs", _suffixed("fill", {"_text": "text", "_vit": "ViT", "_vae": "VAE"}), scale=100, unit="%"
        ),
        Panel("Device memory", {"memory_bytes": "at most so far"}, exact=True, scale=2**-30, unit=" GiB"),
    ),
}


def run_page(runs: Sequence[RunLog]) -> str:
    """One HTML page that needs no other file: curves on common axes where there are several runs.

    Raises:
      TrajectoryError: a folder of pictures is damaged.
    """
    several = len(runs) > 1
    sections = {
        title: [drawn for panel in panels for part in _split(panel, several) if (drawn := _drawn(part, runs))]
        for title, panels in PANELS.items()
    }
    grids = [grid for n, log in enumerate(runs) if (grid := _grid(log, f"run{n}"))]
    facts = [_facts(log) for log in runs]
    return render(
        "run.html",
        title=("Runs " if several else "Run ") + ", ".join(log.name for log in runs),
        names=[log.name for log in runs],
        colours=COLOURS,
        facts={label: [own.get(label, "") for own in facts] for label in dict.fromkeys(k for f in facts for k in f)},
        notes=[note for log in runs for note in _notes(log)],
        sections={title: figures for title, figures in sections.items() if figures},
        grids=grids,
        configs=[flat(log.config) for log in runs],
        several=several,
        held_out=any(log.held_out.rows for log in runs),
    )


def _split(panel: Panel, several: bool) -> list[Panel]:
    """Among several runs a colour is a run, so every metric has a chart of its own."""
    if not several or len(panel.series) == 1:
        return [panel]
    title = f"{panel.title}: {{}}".format
    return [panel._replace(title=title(label), series={name: label}) for name, label in panel.series.items()]


def _drawn(panel: Panel, runs: Sequence[RunLog]) -> dict[str, Any] | None:
    """The panel's chart and legend; None where no run has any of it."""
    lines, levels, legend = [], [], []
    kinds = [(log, name, label) for log in runs for name, label in panel.series.items()]
    shown = [kind for kind in kinds if kind[1] in kind[0].metrics.names | kind[0].held_out.names]
    for colour, (log, name, label) in enumerate(shown):
        if len(runs) > 1:
            colour, label = runs.index(log), log.name
        words = []
        own = "exact" if panel.exact else "noisy"
        for part, style, said in ((log.metrics, own, "{}"), (log.held_out, "sparse", "held-out {}")):
            steps, values = part.series(name)
            if len(values):
                lines.append(Line(steps, values * panel.scale, colour, style))
                words.append(said.format(number(lines[-1].last) + panel.unit))
        legend.append((colour, label, ", ".join(words)))
    if panel.level and lines:
        name, label = panel.level
        levels = sorted({log.held_out.series(name)[1][-1] for log in runs if name in log.held_out.names})
        legend += [(LEVEL, label, number(level)) for level in levels]
    return {"title": panel.title, "svg": chart(lines, levels, panel.log), "legend": legend} if lines else None


def _facts(log: RunLog) -> dict[str, str]:
    """What the head of the page says of a run."""
    config, optimizer, total = log.config, log.config["optimizer"], int(log.config["num_steps"])
    facts = {"steps": f"{log.step:,} of {total:,} ({log.step / total:.0%})", "state": _state(log, total)}
    steps, seconds = log.metrics.series("step_seconds")
    if len(steps):
        facts["training time"] = duration(float(np.diff(steps, prepend=0) @ seconds))
    for label, name, scale, unit in (("tokens/s", "tokens_per_second", 1, ""), ("MFU", "mfu", 100, "%")):
        values = log.metrics.series(name)[1]
        if len(values):
            facts[label] = number(float(np.median(values)) * scale) + unit
    facts |= _results(log)
    kept = ", ".join(f"{step:,}" for step in log.checkpoints) or "none yet"
    return facts | {
        "checkpoints": kept + (f"; exported {log.exported:,}" if log.exported is not None else ""),
        "model": config["model"] or config["init"],
        "starts from": config["init"] or "fresh parameters",
        "data": config["data"],
        "a step": f"{config['rows']} pack{'s' * (config['rows'] > 1)} of {sum(config['budgets'].values()):,} slots",
        "learning rate": f"{optimizer['learning_rate']:g}, {optimizer['schedule']}",
        "mesh": " x ".join(map(str, config["mesh"])) + " (data, fsdp, tensor)",
    }


def _state(log: RunLog, total: int) -> str:
    if log.stopped:
        return f"stopped: {log.stopped}"
    if log.written is None:
        return f"nothing logged yet: the first line comes with step {log.config['log_every']:,}"
    if log.step >= total:
        return "finished"
    return f"last logged {log.written:%Y-%m-%d %H:%M} UTC"


def _results(log: RunLog) -> dict[str, str]:
    """The newest held-out losses beside what they are to beat."""
    results = {}
    for label, name, level, beaten in (
        ("held-out cross-entropy", "ce", "unigram_ce", "unigram model"),
        ("held-out MSE", "mse", "constant_mse", "best constant"),
    ):
        values, levels = log.held_out.series(name)[1], log.held_out.series(level)[1]
        if len(values):
            results[label] = number(values[-1]) + (f" ({beaten} {number(levels[-1])})" if len(levels) else "")
    return results


def duration(seconds: float) -> str:
    """In the two largest units.

    >>> duration(7384)
    '2 h 3 min'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")) if n]
    return " ".join(parts[:2]) or "0 s"


def _notes(log: RunLog) -> list[str]:
    cut = [name for name, part in (("metrics", log.metrics), ("held-out losses", log.held_out)) if part.cut]
    return [f"{log.name}: the last line of the {name} is half written and left out." for name in cut]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config with dotted keys."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        values |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return values


def _grid(log: RunLog, anchor: str) -> dict[str, Any] | None:
    """The last picture of every prompt at up to ``_COLUMNS`` steps, and all of the newest trajectories."""
    if not log.pictures:
        return None
    known = sorted(log.pictures)
    steps = [known[n] for n in np.unique(np.linspace(0, len(known) - 1, _COLUMNS).round().astype(int))]
    prompts = sorted({prompt for step in steps for prompt in log.pictures[step]})
    rows = []
    for prompt in prompts:
        sampled = {step: load_trajectory(log.pictures[step][prompt]) for step in steps if prompt in log.pictures[step]}
        newest = max(sampled)
        rows.append(
            {
                "anchor": f"{anchor}-{prompt}",
                "prompt": sampled[newest].prompt,
                "cells": {step: _cell(sampled[step]) if step in sampled else None for step in steps},
                "newest": newest,
                "trajectory": sampled[newest],
                "stages": _stages(sampled[newest]),
            }
        )
    return {"name": log.name, "steps": steps, "of": len(known), "rows": rows}


def _cell(trajectory: Trajectory) -> dict[str, Any]:
    """The last image, and how the trajectory went."""
    count = len(trajectory.images)
    note = f"{trajectory.stop_reason}, {count} image{'s' * (count != 1)}"
    return {"note": note} | (_picture(trajectory.images[-1]) if count else {})


def _picture(image: PIL.Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    kind, data, (width, height) = make_thumbnail(buffer.getvalue())
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"source": source, "width": width, "height": height, "pixelated": max(width, height) < 128}


def _stages(trajectory: Trajectory) -> list[dict[str, Any]]:
    images = iter(trajectory.images)
    return [
        {"stage": stage.stage}
        | (_picture(next(images)) if isinstance(stage, ImageStage) else {"spans": split_tags(stage.text)})
        for stage in trajectory.stages
    ]
