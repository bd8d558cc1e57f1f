"""What a training run on shapes world has learned: losses on held-out records, and pictures that a detector reads.

    python -m benchmarks.learning --workdir=out/nano --output=out/nano_learning

Losses are those that the run itself has logged (``config.held_out``), beside the best constant predictor of the flow
and a unigram model of the texts. Then 100 prompts that ask for one thing are sampled to the end, once with pairs of
color and noun that no training scene shows, once with other pairs. A picture is the last one of its trajectory; its
best fitting shape, as ``pdgen.scenes.detect`` sees it, has the color and noun asked for or has not. The output folder
gets ``learning.json``, ``curves.png``, ``strip.png`` (the first of each group) and ``sheet.png`` (all).
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from absl import app, flags, logging
from matplotlib.figure import Figure

from pdgen.files import new_folder
from pdgen.flow.denoise import ImageSettings
from pdgen.interleave.trajectory import TextStage, Trajectory
from pdgen.report.strip import strip
from pdgen.sample.engine import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.sample.text import TextSettings
from pdgen.scenes.detect import detect
from pdgen.scenes.language import prompt as write_prompt
from pdgen.scenes.sample import prompt_graph, sample_graph
from pdgen.train.run_log import RunLog, read_run_log

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "a training run", required=True)
flags.DEFINE_string("output", None, "folder to write", required=True)
flags.DEFINE_integer("prompts", 100, "prompts of each group", lower_bound=1)
flags.DEFINE_float("text_scale", 2.5, "text guidance; 1 = none", lower_bound=1.0)
flags.DEFINE_integer("num_timesteps", 50, "points of an image's schedule", lower_bound=2)

GROUPS = {"unseen pairs": "test", "seen pairs": "train"}  # the split that ``sample_graph`` draws from
SHOWN = 8  # pictures of each group in the strip
SHEET_COLUMNS, SHEET_SCALE = 20, 2


@dataclasses.dataclass(frozen=True)
class Case:
    """One prompt, and the color and noun of the one thing that it asks for."""

    prompt: str
    color: str
    noun: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a prompt.

    Attributes:
      finished: the model ended the trajectory by itself.
      planned: the first plan names color and noun.
      images: drawn until then.
      things: shapes that the detector finds in the last image.
      color, noun: the best fitting one is as asked.
    """

    finished: bool
    planned: bool
    images: int
    things: int
    color: bool
    noun: bool


def make_cases(split: str, count: int) -> list[Case]:
    """``count`` different prompts for one thing; case n is the same whatever the count."""
    cases: list[Case] = []
    number = 0
    while len(cases) < count:
        rng = np.random.default_rng((list(GROUPS.values()).index(split), number))
        number += 1
        graph = prompt_graph(rng, sample_graph(rng, "composition", split, {1: 1.0}), "composition")
        entity = graph.entities[0]
        text = write_prompt(rng, graph, "short")
        if entity.count == 1 and text not in {case.prompt for case in cases}:
            cases.append(Case(text, entity.attributes["color"], entity.noun))
    return cases


def judge(case: Case, trajectory: Trajectory) -> Result:
    """The result of a sampled trajectory."""
    plan = next((s.text for s in trajectory.stages if isinstance(s, TextStage) and s.stage == "plan"), "")
    found = detect(np.asarray(trajectory.images[-1])) if trajectory.images else []
    best = found[0] if found else None
    return Result(
        finished=trajectory.stop_reason == "finished",
        planned=case.color in plan and case.noun in plan,
        images=len(trajectory.images),
        things=len(found),
        color=best is not None and best.color == case.color,
        noun=best is not None and best.shape == case.noun,
    )


def summary(results: Sequence[Result]) -> dict[str, float]:
    """Counts over one group, and the mean number of images."""
    return {
        "prompts": len(results),
        "finished": sum(r.finished for r in results),
        "planned": sum(r.planned for r in results),
        "images": float(np.mean([r.images for r in results])),
        "one thing": sum(r.things == 1 for r in results),
        "color": sum(r.color for r in results),
        "noun": sum(r.noun for r in results),
        "both": sum(r.color and r.noun for r in results),
    }


