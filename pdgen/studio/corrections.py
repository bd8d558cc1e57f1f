"""What people say of stages, as training records: conflict, alignment, and preference pairs.

A stage that is right becomes a target, followed by the person's words as its inspection. A plan that is wrong gives a
conflict record, a picture that is wrong an alignment record: what came before is context, the person's inspection with
its correction is a target, and so is what a better branch did instead. The better and the worse version are also a
preference pair: record n of the subsets "chosen" and "rejected", the same context and then one version, the targets.
Records are cuts of trajectories (``complete`` is False).

    FOLDER/corrections/000000.record      msgpack of ``Correction``; each file is written once
"""

import io
import pathlib
import shutil
import tempfile
import threading
import zipfile
from typing import Literal

import msgspec

from pdgen.data.records import Dataset, Origin, write_files, write_index
from pdgen.files import Log, new_file, shorten_fault
from pdgen.sequence.images import encode_png
from pdgen.sequence.modes import image_stage
from pdgen.sequence.trajectory import (
    Image,
    ImageStage,
    Record,
    Text,
    TextStage,
    Trajectory,
    TrajectoryError,
    check_grammar,
    format_inspection,
    segment_kind,
)
from pdgen.studio import api
from pdgen.studio.errors import StudioError

_Subset = Literal["conflict", "alignment"]
SUBSETS = ("conflict", "alignment")


