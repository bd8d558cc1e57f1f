"""The page of one training run, or of several side by side: facts, curves and sampled pictures."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from flax import traverse_util

from pdgen.report.page import render, split_tags
from pdgen.sequence.images import encode_png
from pdgen.sequence.trajectory import ImageStage, Trajectory
from pdgen.sequence.trajectory_folder import load_trajectory
from pdgen.synthesis.page import make_thumbnail
from pdgen.train.monitor.curves import COLOURS, LEVEL, Line, draw_chart, format_number
from pdgen.train.monitor.run_log import RunLog

_MAX_COLUMNS = 12  # steps in a grid of pictures
_NORMS = {"": "all", "_und": "understanding", "_gen": "generation", "_other": "other"}
_STAGES = {f"_{stage}": stage for stage in ("plan", "inspect", "refine", "switch", "thought", "answer")}
_BANDS = {"_0": "t below 0.25", "_1": "0.25 to 0.5", "_2": "0.5 to 0.75", "_3": "from 0.75"}


class Panel(NamedTuple):
    """One chart of the page.

    Attributes:
      title: heading of the chart.
      series: label of each metric.
      exact: draw the values without smoothing, since they do not depend on the batch.
      level: (metric of the held-out log, label) of the baseline that a model must beat.
      log: use a log axis if the range of the values is wide.
      scale, unit: the page shows the values times ``scale``, followed by ``unit``.
    """

    title: str
    series: Mapping[str, str]
    exact: bool = False
    level: tuple[str, str] | None = None
    log: bool = False
    scale: float = 1.0
    unit: str = ""


def _label_suffixes(stem: str, labels: Mapping[str, str]) -> dict[str, str]:
    return {f"{stem}{suffix}": label for suffix, label in labels.items()}


PANELS = {
    "Losses": (
        Panel("Loss", {"loss": "loss"}, log=True),
        Panel("Cross-entropy", {"ce": "texts and switches"}, level=("unigram_ce", "unigram model"), log=True),
        Panel("Cross-entropy by stage", _label_suffixes("ce", _STAGES), log=True),
        Panel("Flow loss (MSE)", {"mse": "images"}, level=("constant_mse", "best constant"), log=True),
        Panel("Flow loss by timestep (t = 1 is noise)", _label_suffixes("mse", _BANDS), log=True),
    ),
    "Norms": (
        Panel("Gradients", _label_suffixes("grad_norm", _NORMS), log=True),
        Panel("Updates", _label_suffixes("update_norm", _NORMS), log=True),
        Panel("Parameters", _label_suffixes("param_norm", _NORMS), exact=True, log=True),
        Panel("Learning rate", {"learning_rate": "learning rate"}, exact=True),
        Panel("Skipped loss spikes", {"skipped_spikes": "skipped updates so far"}, exact=True),
    ),
    "Speed and memory": (
        Panel("Tokens per second", {"tokens_per_second": "tokens/s"}),
        Panel("Model FLOPs utilisation", {"mfu": "MFU"}, scale=100, unit="%"),
        Panel("Wait for data", {"data_wait": "of the step"}, scale=100, unit="%"),
        Panel(
            "Fill of the packs",
            _label_suffixes("fill", {"_text": "text", "_vit": "ViT", "_vae": "VAE"}),
            scale=100,
            unit="%",
        ),
        Panel("Device memory", {"memory_bytes": "peak so far"}, exact=True, scale=2**-30, unit=" GiB"),
    ),
}


def render_run_page(runs: Sequence[RunLog]) -> str:
    """Render an HTML page that needs no other file. Several runs share the axes of their curves.

    Raises:
      TrajectoryError: a folder of pictures is damaged.
    """
    several = len(runs) > 1
    sections = {
        title: [
            chart for panel in panels for part in _split_panel(panel, several) if (chart := _draw_panel(part, runs))
        ]
        for title, panels in PANELS.items()
    }
    grids = [grid for n, log in enumerate(runs) if (grid := _make_grid(log, f"run{n}"))]
    facts = [_list_facts(log) for log in runs]
    return render(
        "run.html",
        title=("Runs " if several else "Run ") + ", ".join(log.name for log in runs),
        names=[log.name for log in runs],
        colours=COLOURS,
        facts={label: [own.get(label, "") for own in facts] for label in dict.fromkeys(k for f in facts for k in f)},
        notes=[note for log in runs for note in _list_notes(log)],
        sections={title: figures for title, figures in sections.items() if figures},
        grids=grids,
        configs=[flatten_config(log.config) for log in runs],
        several=several,
        held_out=any(log.held_out.rows for log in runs),
    )


def _split_panel(panel: Panel, several: bool) -> list[Panel]:
    """Give every metric its own chart if there are several runs, since each run then has a colour."""
    if not several or len(panel.series) == 1:
        return [panel]
    title = f"{panel.title}: {{}}".format
    return [panel._replace(title=title(label), series={name: label}) for name, label in panel.series.items()]


def _draw_panel(panel: Panel, runs: Sequence[RunLog]) -> dict[str, Any] | None:
    """Draw the panel's chart and its legend; None if no run has any of its metrics."""
    lines, levels, legend = [], [], []
    candidates = [(log, name, label) for log in runs for name, label in panel.series.items()]
    series = [(log, name, label) for log, name, label in candidates if name in log.metrics.names | log.held_out.names]
    for colour, (log, name, label) in enumerate(series):
        if len(runs) > 1:
            colour, label = runs.index(log), log.name
        last_values = []
        train_style = "exact" if panel.exact else "noisy"
        for split, style, prefix in ((log.metrics, train_style, ""), (log.held_out, "sparse", "held-out ")):
            steps, values = split.series(name)
            if len(values):
                lines.append(Line(steps, values * panel.scale, colour, style))
                last_values.append(prefix + format_number(lines[-1].last) + panel.unit)
        legend.append((colour, label, ", ".join(last_values)))
    if panel.level and lines:
        name, label = panel.level
        levels = sorted({log.held_out.series(name)[1][-1] for log in runs if name in log.held_out.names})
        legend += [(LEVEL, label, format_number(level)) for level in levels]
    return {"title": panel.title, "svg": draw_chart(lines, levels, panel.log), "legend": legend} if lines else None


