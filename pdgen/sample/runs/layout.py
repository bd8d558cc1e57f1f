"""Comparing what is to be sampled with the layout that the checkpoint was trained with."""

from collections.abc import Sequence

from pdgen.checkpoints.runs.layout import TrainingLayout
from pdgen.config import ModelConfig
from pdgen.files import Log, log_stderr
from pdgen.sample.model import Model
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.images import image_sizes, resize_size
from pdgen.sequence.trajectory import Trajectory


def report_layout(model: Model, settings: SampleSettings, starts: Sequence[Trajectory], log: Log = log_stderr) -> None:
    """Log the layout that the checkpoint was trained with, and in the same line where sampling differs from it.

    Nothing is logged of a model without a recorded layout. Other arguments are those of ``find_mismatches``.
    """
    if model.layout is not None:
        questions = find_mismatches(model.layout, settings, model.config, starts)
        log(f"{model.name}: {describe_layout(model.layout)}" + "".join(f"; {question}" for question in questions))


def describe_layout(layout: TrainingLayout) -> str:
    """Describe the layout in a clause."""
    sides = f"images of {_name_sides(layout)} pixels a side" if layout.longest_side else "no drawn image"
    given = f"given images as {' and '.join(layout.given)} tokens" if layout.given else "no given image"
    return f"trained with {sides}, {given}, the posterior's {layout.latents}"


def find_mismatches(
    layout: TrainingLayout, settings: SampleSettings, config: ModelConfig, starts: Sequence[Trajectory]
) -> list[str]:
    """Return a question for each way in which sampling differs from training; [] if it does not.

    ``starts`` are the trajectories to begin, with their given images.
    """
    questions = []
    needed = ("vit",) if settings.mode == "understand" else ("vae", "vit")
    given = [image for start in starts for image in start.images[:1]]
    if given and not layout.given:
        questions.append("do you mean to give an image, though it was trained with none?")
    elif given and (missing := [copy for copy in needed if copy not in layout.given]):
        questions.append(f"is a given image to be read as {missing[0]} tokens, though it saw none of one?")
    if settings.mode == "process" and layout.drawn and (missing := [c for c in needed if c not in layout.drawn]):
        questions.append(f"are drawn images to be read as {missing[0]} tokens, though it saw none of one?")
    if layout.latents != "sample" and (given or settings.mode == "process"):
        questions.append("are images to be read as a sample of the posterior, though it was trained with its mean?")
    if settings.mode != "understand" and layout.longest_side:
        sizes = {_find_size(settings, config, start) for start in starts}
        outside = [s for s in sorted(sizes) if min(s) < layout.shortest_side or max(s) > layout.longest_side]
        if outside:
            width, height = outside[0]
            questions.append(
                f"do you mean to draw {width} x {height} pixels (--width, --height), though it learned "
                f"{_name_sides(layout)} a side?"
            )
    return questions


def _name_sides(layout: TrainingLayout) -> str:
    short, long = layout.shortest_side, layout.longest_side
    return f"{short}" if short == long else f"{short} to {long}"


def _find_size(settings: SampleSettings, config: ModelConfig, start: Trajectory) -> tuple[int, int]:
    """Return the width and height of the next drawn image, in pixels."""
    if settings.height:
        return settings.width, settings.height
    if start.images:
        last = start.images[-1]
        return resize_size(last.width, last.height, image_sizes(config).vae)
    side = config.latent_stride * config.max_latent_size
    return side, side
