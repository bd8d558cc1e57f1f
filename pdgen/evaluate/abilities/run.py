"""Samples the benchmark of abilities from a checkpoint, judges every draw at once, and goes on where it was killed."""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import PIL.Image

from pdgen.checkpoints.load import digest_of
from pdgen.evaluate import folder
from pdgen.evaluate.abilities.prompts import GROUPS, Draw
from pdgen.evaluate.abilities.scores import IMAGES, Outcome, image_path, judge
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.generator import changed
from pdgen.files import new_file
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings, make_base_settings
from pdgen.sequence.modes import Mode
from pdgen.sequence.trajectory import TextStage, Trajectory

RESULTS = "results.jsonl"
# A user's own settings come after these. The longest prompt has 77 of shapes world's tokens, the longest answer 57.
DEFAULTS = {"image.num_timesteps": 25, "text.max_tokens": 80, "max_prompt_tokens": 128}
_PART = 512  # trajectories that are held in memory
_GAP = 2  # pixels between the two pictures of an edit

Settings = Mapping[Mode, SampleSettings]


def ability_settings(values: Mapping[str, Any]) -> Settings:
    """How each mode is sampled: as the base model is by default, with ``DEFAULTS`` and ``values``.

    Raises:
      EvaluationError: a setting is unknown or its value impossible, or it is the mode.
    """
    if "mode" in values:
        raise EvaluationError("--setting=mode: every row of abilities has its own; leave it out")
    return {mode: changed(make_base_settings(mode), {**DEFAULTS, **values}) for mode, _ in GROUPS.values()}


def made_by(checkpoint: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """All that decides an outcome beside prompt and seed: the checkpoint's digest and the settings of each mode."""
    told = {f"{mode}.{name}": value for mode, one in settings.items() for name, value in one.flatten().items()}
    facts = {"manifest": digest_of(checkpoint), **told}
    return {name: value for name, value in facts.items() if name.rpartition(".")[2] != "batch_size"}


def run_draws(
    draws: Sequence[Draw],
    checkpoint: pathlib.Path,
    settings: Settings,
    output: pathlib.Path,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Outcome]:
    """Samples and judges all draws, in order; those that ``results.jsonl`` holds are not sampled again.

    Args:
      checkpoint: a pdgen checkpoint; it is loaded where something is to be sampled.
      output: gets ``results.jsonl``, a line as soon as a draw is judged, and below ``images`` a picture of each: what
        was drawn, of an edit the given picture beside it, of a question the given picture.
      progress: told how many draws are done, first those that were.

    Raises:
      EvaluationError: the folder was begun with another checkpoint, other settings or prompts.
      SampleError: as ``Sampler``.
    """
    facts = {"benchmark": "abilities", **made_by(checkpoint, settings)}
    folder.begin(output / IMAGES, facts, [draw.job for draw in draws])
    log = output / RESULTS
    known = _known(log)
    waiting = [draw for draw in draws if draw.job.name not in known]
    progress(len(draws) - len(waiting))
    if not waiting:
        return [known[draw.job.name] for draw in draws]
    sampler = Sampler.from_checkpoint(checkpoint)
    with open(log, "ab") as file:

        def keep(draw: Draw, trajectory: Trajectory) -> None:
            known[draw.job.name] = found = _judged(draw, trajectory, output)
            # The newline comes first, so that a line that a kill has cut short is not continued.
            file.write(b"\n" + msgspec.json.encode(found))
            file.flush()
            progress(1)

        for mode, one in settings.items():
            own = [draw for draw in waiting if draw.case.mode == mode]
            for start in range(0, len(own), _PART):
                _sample(sampler, one, own[start : start + _PART], keep)
    return [known[draw.job.name] for draw in draws]


def _known(log: pathlib.Path) -> dict[str, Outcome]:
    known = {}
    for line in log.read_bytes().splitlines() if log.exists() else ():
        try:
            outcome = msgspec.json.decode(line, type=Outcome)
        except msgspec.DecodeError:
            continue  # cut short by a kill: sampled again
        known[outcome.name] = outcome
    return known


def _sample(
    sampler: Sampler, settings: SampleSettings, draws: Sequence[Draw], keep: Callable[[Draw, Trajectory], None]
) -> None:
    given = [[_opened(draw.case.given)] if draw.case.given else [] for draw in draws]
    prompts, seeds = [draw.job.prompt for draw in draws], [draw.job.seed for draw in draws]
    sampler(prompts, seeds, settings, given=given, done=lambda number, drawn: keep(draws[number], drawn))


def _opened(png: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(png)).convert("RGB")


def _judged(draw: Draw, trajectory: Trajectory, output: pathlib.Path) -> Outcome:
    case = draw.case
    before = _opened(case.given) if case.given else None
    now = trajectory.images[-1] if case.group != "reading" else None
    answers = [stage.text for stage in trajectory.stages if isinstance(stage, TextStage) and stage.stage == "answer"]
    answer = answers[-1] if answers else ""
    pixels = [None if picture is None else np.asarray(picture) for picture in (before, now)]
    scores, fault = judge(case, *pixels, answer)
    path = image_path(output, draw.job.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        _beside([picture for picture in (before, now) if picture is not None]).save(partial, format="PNG")
    return Outcome(draw.job.name, case.group, case.row, case.prompt, draw.job.seed, scores, fault, answer, case.answer)


def _beside(pictures: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    if len(pictures) == 1:
        return pictures[0]
    width = sum(one.width for one in pictures) + _GAP * (len(pictures) - 1)
    whole = PIL.Image.new("RGB", (width, max(one.height for one in pictures)), "white")
    left = 0
    for one in pictures:
        whole.paste(one, (left, 0))
        left += one.width + _GAP
    return whole
