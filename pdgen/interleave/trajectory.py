"""Trajectories: the training record, the sampled folder, and the sequence grammar that both obey.

    sequence := IMAGE(given)* TEXT(prompt) TEXT(plan) IMAGE ...    then, by what stands last:
      after a plan                       IMAGE
      after an image                     TEXT(inspect), TEXT(plan) or END
      after an inspection with <refine>  TEXT(plan) or IMAGE
      after an inspection without        TEXT(plan) or END

A plan reads ``<ins>instruction</ins> <des>description</des>``, an inspection that found a fault ends with
``<refine>correction</refine>``. The closing tags ``<\\ins>`` occur in the wild: read, never written.
"""

import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import PIL.Image

from pdgen.files import new_folder

VERSION = 1
END = "end"
# What may follow each kind of segment; END where a complete sequence may stop.
FOLLOWERS: dict[str, tuple[str, ...]] = {
    "given": ("given", "prompt"),
    "prompt": ("plan",),
    "plan": ("image",),
    "image": ("inspect", "inspect+refine", "plan", END),
    "inspect": ("plan", END),
    "inspect+refine": ("plan", "image"),
}
TAG = re.compile(r"<[/\\]?(?:ins|des|refine)>")
_PLAN = re.compile(r"<ins>(.*?)<[/\\]ins>\s*<des>(.*?)<[/\\]des>\s*", re.DOTALL)
_REFINE = re.compile(r"(.*?)<refine>(.*?)<[/\\]refine>\s*", re.DOTALL)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

StopReason = Literal["finished", "step limit", "token limit"]


class TrajectoryError(ValueError):
    """A text, record or trajectory folder breaks the format; one line says where and how."""


class Text(msgspec.Struct, tag="text", forbid_unknown_fields=True, frozen=True):
    """One text segment of a record. ``target``: the text bears cross-entropy."""

    stage: Literal["prompt", "plan", "inspect"]
    text: str
    target: bool

    def __post_init__(self) -> None:
        if self.stage == "prompt" and self.target:
            raise ValueError("a prompt is given, it cannot be a target")


class Image(msgspec.Struct, tag="image", forbid_unknown_fields=True, frozen=True):
    """One image segment of a record. ``target``: the image bears the flow loss.

    ``latent_mean`` and ``latent_logvar`` are the moments of the autoencoder's posterior before scale and
    shift, float16 in C order of ``latent_shape`` (h, w, z); all three are there or none.
    """

    stage: Literal["given", "sketch", "refine"]
    png: bytes
    target: bool
    latent_mean: bytes | None = None
    latent_logvar: bytes | None = None
    latent_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.stage == "given" and self.target:
            raise ValueError("a given image cannot be a target")
        moments = (self.latent_mean, self.latent_logvar)
        if self.latent_shape is None:
            if moments != (None, None):
                raise ValueError("latent_mean and latent_logvar need latent_shape")
            return
        h, w, z = self.latent_shape
        if any(m is None or len(m) != 2 * h * w * z for m in moments):
            raise ValueError(f"latent_mean and latent_logvar must hold {h} x {w} x {z} float16 values each")


