r"""Trajectories: the training record and the sampled trajectory. ``modes`` defines the order of their segments.

A plan is ``<ins>instruction</ins> <des>description</des>``. An inspection that found a fault ends with
``<refine>correction</refine>``. Some public data closes tags by ``<\ins>``, which is read but never written.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import PIL.Image

from pdgen.files import is_plain_name, sha256
from pdgen.sequence.modes import Mode, TrajectoryError, check_kinds, find_corrected, image_stage

VERSION = 1
TAG = re.compile(r"<[/\\]?(?:ins|des|refine)>")
_PLAN = re.compile(r"<ins>(.*?)<[/\\]ins>\s*<des>(.*?)<[/\\]des>\s*", re.DOTALL)
_REFINE = re.compile(r"(.*?)<refine>(.*?)<[/\\]refine>\s*", re.DOTALL)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

StopReason = Literal["finished", "step limit", "token limit", "stopped"]
Origin = Literal["model", "outside"]
TextKind = Literal["plan", "inspect", "thought", "answer"]


class Text(msgspec.Struct, tag="text", forbid_unknown_fields=True, frozen=True):
    """One text segment of a record; ``target`` is whether its tokens are targets of the cross-entropy."""

    stage: Literal["prompt", "plan", "inspect", "thought", "answer"]
    text: str
    target: bool

    def __post_init__(self) -> None:
        if self.stage == "prompt" and self.target:
            raise ValueError("a prompt is given, it cannot be a target")


class Image(msgspec.Struct, tag="image", forbid_unknown_fields=True, frozen=True):
    """One image segment of a record; ``target`` is whether it is a target of the flow loss.

    ``latent_mean`` and ``latent_logvar`` are the moments of the autoencoder's posterior before scale and shift, float16
    in C order of ``latent_shape`` (h, w, z). Either all three are set or none.
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

    ``complete`` is False for a trajectory that was cut. Its last switch has no target, so that the model does not learn
    to stop early. ``scene`` is the scene graph from which it was built, if any. ``mode`` is the grammar of its
    segments, see ``modes``.
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
    """One text of a sampled trajectory.

    ``ids`` are the tokens that the model wrote. The tokenizer may split the same text otherwise. If someone edits
    ``text``, so that the ids no longer spell it, they are ignored. ``origin`` is "outside" for a text that the model
    did not write.
    """

    stage: TextKind
    text: str
    seconds: float = 0.0
    tokens: int = 0
    origin: Origin = "model"
    ids: list[int] = []


class ImageStage(msgspec.Struct, tag_field="kind", tag="image", forbid_unknown_fields=True, frozen=True):
    """One image of a sampled trajectory; ``file`` is a PNG in the folder, width and height are in pixels.

    ``tokens`` counts the image's tokens in the context, ``steps`` its sampling steps (0 if given).
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
        if not is_plain_name(self.file, ".png"):
            raise ValueError(f"image file {self.file!r} must be a plain name ending in .png")


Stage = TextStage | ImageStage


class Parent(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The trajectory from which another one branched off: its ``fingerprint``, and the first stage that differs."""

    fingerprint: str
    stage: int


class TrajectoryFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The content of ``trajectory.json``; see ``Trajectory`` for the fields."""

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
      prompt: the prompt; it precedes the first stage that is not a given image.
      stages: texts and images in order, the given images first.
      stop_reason: why sampling ended, None while unfinished.
      seed: seed of all sampling, within [0, 2^32).
      checkpoint, model_hash: name and manifest digest of the model.
      mode: a key of ``modes.MODES``.
      parent: the trajectory that it branched off, if any.
      settings, costs: flat mappings to numbers, strings and booleans, for information.
      images: one RGB image for each image stage, in order.
      latents: on request, by image file: the VAE tokens [tokens, values] from which each image was decoded.
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
        values = {name: getattr(self, name) for name in TrajectoryFile.__struct_fields__ if name != "version"}
        copies: dict[str, Any] = {
            "stages": list(self.stages),
            "settings": dict(self.settings),
            "costs": dict(self.costs),
        }
        return TrajectoryFile(**values | copies)

    @property
    def fingerprint(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of its JSON, which identify it."""
        return sha256(msgspec.json.encode(self.file))[:12]

    @property
    def kinds(self) -> list[str]:
        """The kind of every segment, prompt included. Raises TrajectoryError if a text does not parse."""
        kinds = [segment_kind(stage) for stage in self.stages]
        given = len(list(itertools.takewhile("given".__eq__, kinds)))
        return [*kinds[:given], "prompt", *kinds[given:]]

    def check(self) -> None:
        """Raise TrajectoryError if the stages violate the mode's grammar, or the images do not match the stages."""
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
        """Return an unfinished trajectory with the stages before ``step``, to be continued from there.

        Args:
          step: index in ``stages`` of the first stage to remove; ``len(stages)`` keeps all.
          plan: the next stage: ``<ins>..</ins> <des>..</des>``, or in mode "think" the thought.
          critique: the next stage: an inspection, with ``<refine>..</refine>`` if it asks for a correction.
          image: the next stage, of the size of the images that the trajectory has drawn.
          seed: seed of the continuation; None: the same.

        Raises:
          TrajectoryError: more than one of plan, critique and image is given, or the grammar does not allow it there.
        """
        given = sum(isinstance(stage, ImageStage) and stage.stage == "given" for stage in self.stages)
        if not given <= step <= len(self.stages):
            raise TrajectoryError(f"branch at stage {step}: choose one from {given} to {len(self.stages)}")
        if sum(x is not None for x in (plan, critique, image)) > 1:
            raise TrajectoryError("branch: give one of plan, critique and image")
        files = [stage.file for stage in self.stages[:step] if isinstance(stage, ImageStage)]
        latents = self.latents and {file: values for file, values in self.latents.items() if file in files}
        branch = dataclasses.replace(
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
            branch = branch.with_text("thought" if self.mode == "think" else "plan", plan)
        if critique is not None:
            branch = branch.with_text("inspect", critique)
        if image is not None:
            branch = branch._with_image(image, [i.size for i in self.images[given:]])
        try:
            branch.check()
        except TrajectoryError as fault:
            raise TrajectoryError(f"branch at stage {step}: {fault}") from None
        return branch

    def with_text(self, stage: TextKind, text: str) -> "Trajectory":
        """Return the trajectory with one more text, from outside."""
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
    """Return the file name of the ``number``-th image (from 1) of a trajectory, such as "02_refine.png"."""
    return f"{number:02d}_{stage}.png"


def format_plan(instruction: str, description: str) -> str:
    """Format a plan. Raises TrajectoryError if a part contains a tag."""
    _refuse_tags("plan", instruction, description)
    return f"<ins>{instruction}</ins> <des>{description}</des>"


def format_inspection(analysis: str, correction: str | None = None) -> str:
    """Format an inspection, which found a fault if it has a ``correction``. Raises TrajectoryError on tags."""
    _refuse_tags("inspection", analysis, correction or "")
    return analysis if correction is None else f"{analysis} <refine>{correction}</refine>"


def _refuse_tags(what: str, *parts: str) -> None:
    for part in parts:
        if found := TAG.search(part):
            raise TrajectoryError(f"{what}: the tag {found.group()!r} is inside the text {part[:60]!r}")


def parse_plan(text: str) -> tuple[str, str]:
    """Return (instruction, description) of a plan, unchanged. Raises TrajectoryError if it is not a plan."""
    match = _PLAN.fullmatch(text)
    if match is None:
        raise TrajectoryError(f"not a plan '<ins>..</ins> <des>..</des>': {text[:80]!r}")
    _refuse_tags("plan", *match.groups())
    return match.group(1), match.group(2)


def parse_refine(text: str) -> str | None:
    """Return the correction that an inspection asks for, or None if it found no fault.

    Raises:
      TrajectoryError: the text has another tag, or does not end with the closing tag.
    """
    if TAG.search(text) is None:
        return None
    match = _REFINE.fullmatch(text)
    if match is None:
        raise TrajectoryError(f"not an inspection 'words' or 'words <refine>..</refine>': {text[:80]!r}")
    _refuse_tags("inspection", *match.groups())
    return match.group(2)


def segment_kind(segment: Text | Image | TextStage | ImageStage) -> str:
    """Return the kind of a segment or stage, as in ``modes.MODES``, from its stage and its tags.

    Raises:
      TrajectoryError: the text of a plan or inspection does not parse.
    """
    if isinstance(segment, Image | ImageStage):
        return "given" if segment.stage == "given" else "image"
    if segment.stage == "plan":
        parse_plan(segment.text)
    elif segment.stage == "inspect":
        return "inspect" if parse_refine(segment.text) is None else "inspect+refine"
    return segment.stage


def check_grammar(record: Record) -> None:
    """Check order, tags, image stages and targets of a record.

    Images and plans that are corrected later are context and never targets.

    Raises:
      TrajectoryError: the message names the record, the segment (from 0) and what was expected.
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
    for number in find_corrected(kinds):
        if record.segments[number].target:
            raise TrajectoryError(
                f"record {record.id}: segment {number}: this {kinds[number]} is corrected "
                "later, it must not be a target"
            )


_RECORD_ENCODER = msgspec.msgpack.Encoder()
_RECORD_DECODER = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """Encode a record as msgpack, after ``check_grammar``."""
    check_grammar(record)
    return _RECORD_ENCODER.encode(record)


def decode_record(data: bytes, name: str = "record") -> Record:
    """Decode and check what ``encode_record`` wrote. Raises TrajectoryError; its message begins with ``name``."""
    try:
        record = _RECORD_DECODER.decode(data)
        check_grammar(record)
    except RecursionError:
        raise TrajectoryError(f"{name}: values are nested too deeply; build the data again") from None
    except (msgspec.DecodeError, TrajectoryError) as fault:
        raise TrajectoryError(f"{name}: {fault}") from None
    for number, segment in enumerate(record.segments):
        if isinstance(segment, Image) and not segment.png.startswith(_PNG_SIGNATURE):
            raise TrajectoryError(f"{name}: record {record.id}: segment {number}: not a PNG")
    return record
