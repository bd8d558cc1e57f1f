r"""Importer of preferences: trajectories that launch/sample.py or launch/evaluate.py wrote, as pairs of records.

The source is a folder with ``trajectory.json`` files at any depth. Trajectories of one prompt, mode and given images
form a group, from which pairs are made (``pdgen.sequence.pairs``):

- A branch whose first own stage comes from outside, which a person corrected, is better than the trajectory it left.
- Of the others, the best is paired with the worst, the second best with the second worst, as long as scores differ.

The score is the share of the prompt's requirements that the last picture meets, by shapes world's exact verifier; a
trajectory without a picture has 0. Another judge's scores may be in the source's file ``scores.jsonl``, one line for
each trajectory with its folder:

    {"trajectory": "00000/samples/00001", "score": 0.5}

A record's ``scene`` is {"score": ...}, and {"corrected": true} for a person's correction.
"""

import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pdgen.json_text import decode_json
from pdgen.progress_bar import ProgressBar
from pdgen.sequence.images import encode_png
from pdgen.sequence.pairs import make_pair
from pdgen.sequence.trajectory import (
    Image,
    ImageStage,
    Record,
    Stage,
    Text,
    Trajectory,
    TrajectoryError,
    check_grammar,
)
from pdgen.sequence.trajectory_folder import load_trajectory
from pdgen.synthesis.importers.outcome import ImporterError, Outcome, SkippedSample
from pdgen.teachers.protocols import Declined
from pdgen.teachers.verifier import ExactVerifier

PREFERENCES = "preferences"
SCORES = "scores.jsonl"


class ScoreLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A line of ``scores.jsonl``: a trajectory's folder, relative to the source, and its score; higher is better."""

    trajectory: str
    score: float


class _Judged(NamedTuple):
    """A trajectory that was read once: its folder, score, fingerprint and, of a correction, the parent's."""

    folder: pathlib.Path
    score: float
    fingerprint: str
    corrects: str | None


def read_preferences(path: pathlib.Path) -> Iterator[Outcome]:
    """Read a folder of trajectories as pairs of records, the better one first.

    Skipped are trajectories that the exact verifier cannot judge, groups without a difference, and pairs with nothing
    to learn.

    Raises:
      ImporterError: the folder holds no trajectory or one that cannot be read, or its scores are malformed.
    """
    for group in _read_groups(path, _read_scores(path)):
        if isinstance(group, SkippedSample):
            yield group
            continue
        pairs = _choose_pairs(group)
        if not pairs:
            yield SkippedSample(str(group[0].folder), "no difference", f"{len(group)} trajectories of one score")
        for better, worse in pairs:
            try:
                pair_id = f"{PREFERENCES}/{better.folder.relative_to(path)}+{worse.folder.relative_to(path)}"
                records = make_pair(pair_id, _make_record(better), _make_record(worse))
                for record in records:
                    check_grammar(record)
            except TrajectoryError as fault:
                yield SkippedSample(str(better.folder), "nothing to learn", str(fault))
                continue
            yield from records


def _read_scores(path: pathlib.Path) -> dict[pathlib.Path, float] | None:
    """Read the scores of another judge; None if there is no such file."""
    file = path / SCORES
    if not file.is_file():
        return None
    scores = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            read = decode_json(line, ScoreLine)
        except msgspec.DecodeError as fault:
            raise ImporterError(f"{file}: line {number}: {fault}") from None
        if not np.isfinite(read.score):
            raise ImporterError(f"{file}: line {number}: the score is {read.score}, expected a finite number")
        scores[path / read.trajectory] = read.score
    return scores


def _read_groups(
    path: pathlib.Path, scores: Mapping[pathlib.Path, float] | None
) -> Iterator[list[_Judged] | SkippedSample]:
    """Yield what cannot be judged, then the groups of trajectories that can be compared, in order of their folders."""
    folders = sorted(file.parent for file in path.rglob("trajectory.json"))
    if not folders:
        raise ImporterError(f"{path}: holds no trajectory.json; expected what launch/sample.py or evaluate.py wrote")
    groups: dict[tuple, list[_Judged]] = {}
    verifier = ExactVerifier()
    for folder in ProgressBar(folders, desc="judging", unit=" trajectories", leave=False):
        trajectory = _load(folder)
        if scores is not None and folder not in scores:
            raise ImporterError(f"{path / SCORES}: has no score for {folder.relative_to(path)}; add it")
        try:
            score = scores[folder] if scores is not None else _judge(verifier, trajectory)
        except (Declined, ValueError) as fault:
            yield SkippedSample(str(folder), "not judged", f"{fault}; write its score into {SCORES}")
            continue
        judged = _Judged(folder, score, trajectory.fingerprint, _find_corrected_parent(trajectory))
        groups.setdefault(_describe_task(trajectory), []).append(judged)
    yield from groups.values()


def _load(folder: pathlib.Path) -> Trajectory:
    try:
        return load_trajectory(folder)
    except TrajectoryError as fault:
        raise ImporterError(str(fault)) from None


def _judge(verifier: ExactVerifier, trajectory: Trajectory) -> float:
    drawn = [stage for stage in trajectory.stages if isinstance(stage, ImageStage) and stage.stage != "given"]
    return verifier.score(trajectory.prompt, np.asarray(trajectory.images[-1])) if drawn else 0.0


def _find_corrected_parent(trajectory: Trajectory) -> str | None:
    """Return the fingerprint of the trajectory that a person corrected in this one; None if nobody did."""
    parent = trajectory.parent
    if parent is None or parent.stage >= len(trajectory.stages):
        return None
    return parent.fingerprint if trajectory.stages[parent.stage].origin == "outside" else None


def _describe_task(trajectory: Trajectory) -> tuple:
    given = [s.stage == "given" for s in trajectory.stages if isinstance(s, ImageStage)]
    pictures = [image.tobytes() for image, own in zip(trajectory.images, given) if own]
    return trajectory.prompt, trajectory.mode, *(hashlib.sha256(picture).digest() for picture in pictures)


def _choose_pairs(group: Sequence[_Judged]) -> list[tuple[_Judged, _Judged]]:
    """Return the pairs (better, worse) of a group; see the module's docstring."""
    known = {one.fingerprint: one for one in group}
    pairs = [(one, known[one.corrects]) for one in group if one.corrects in known]
    ranked = sorted((one for one in group if one.corrects not in known), key=lambda one: -one.score)
    half = len(ranked) // 2
    return pairs + [(a, b) for a, b in zip(ranked[:half], ranked[::-1]) if a.score > b.score]


def _make_record(judged: _Judged) -> Record:
    """Make a record of a trajectory. ``make_pair`` sets its id and targets."""
    trajectory = _load(judged.folder)
    segments, images = [], iter(trajectory.images)
    for stage in trajectory.stages:
        segments.append(_make_segment(stage, images))
    given = sum(segment.stage == "given" for segment in segments)
    segments.insert(given, Text("prompt", trajectory.prompt, False))
    scene: dict[str, Any] = {"score": judged.score} | ({"corrected": True} if judged.corrects else {})
    return Record(
        id="",
        source=PREFERENCES,
        complete=trajectory.stop_reason == "finished",
        segments=segments,
        scene=scene,
        mode=trajectory.mode,
    )


def _make_segment(stage: Stage, images: Iterator) -> Text | Image:
    if isinstance(stage, ImageStage):
        return Image(stage.stage, encode_png(next(images)), False)
    return Text(stage.stage, stage.text, False)
