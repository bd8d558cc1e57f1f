"""Run the abilities benchmark: sample every draw from a checkpoint and judge it. A killed run resumes."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdgen.checkpoints.load import compute_digest
from pdgen.evaluate import folder
from pdgen.evaluate.abilities.prompts import GROUPS, AbilityDraw
from pdgen.evaluate.abilities.scores import IMAGES, AbilityOutcome, judge_case, locate_image
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.generator import replace_settings
from pdgen.files import new_file
from pdgen.report.strip import join_images
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings, make_base_settings
from pdgen.sequence.images import decode_image
from pdgen.sequence.modes import Mode
from pdgen.sequence.trajectory import TextStage, Trajectory

RESULTS = "results.jsonl"
# A user's settings override these. The longest prompt has 77 of shapes world's tokens, the longest answer 57.
DEFAULTS = {"image.num_timesteps": 25, "text.max_tokens": 96, "max_prompt_tokens": 128}
_PART = 512  # trajectories in memory at once
_GAP = 2  # pixels between the two pictures of an edit

ModeSettings = Mapping[Mode, SampleSettings]


def read_ability_settings(values: Mapping[str, Any]) -> ModeSettings:
    """Return the sampling settings of each mode: the base model's, updated with ``DEFAULTS`` and ``values``.

    Raises:
      EvaluationError: A setting is unknown, has an invalid value, or is the mode.
    """
    if "mode" in values:
        raise EvaluationError("--setting=mode: every row of abilities has its own mode; leave it out")
    return {mode: replace_settings(make_base_settings(mode), {**DEFAULTS, **values}) for mode, _ in GROUPS.values()}


def collect_facts(checkpoint: pathlib.Path, settings: ModeSettings) -> dict[str, Any]:
    """Return all that decides an outcome besides prompt and seed: the checkpoint's digest and each mode's settings."""
    flat = {f"{mode}.{name}": value for mode, one in settings.items() for name, value in one.flatten().items()}
    facts = {"manifest": compute_digest(checkpoint), **flat}
    return {name: value for name, value in facts.items() if name.rpartition(".")[2] != "batch_size"}


def run_draws(
    draws: Sequence[AbilityDraw],
    checkpoint: pathlib.Path,
    settings: ModeSettings,
    output: pathlib.Path,
    progress: Callable[[int], None] = lambda count: None,
) -> list[AbilityOutcome]:
    """Sample and judge all draws, in order. Draws in ``results.jsonl`` are not sampled again.

    Args:
      draws: All draws of the output folder.
      checkpoint: A pdgen checkpoint. It is loaded only if a draw is missing.
      settings: The sampling settings of each mode.
      output: Gets ``results.jsonl``, one line as soon as a draw is judged, and in ``images`` a picture of each draw:
        the drawn one, for an edit beside the given one, for a question the given one.
      progress: Called with the number of draws done since the last call, first with those that were done before.

    Raises:
      EvaluationError: The folder was begun with another checkpoint, other settings or prompts.
      SampleError: See ``Sampler``.
    """
    facts = {"benchmark": "abilities", **collect_facts(checkpoint, settings)}
    folder.begin_generation(output / IMAGES, facts, [draw.job for draw in draws])
    log = output / RESULTS
    known = {one.name: one for one in folder.read_log(log, AbilityOutcome)}
    waiting = [draw for draw in draws if draw.job.name not in known]
    progress(len(draws) - len(waiting))
    if not waiting:
        return [known[draw.job.name] for draw in draws]
    sampler = Sampler.from_checkpoint(checkpoint)
    with open(log, "ab") as file:

        def keep(draw: AbilityDraw, trajectory: Trajectory) -> None:
            known[draw.job.name] = found = _judge_and_save(draw, trajectory, output)
            folder.append_line(file, found)
            file.flush()
            progress(1)

        for mode, one in settings.items():
            own = [draw for draw in waiting if draw.case.mode == mode]
            for start in range(0, len(own), _PART):
                part = own[start : start + _PART]
                sampler(
                    [draw.job.prompt for draw in part],
                    [draw.job.seed for draw in part],
                    one,
                    given=[[decode_image(draw.case.given)] if draw.case.given else [] for draw in part],
                    done=lambda number, drawn, part=part: keep(part[number], drawn),
                )
    return [known[draw.job.name] for draw in draws]


def _judge_and_save(draw: AbilityDraw, trajectory: Trajectory, output: pathlib.Path) -> AbilityOutcome:
    case = draw.case
    before = decode_image(case.given) if case.given else None
    now = trajectory.images[-1] if case.group != "reading" else None
    texts = [stage.text for stage in trajectory.stages if isinstance(stage, TextStage)]
    answer = texts[-1] if texts else ""
    pixels = [None if picture is None else np.asarray(picture) for picture in (before, now)]
    scores, fault = judge_case(case, *pixels, answer)
    path = locate_image(output, draw.job.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        join_images([picture for picture in (before, now) if picture is not None], _GAP).save(partial, format="PNG")
    return AbilityOutcome(
        draw.job.name, case.group, case.row, case.prompt, draw.job.seed, scores, fault, answer, case.answer
    )