def _list_facts(log: RunLog) -> dict[str, str]:
    """Return the facts at the top of the page, by label."""
    config, optimizer, total = log.config, log.config["optimizer"], int(log.config["num_steps"])
    facts = {"steps": f"{log.step:,} of {total:,} ({log.step / total:.0%})", "state": _describe_state(log, total)}
    steps, seconds = log.metrics.series("step_seconds")
    if len(steps):
        facts["training time"] = format_duration(float(np.diff(steps, prepend=0) @ seconds))
    for label, name, scale, unit in (("tokens/s", "tokens_per_second", 1, ""), ("MFU", "mfu", 100, "%")):
        values = log.metrics.series(name)[1]
        if len(values):
            facts[label] = format_number(float(np.median(values)) * scale) + unit
    facts |= _list_held_out_losses(log)
    checkpoints = ", ".join(f"{step:,}" for step in log.checkpoints) or "none yet"
    return facts | {
        "checkpoints": checkpoints + (f"; exported {log.exported:,}" if log.exported is not None else ""),
        "model": config["model"] or config["init"],
        "starts from": config["init"] or "fresh parameters",
        "data": config["data"],
        "batch": f"{config['rows']} pack{'s' * (config['rows'] > 1)} of {sum(config['budgets'].values()):,} slots",
        "learning rate": f"{optimizer['learning_rate']:g}, {optimizer['schedule']}",
        "mesh": " x ".join(map(str, config["mesh"])) + " (data, fsdp, tensor)",
    }


def _describe_state(log: RunLog, total: int) -> str:
    if log.stop_reason:
        return f"stopped: {log.stop_reason}"
    if log.last_written is None:
        return f"nothing logged yet: the first line is written at step {log.config['log_every']:,}"
    if log.step >= total:
        return "finished"
    return f"last logged {log.last_written:%Y-%m-%d %H:%M} UTC"


def _list_held_out_losses(log: RunLog) -> dict[str, str]:
    """Return the last held-out losses, each with its baseline."""
    results = {}
    for label, name, level, baseline in (
        ("held-out cross-entropy", "ce", "unigram_ce", "unigram model"),
        ("held-out MSE", "mse", "constant_mse", "best constant"),
    ):
        values, levels = log.held_out.series(name)[1], log.held_out.series(level)[1]
        if len(values):
            results[label] = format_number(values[-1])
            results[label] += f" ({baseline} {format_number(levels[-1])})" if len(levels) else ""
    return results


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units.

    >>> format_duration(7384)
    '2 h 3 min'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")) if n]
    return " ".join(parts[:2]) or "0 s"


def _list_notes(log: RunLog) -> list[str]:
    splits = (("metrics", log.metrics), ("held-out losses", log.held_out))
    truncated = [name for name, split in splits if split.truncated]
    return [f"{log.name}: the last line of the {name} is half-written and was ignored." for name in truncated]


def flatten_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a nested config as a flat dict with dotted keys; an empty dict is a value."""
    flat = traverse_util.flatten_dict(config, keep_empty_nodes=True, sep=".")
    return {key: {} if value is traverse_util.empty_node else value for key, value in flat.items()}


def _make_grid(log: RunLog, anchor: str) -> dict[str, Any] | None:
    """Show the last picture of every prompt at up to ``_MAX_COLUMNS`` steps, and the newest trajectories in full."""
    if not log.pictures:
        return None
    all_steps = sorted(log.pictures)
    columns = np.unique(np.linspace(0, len(all_steps) - 1, _MAX_COLUMNS).round().astype(int))
    steps = [all_steps[column] for column in columns]
    prompts = sorted({prompt for step in steps for prompt in log.pictures[step]})
    rows = []
    for prompt in prompts:
        sampled = {step: load_trajectory(log.pictures[step][prompt]) for step in steps if prompt in log.pictures[step]}
        newest = max(sampled)
        rows.append(
            {
                "anchor": f"{anchor}-{prompt}",
                "prompt": sampled[newest].prompt,
                "cells": {step: _make_cell(sampled[step]) if step in sampled else None for step in steps},
                "newest": newest,
                "trajectory": sampled[newest],
                "stages": _list_stages(sampled[newest]),
            }
        )
    return {"name": log.name, "steps": steps, "of": len(all_steps), "rows": rows}


def _make_cell(trajectory: Trajectory) -> dict[str, Any]:
    """Return the last image, the stop reason and the number of images."""
    count = len(trajectory.images)
    note = f"{trajectory.stop_reason}, {count} image{'s' * (count != 1)}"
    return {"note": note} | (_embed_image(trajectory.images[-1]) if count else {})


def _embed_image(image: PIL.Image.Image) -> dict[str, Any]:
    kind, data, (width, height) = make_thumbnail(encode_png(image))
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"source": source, "width": width, "height": height, "pixelated": max(width, height) < 128}


def _list_stages(trajectory: Trajectory) -> list[dict[str, Any]]:
    images = iter(trajectory.images)
    return [
        {"stage": stage.stage}
        | (_embed_image(next(images)) if isinstance(stage, ImageStage) else {"spans": split_tags(stage.text)})
        for stage in trajectory.stages
    ]
