"""Trajectories: the training record and the sampled trajectory. ``modes`` says what may follow what.

A plan reads ``<ins>instruction</ins> <des>description</des>``, an inspection that found a fault ends with
``<refine>correction</refine>``. The closing tags ``<\\ins>`` occur in the wild: read, never written.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import PIL.Image

from pdgen.files import sha256
from pdgen.sequence.modes import Mode, TrajectoryError, check_kinds, corrected, image_stage

VERSION = 1
TAG = re.compile(r"<[/\\]?(?:ins|des|refine)>")
_PLAN = re.compile(r"<ins>(.*?)<[/\\]ins>\s*<des>(.*?)<[/\\]des>\s*", re.DOTALL)
_REFINE = re.compile(r"(.*?)<refine>(.*?)<[/\\]refine>\s*", re.DOTALL)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

StopReason = Literal["finished", "step limit", "token limit", "stopped"]
Origin = Literal["model", "outside"]


class Text(msgspec.Struct, tag="text", forbid_unknown_fields=True, frozen=True):
    """One text segment of a record. ``target``: the text bears cross-entropy."""

    stage: Literal["prompt", "plan", "inspect", "answer"]
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
    teaches the model to stop early. ``scene`` is the scene graph it was built from, if any. ``mode`` is the grammar
    of its segments: what the base model does has modes of its own.
    """

    id: str
    source: str
    complete: bool
    segments: list[Text | Image]
    scene: dict[str, Any] | None = None
    mode: Mode = "process"
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}; build the data again")


class TextStage(msgspec.Struct, tag_field="kind", tag="text", forbid_unknown_fields=True, frozen=True):
    """One text of a sampled trajectory. "thought" and "answer" are the base model's own texts.

    ``ids`` are the tokens as the model wrote them, which need not be how the tokenizer would cut the text; they
    count only as long as they spell ``text``. ``origin`` is "outside" for what the model did not write.
    """

    stage: Literal["plan", "inspect", "thought", "answer"]
    text: str
    seconds: float = 0.0
    tokens: int = 0
    origin: Origin = "model"
    ids: list[int] = []


class ImageStage(msgspec.Struct, tag_field="kind", tag="image", forbid_unknown_fields=True, frozen=True):
    """One image of a sampled trajectory; ``file`` is a PNG in the folder, sizes are in pixels.

    ``tokens`` counts what the image put into the context, ``steps`` the sampling steps (0 if given).
    """

    stage: Literal["given", "sketch", "refine"]
    file: str
    width: int
    height: int
    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    origin: Origin = "model"

    def __post_init__(self) -> None:
        if pathlib.PurePath(self.file).name != self.file or not self.file.endswith(".png"):
            raise ValueError(f"image file {self.file!r} must be a plain name ending in .png")


Stage = TextStage | ImageStage