class Record(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One training trajectory.

    ``complete`` is False for a cut of a trajectory: its last switch then bears no target, so nothing
    teaches the model to stop early. ``scene`` is the scene graph it was built from, if any.
    """

    id: str
    source: str
    complete: bool
    segments: list[Text | Image]
    scene: dict[str, Any] | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}; build the data again")


class TextStage(msgspec.Struct, tag_field="kind", tag="text", forbid_unknown_fields=True, frozen=True):
    """One text of a sampled trajectory. "thought" and "answer" are the base model's own texts."""

    stage: Literal["plan", "inspect", "thought", "answer"]
    text: str
    seconds: float = 0.0
    tokens: int = 0


class ImageStage(msgspec.Struct, tag_field="kind", tag="image", forbid_unknown_fields=True, frozen=True):
    """One image of a sampled trajectory; ``file`` is a PNG in the folder, sizes are in pixels.

    ``tokens`` counts what the image put into the cache, ``steps`` the sampling steps (0 if given).
    """

    stage: Literal["given", "sketch", "refine"]
    file: str
    width: int
    height: int
    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if pathlib.PurePath(self.file).name != self.file or not self.file.endswith(".png"):
            raise ValueError(f"image file {self.file!r} must be a plain name ending in .png")


class Trajectory(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A sampled trajectory as it stands in ``trajectory.json``.

    ``stages`` begins with the given images, if any; the prompt stands before the first stage that is not
    given. ``settings`` and ``costs`` are flat objects (numbers, strings, booleans) for the reader.
    """

    prompt: str
    stages: list[TextStage | ImageStage]
    stop_reason: StopReason
    seed: int
    checkpoint: str
    settings: dict[str, Any] = {}
    costs: dict[str, float] = {}
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}")


def format_plan(instruction: str, description: str) -> str:
    """The text of a plan. Raises TrajectoryError where either part holds a tag."""
    _refuse_tags("plan", instruction, description)
    return f"<ins>{instruction}</ins> <des>{description}</des>"


def format_inspection(analysis: str, correction: str | None = None) -> str:
    """The text of an inspection; with a ``correction`` it found a fault. Raises TrajectoryError on tags."""
    _refuse_tags("inspection", analysis, correction or "")
    return analysis if correction is None else f"{analysis} <refine>{correction}</refine>"


def _refuse_tags(what: str, *parts: str) -> None:
    for part in parts:
        if found := TAG.search(part):
            raise TrajectoryError(f"{what}: {found.group()!r} stands inside the words {part[:60]!r}")


def parse_plan(text: str) -> tuple[str, str]:
    """(instruction, description) of a plan, as written between the tags. Raises TrajectoryError."""
    match = _PLAN.fullmatch(text)
    if match is None:
        raise TrajectoryError(f"not a plan '<ins>..</ins> <des>..</des>': {text[:80]!r}")
    _refuse_tags("plan", *match.groups())
    return match.group(1), match.group(2)


def parse_refine(text: str) -> str | None:
    """The correction an inspection asks for, or None where it found no fault.

    Raises TrajectoryError where the text is no inspection: another tag, or ``<refine>`` not closed last.
    """
    if TAG.search(text) is None:
        return None
    match = _REFINE.fullmatch(text)
    if match is None:
        raise TrajectoryError(f"not an inspection 'words' or 'words <refine>..</refine>': {text[:80]!r}")
    _refuse_tags("inspection", *match.groups())
    return match.group(2)


def segment_kind(segment: Text | Image | TextStage | ImageStage) -> str:
    """The key of ``FOLLOWERS`` for a segment or stage, from its stage and its tags alone."""
    if isinstance(segment, Image | ImageStage):
        return "given" if segment.stage == "given" else "image"
    if segment.stage == "plan":
        parse_plan(segment.text)
    elif segment.stage == "inspect":
        return "inspect" if parse_refine(segment.text) is None else "inspect+refine"
    return segment.stage


def image_stage(kinds: Sequence[str]) -> Literal["sketch", "refine"]:
    """The stage of an image that is drawn after segments of these kinds.

    It is "refine" after an inspection with ``<refine>``, also where a rewritten plan stands between.
    """
    last = [k for k in kinds[-2:] if k != "plan"][-1:]
    return "refine" if last == ["inspect+refine"] else "sketch"


def check_kinds(kinds: Sequence[str], complete: bool) -> None:
    """Raises TrajectoryError where the sequence of segment kinds breaks the sequence grammar."""
    if not kinds or kinds[0] not in ("given", "prompt"):
        raise TrajectoryError(f"begins with {kinds[0] if kinds else 'nothing'}, expected a prompt")
    for number, (before, after) in enumerate(itertools.pairwise(kinds), 1):
        if after not in FOLLOWERS.get(before, ()):
            allowed = ", ".join(k for k in FOLLOWERS.get(before, ()) if k != END)
            raise TrajectoryError(
                f"segment {number}: {after} after {before}, expected {allowed or 'nothing'}"
            )
    if complete and END not in FOLLOWERS.get(kinds[-1], ()):
        raise TrajectoryError(f"marked complete, but a sequence cannot end with {kinds[-1]}")


def check_grammar(record: Record) -> None:
    """Checks order, tags, image stages and targets of a record.

    A draft that an inspection faults, and a plan that is rewritten, are context and never targets.

    Raises:
      TrajectoryError: naming the record, the segment (from 0) and what was expected.
    """
    kinds: list[str] = []
    for number, segment in enumerate(record.segments):
        try:
            kinds.append(segment_kind(segment))
        except TrajectoryError as fault:
            raise TrajectoryError(f"record {record.id}: segment {number}: {fault}") from None
        if isinstance(segment, Text) and not segment.text.strip():
            raise TrajectoryError(f"record {record.id}: segment {number}: the {segment.stage} is empty")
        if kinds[-1] == "image" and segment.stage != (expected := image_stage(kinds[:-1])):
            raise TrajectoryError(f"record {record.id}: segment {number}: image stage {segment.stage!r}, "
                                  f"expected {expected!r}")  # fmt: skip
    try:
        check_kinds(kinds, record.complete)
    except TrajectoryError as fault:
        raise TrajectoryError(f"record {record.id}: {fault}") from None
    for number in corrected(kinds):
        if record.segments[number].target:
            raise TrajectoryError(f"record {record.id}: segment {number}: this {kinds[number]} is corrected "
                                  "later, it must not be a target")  # fmt: skip


def corrected(kinds: Sequence[str]) -> list[int]:
    """Numbers of the drafts that an inspection faults and of the plans rewritten after one, from all kinds."""
    numbers = []
    plan = 0
    for n, kind in enumerate(kinds):
        if kind == "inspect+refine":
            rewritten = [plan] if kinds[n + 1 : n + 2] == ["plan"] else []
            numbers += [n - 1, *rewritten]
        if kind == "plan":
            plan = n
    return numbers


_RECORD_ENCODER = msgspec.msgpack.Encoder()
_RECORD_DECODER = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The record as msgpack, after ``check_grammar``."""
    check_grammar(record)
    return _RECORD_ENCODER.encode(record)


def decode_record(data: bytes, name: str = "record") -> Record:
    """Reads and checks what ``encode_record`` wrote. Raises TrajectoryError beginning with ``name``."""
    try:
        record = _RECORD_DECODER.decode(data)
        check_grammar(record)
    except (msgspec.DecodeError, TrajectoryError) as fault:
        raise TrajectoryError(f"{name}: {fault}") from None
    for number, segment in enumerate(record.segments):
        if isinstance(segment, Image) and not segment.png.startswith(_PNG_SIGNATURE):
            raise TrajectoryError(f"{name}: record {record.id}: segment {number}: not a PNG")
    return record


def save_trajectory(
    folder: str | pathlib.Path, trajectory: Trajectory, images: Sequence[PIL.Image.Image]
) -> None:
    """Writes ``trajectory.json`` and one PNG per image stage; the folder appears whole or not at all.

    Args:
      folder: must not exist (its parents are made).
      images: one per image stage, in order, of the sizes the stages state.

    Raises:
      TrajectoryError: the folder exists, or the images are not those of the stages.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise TrajectoryError(f"{folder}: exists already; name another folder or remove it")
    stages = [s for s in trajectory.stages if isinstance(s, ImageStage)]
    _check_images(folder, stages, [image.size for image in images])
    with new_folder(folder, kind="trajectory", replaceable=lambda _: False) as partial:
        for stage, image in zip(stages, images):
            image.save(partial / stage.file)
        text = msgspec.json.format(msgspec.json.encode(trajectory), indent=1)
        (partial / "trajectory.json").write_bytes(text + b"\n")


def _check_images(folder: pathlib.Path, stages: list[ImageStage], sizes: list[tuple[int, int]]) -> None:
    if len(stages) != len(sizes) or len({s.file for s in stages}) != len(stages):
        raise TrajectoryError(f"{folder}: {len(stages)} image stages need as many images and file names, "
                              f"got {len(sizes)} images")  # fmt: skip
    for stage, size in zip(stages, sizes):
        if (stage.width, stage.height) != size:
            raise TrajectoryError(f"{folder / stage.file}: is {size[0]}x{size[1]} pixels, "
                                  f"its stage says {stage.width}x{stage.height}")  # fmt: skip


def load_trajectory(folder: str | pathlib.Path) -> tuple[Trajectory, list[PIL.Image.Image]]:
    """The trajectory in ``folder`` and its images (RGB), one per image stage, in order.

    Raises:
      TrajectoryError: a file is missing or malformed, or an image has another size than its stage says.
    """
    folder = pathlib.Path(folder)
    path = folder / "trajectory.json"
    try:
        trajectory = msgspec.json.decode(path.read_bytes(), type=Trajectory)
    except OSError as fault:
        raise TrajectoryError(
            f"{path}: {fault.strerror or fault}; expected a folder that sampling wrote"
        ) from None
    except msgspec.DecodeError as fault:
        raise TrajectoryError(f"{path}: {fault}") from None
    stages = [s for s in trajectory.stages if isinstance(s, ImageStage)]
    images = []
    for stage in stages:
        try:
            with PIL.Image.open(folder / stage.file) as image:
                images.append(image.convert("RGB"))
        except (OSError, SyntaxError) as fault:  # Pillow raises the second for a broken chunk
            raise TrajectoryError(f"{folder / stage.file}: {fault}") from None
    _check_images(folder, stages, [image.size for image in images])
    return trajectory, images