class Correction(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One correction: a record to train on and, where a better branch was named, the two versions of the stage."""

    record: Record
    chosen: Record | None = None
    rejected: Record | None = None


class Corrections:
    """The corrections in the studio's folder."""

    def __init__(self, folder: pathlib.Path, log: Log) -> None:
        self._folder, self._lock = folder / "corrections", threading.Lock()
        self._kept: list[Correction] = []
        self._next = 0
        for path in sorted(self._folder.glob("*.record")):
            self._next = max(self._next, int(path.stem) + 1) if path.stem.isdigit() else self._next
            try:
                self._kept.append(msgspec.msgpack.decode(path.read_bytes(), type=Correction))
            except (OSError, ValueError) as fault:
                log(f"{path}: {shorten_fault(fault)}; it is not exported")

    def count(self) -> api.Saved:
        """Count the corrections and the preference pairs among them."""
        with self._lock:
            pairs = sum(one.chosen is not None for one in self._kept)
            return api.Saved(corrections=len(self._kept), pairs=pairs)

    def add(self, name: str, trajectory: Trajectory, said: api.Correct, better: Trajectory | None) -> api.Saved:
        """Save what a person said of a stage.

        Raises:
          StudioError: there is no such stage, or nothing can be learned from the words.
          OSError: the file cannot be written.
        """
        with self._lock:
            correction = make_correction(f"studio-{name}-{self._next:06d}", trajectory, said, better)
            self._folder.mkdir(exist_ok=True)
            with new_file(self._folder / f"{self._next:06d}.record") as partial:
                partial.write_bytes(msgspec.msgpack.encode(correction))
            self._next += 1
            self._kept.append(correction)
        return self.count()

    def export(self) -> bytes:
        """Return a zip of the data sets ``records`` and, if there are any, ``pairs``. Raises StudioError (409)."""
        with self._lock:
            kept = [*self._kept]
        if not kept:
            raise StudioError("there is no correction yet; say of a stage that it is right or wrong", 409)
        with tempfile.TemporaryDirectory() as scratch:
            folder, origin = pathlib.Path(scratch) / "corrections", Origin(seed=0, settings={"source": "studio"})
            parts = {name: [one.record for one in kept if one.record.source == name] for name in SUBSETS}
            _write(folder / "records", parts, origin)
            pairs = [(one.chosen, one.rejected) for one in kept if one.chosen and one.rejected]
            if pairs:
                chosen, rejected = zip(*pairs)
                _write(folder / "pairs", {"chosen": list(chosen), "rejected": list(rejected)}, origin)
            return _zip_folder(folder)


def _write(folder: pathlib.Path, parts: dict[str, list[Record]], origin: Origin) -> None:
    """Write a data set of subsets."""
    folder.mkdir(parents=True)
    files = [file for subset, records in parts.items() for file in write_files(folder, records, subset=subset)]
    write_index(folder, Dataset(files=files, origin=origin))


def _zip_folder(folder: pathlib.Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with archive.open(path.relative_to(folder).as_posix(), "w") as target, open(path, "rb") as source:
                    shutil.copyfileobj(source, target)
    return buffer.getvalue()


def make_correction(name: str, trajectory: Trajectory, said: api.Correct, better: Trajectory | None) -> Correction:
    """Make the records of what was said. Raises StudioError as ``Corrections.add``."""
    picture, subset = _find_judged(trajectory, said.stage)
    if said.right and better is not None:
        raise StudioError("a stage that is right needs no better branch; leave better out")
    if not said.right and not said.correction.strip():
        raise StudioError("say in correction what to change; without it nothing can be learned")
    try:
        words = format_inspection(said.reason.strip(), None if said.right else said.correction.strip())
        segments = [*_take(trajectory, 0, picture + 1, said), Text("inspect", words, True)]
        if better is not None:
            segments += _take_better(trajectory, picture, better, subset)
        record = _make_record(name, trajectory, subset, segments)
        if better is None:
            return Correction(record)
        first = picture - (subset == "conflict")
        pair = [
            _make_record(f"{name}-{word}", one, "preference", _take_version(one, first, picture + 1))
            for word, one in (("chosen", better), ("rejected", trajectory))
        ]
    except TrajectoryError as fault:
        raise StudioError(f"stage {said.stage}: no record can be made: {fault}") from None
    return Correction(record, *pair)


def _find_judged(trajectory: Trajectory, stage: int) -> tuple[int, _Subset]:
    """Return the index of the picture that the words are about, and the subset: a plan is judged by its picture."""
    if not 0 <= stage < len(trajectory.stages) or trajectory.mode != "process":
        raise StudioError(f"stage {stage}: choose a plan, picture or inspection of a trajectory of mode process")
    one = trajectory.stages[stage]
    picture = stage + {"plan": 1, "inspect": -1}.get(one.stage, 0)
    subset: _Subset = "conflict" if one.stage == "plan" else "alignment"
    if one.stage == "given" or not 0 <= picture < len(trajectory.stages):
        raise StudioError(f"stage {stage}: run the trajectory until the plan is drawn, then judge it")
    if not isinstance(trajectory.stages[picture], ImageStage):
        raise StudioError(f"stage {stage}: has no picture beside it; judge the plan or picture itself")
    return picture, subset


def _take(trajectory: Trajectory, first: int, last: int, said: api.Correct | None = None) -> list[Text | Image]:
    """Return stages [first, last) as segments, the prompt before the first that is not given.

    The stage that is said to be right is a target; all others are context.
    """
    segments: list[Text | Image] = []
    pictures = iter(trajectory.images)
    given = sum(isinstance(stage, ImageStage) and stage.stage == "given" for stage in trajectory.stages)
    for number, stage in enumerate(trajectory.stages[:last]):
        picture = next(pictures) if isinstance(stage, ImageStage) else None
        if number < first:
            continue
        if number == given and first == 0:
            segments.append(Text("prompt", trajectory.prompt, False))
        target = said is not None and said.right and number == said.stage and stage.stage != "given"
        if isinstance(stage, TextStage):
            segments.append(Text(stage.stage, stage.text, target and stage.stage != "inspect"))
        else:
            assert picture is not None
            segments.append(Image(stage.stage, encode_png(picture), target))
    return segments


def _take_better(trajectory: Trajectory, picture: int, better: Trajectory, subset: _Subset) -> list[Text | Image]:
    """Return what a better branch has in place of the plan and picture, as corrections."""
    first = picture - (subset == "conflict")
    same = [(one.prompt, [_key(stage) for stage in one.stages[:first]]) for one in (trajectory, better)]
    if same[0] != same[1] or picture >= len(better.stages):
        raise StudioError("better: choose a branch that differs at this stage for the first time and has its picture")
    segments: list[Text | Image] = []
    for segment in _take(better, first, picture + 1) if first else _take(better, 0, picture + 1)[1:]:
        if isinstance(segment, Image):
            segment = msgspec.structs.replace(segment, stage="refine")
        segments.append(msgspec.structs.replace(segment, target=True))
    return segments


def _take_version(trajectory: Trajectory, first: int, last: int) -> list[Text | Image]:
    """Return stages [0, last) as segments, those from ``first`` on as targets."""
    segments = _take(trajectory, 0, last)
    start = len(segments) - (last - first)
    return segments[:start] + [msgspec.structs.replace(segment, target=True) for segment in segments[start:]]


def _key(stage: TextStage | ImageStage) -> tuple[str, str]:
    return stage.stage, stage.text if isinstance(stage, TextStage) else stage.file


def _make_record(name: str, trajectory: Trajectory, source: str, segments: list[Text | Image]) -> Record:
    """Make and check a record. Its image stages are those that its grammar asks for: a cut may begin within a turn."""
    kinds: list[str] = []
    for number, segment in enumerate(segments):
        if isinstance(segment, Image) and segment.stage != "given":
            segments[number] = msgspec.structs.replace(segment, stage=image_stage(kinds))
        kinds.append(segment_kind(segment))
    record = Record(id=name, source=source, complete=False, segments=segments, mode=trajectory.mode)
    check_grammar(record)
    return record