class Parent(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where a trajectory branched off: its parent's ``fingerprint``, and the first stage that is not the parent's."""

    fingerprint: str
    stage: int


class TrajectoryFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What stands in ``trajectory.json``; for the fields see ``Trajectory``."""

    prompt: str
    stages: list[Stage]
    stop_reason: StopReason | None
    seed: int
    checkpoint: str
    mode: Mode = "process"
    model_hash: str = ""
    parent: Parent | None = None
    settings: dict[str, Any] = {}
    costs: dict[str, float] = {}
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A sampled trajectory, finished or not.

    Attributes:
      stages: begins with the given images, if any; the prompt stands before the first stage that is not given.
      stop_reason: None while unfinished.
      seed: of all that was drawn, within [0, 2^32).
      checkpoint, model_hash: name and manifest digest of the model.
      parent: what it branched off, if it did.
      settings, costs: flat (numbers, strings, booleans), for the reader.
      images: one RGB picture per image stage, in order.
      latents: on request, by image file, the VAE tokens [tokens, values] that each drawn image was decoded from.
    """

    prompt: str
    stages: Sequence[Stage]
    stop_reason: StopReason | None
    seed: int
    checkpoint: str
    mode: Mode = "process"
    model_hash: str = ""
    parent: Parent | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    images: Sequence[PIL.Image.Image] = dataclasses.field(default=(), compare=False, repr=False)
    latents: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def file(self) -> TrajectoryFile:
        """The part that is stored as JSON."""
        names = [name for name in TrajectoryFile.__struct_fields__ if name != "version"]
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        return TrajectoryFile(**values | {"stages": list(self.stages)})

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that tell it from others: of the SHA-256 of its JSON."""
        return sha256(msgspec.json.encode(self.file))[:12]

    @property
    def kinds(self) -> list[str]:
        """The kind of every segment, the prompt in its place. Raises TrajectoryError where a text does not parse."""
        kinds = [segment_kind(stage) for stage in self.stages]
        given = len(list(itertools.takewhile("given".__eq__, kinds)))
        return [*kinds[:given], "prompt", *kinds[given:]]

    def check(self) -> None:
        """Raises TrajectoryError where stages and images are none that the mode's grammar could have led to."""
        if not self.prompt.strip():
            raise TrajectoryError("the prompt is empty")
        kinds = self.kinds
        check_kinds(kinds, self.stop_reason == "finished", self.mode)
        stages = [stage for stage in self.stages if isinstance(stage, ImageStage)]
        if len(stages) != len(self.images) or len({stage.file for stage in stages}) != len(stages):
            raise TrajectoryError(
                f"{len(stages)} image stages need as many images and file names, got {len(self.images)} images"
            )
        for stage, image in zip(stages, self.images):
            if (stage.width, stage.height) != image.size:
                raise TrajectoryError(
                    f"{stage.file}: is {image.width}x{image.height} pixels, its stage says {stage.width}x{stage.height}"
                )

    def branch(
        self,
        step: int,
        *,
        plan: str | None = None,
        critique: str | None = None,
        image: PIL.Image.Image | None = None,
        seed: int | None = None,
    ) -> "Trajectory":
        """The unfinished trajectory that keeps all stages before ``step`` and goes on from there.

        Args:
          step: index in ``stages`` of the first stage that is not kept; ``len(stages)`` keeps all.
          plan: stands there: ``<ins>..</ins> <des>..</des>``, or in mode "think" the thought.
          critique: stands there: an inspection, with ``<refine>..</refine>`` if it asks for a correction.
          image: stands there, of the size of the images that the trajectory has drawn.
          seed: of what is drawn from here on; by default the same.

        Raises:
          TrajectoryError: more than one of the three is given, or none may stand there.
        """
        given = sum(isinstance(stage, ImageStage) and stage.stage == "given" for stage in self.stages)
        if not given <= step <= len(self.stages):
            raise TrajectoryError(f"branch at stage {step}: choose one from {given} to {len(self.stages)}")
        if sum(x is not None for x in (plan, critique, image)) > 1:
            raise TrajectoryError("branch: give one of plan, critique and image")
        files = [stage.file for stage in self.stages[:step] if isinstance(stage, ImageStage)]
        latents = self.latents and {file: values for file, values in self.latents.items() if file in files}
        kept = dataclasses.replace(
            self,
            stages=self.stages[:step],
            images=self.images[: len(files)],
            stop_reason=None,
            costs={},
            latents=latents,
            parent=Parent(self.fingerprint, step),
            seed=self.seed if seed is None else seed,
        )
        if plan is not None:
            kept = kept.with_text("thought" if self.mode == "think" else "plan", plan)
        if critique is not None:
            kept = kept.with_text("inspect", critique)
        if image is not None:
            kept = kept._with_image(image, [i.size for i in self.images[given:]])
        try:
            kept.check()
        except TrajectoryError as fault:
            raise TrajectoryError(f"branch at stage {step}: {fault}") from None
        return kept

    def with_text(self, stage: str, text: str) -> "Trajectory":
        """The trajectory with one more text, from outside."""
        return dataclasses.replace(self, stages=[*self.stages, TextStage(stage, text, origin="outside")])

    def _with_image(self, image: PIL.Image.Image, sizes: list[tuple[int, int]]) -> "Trajectory":
        if sizes and image.size != sizes[0]:
            raise TrajectoryError(
                f"branch: the image is {image.width}x{image.height} pixels, this trajectory's "
                f"are {sizes[0][0]}x{sizes[0][1]}; resize it"
            )
        name, (width, height) = image_stage(self.kinds), image.size
        stage = ImageStage(name, image_file(len(self.images) + 1, name), width, height, origin="outside")
        picture = image.convert("RGB")
        return dataclasses.replace(self, stages=[*self.stages, stage], images=[*self.images, picture])


def image_file(number: int, stage: str) -> str:
    """File name of the ``number``-th image (from 1) of a trajectory: "02_refine.png"."""
    return f"{number:02d}_{stage}.png"


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
    """The key in ``modes.MODES`` of a segment or stage, from its stage and its tags alone."""
    if isinstance(segment, Image | ImageStage):
        return "given" if segment.stage == "given" else "image"
    if segment.stage == "plan":
        parse_plan(segment.text)
    elif segment.stage == "inspect":
        return "inspect" if parse_refine(segment.text) is None else "inspect+refine"
    return segment.stage


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
            raise TrajectoryError(
                f"record {record.id}: segment {number}: image stage {segment.stage!r}, expected {expected!r}"
            )
    try:
        check_kinds(kinds, record.complete, record.mode)
    except TrajectoryError as fault:
        raise TrajectoryError(f"record {record.id}: {fault}") from None
    for number in corrected(kinds):
        if record.segments[number].target:
            raise TrajectoryError(
                f"record {record.id}: segment {number}: this {kinds[number]} is corrected "
                "later, it must not be a target"
            )


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