def losses(run: RunLog) -> dict[str, float]:
    """The last losses on held-out records. Raises ValueError where the run has logged none."""
    if not run.held_out.rows:
        raise ValueError(f"{run.name}: has logged no held-out losses; train with --config.held_out=200")
    return dict(run.held_out.rows[-1])


def curves(run: RunLog) -> Figure:
    """Held-out losses over the steps beside the levels that are to be beaten."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = {
        "cross-entropy": (("ce", "ce_plan", "ce_inspect"), "unigram_ce", "unigram model"),
        "MSE": (("mse", "mse_1", "mse_2", "mse_3"), "constant_mse", "best constant"),
    }
    for axes, (title, (names, level, label)) in zip(figure.subplots(1, 2), panels.items()):
        for name in names:
            axes.plot(*run.held_out.series(name), marker=".", label=name)
        axes.axhline(run.held_out.rows[-1][level], color="grey", linestyle="--", label=label)
        axes.set(title=f"held-out {title}", xlabel="step", ylim=(0, None))
        axes.legend(fontsize=8)
    return figure


def sheet(pictures: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """All pictures, of one size, in rows, their pixels enlarged."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // SHEET_COLUMNS)
    whole = PIL.Image.new("RGB", (SHEET_COLUMNS * width, rows * height), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % SHEET_COLUMNS * width, number // SHEET_COLUMNS * height))
    return whole.resize((whole.width * SHEET_SCALE, whole.height * SHEET_SCALE), PIL.Image.Resampling.NEAREST)


def draw(sampler: Sampler, settings: SampleSettings, count: int) -> dict[str, list[tuple[Case, Trajectory]]]:
    """The trajectories of ``count`` cases of each group."""
    drawn = {}
    for group, split in GROUPS.items():
        cases = make_cases(split, count)
        trajectories = sampler([case.prompt for case in cases], range(count), settings)
        drawn[group] = list(zip(cases, trajectories, strict=True))
    return drawn


def write(folder: pathlib.Path, report: Mapping[str, Any], drawn: Mapping[str, list[tuple[Case, Trajectory]]]) -> None:
    """Puts numbers and pictures into ``folder``."""
    (folder / "learning.json").write_text(json.dumps(report, indent=1) + "\n")
    with_image = {group: [(c, t.images[-1]) for c, t in pairs if t.images] for group, pairs in drawn.items()}
    shown = [pair for pairs in with_image.values() for pair in pairs[:SHOWN]]
    if shown:
        strip([image for _, image in shown], [case.prompt for case, _ in shown], height=96).save(folder / "strip.png")
        sheet([image for pairs in with_image.values() for _, image in pairs]).save(folder / "sheet.png")


def measure(workdir: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Samples, fills ``folder`` and returns what stands in ``learning.json``."""
    run = read_run_log(workdir)
    held_out = losses(run)
    curves(run).savefig(folder / "curves.png", dpi=100)
    settings = SampleSettings(
        text=TextSettings(max_tokens=96, temperature=0.0),
        image=ImageSettings(num_timesteps=FLAGS.num_timesteps, text_scale=FLAGS.text_scale),
        max_images=4,
        max_prompt_tokens=64,
        together=32,
    )
    drawn = draw(Sampler.from_checkpoint(workdir), settings, FLAGS.prompts)
    groups = {group: summary([judge(*pair) for pair in pairs]) for group, pairs in drawn.items()}
    report = {"held_out": held_out, "settings": settings.flat(), **groups}
    write(folder, report, drawn)
    return report


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    workdir, output = pathlib.Path(FLAGS.workdir), pathlib.Path(FLAGS.output)
    try:
        with new_folder(output, 1 << 24, kind="report", replaceable=lambda _: False) as folder:
            report = measure(workdir, folder)
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        print(f"learning: {fault}", file=sys.stderr)
        sys.exit(2)
    print("step {step:.0f}, held-out cross-entropy {ce:.3f} (unigram model {unigram_ce:.3f}), MSE {mse:.3f} (constant "
          "{constant_mse:.3f})".format_map(report["held_out"]))  # fmt: skip
    for group in GROUPS:
        print(f"{group}: " + ", ".join(f"{name} {value:g}" for name, value in report[group].items()))
    print(f"wrote {output}")


if __name__ == "__main__":
    app.run(main)
