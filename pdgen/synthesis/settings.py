"""The settings of a data set: the keys of configs such as ``configs/data_shapes.py``."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from pdgen.shapes.graph import OPERATIONS
from pdgen.shapes.world import MAX_OBJECTS
from pdgen.synthesis.sample import TASKS
from pdgen.teachers.endpoint import EndpointSettings
from pdgen.teachers.kontext import KontextSettings

# Random numbers depend on a subset's position in this list.
SUBSETS = ("multi_turn", "conflict", "alignment", "text_to_image", "understand", "edit")
# Compositions have prompts as long as the paper's. The others are GenEval's tasks; a small model needs many of them.
TASK_SHARES = dict.fromkeys(TASKS, 0.06) | {"composition": 0.64}


class SettingsError(ValueError):
    """A setting that is out of range or missing. The message is one line with the key and the remedy."""


THING_SHARES = (0.2, 0.25, 0.2, 0.15, 0.1, 0.1)
WORDING_SHARES = {"prompt": 0.5, "description": 0.1, "caption": 0.1, "places": 0.3}
QUESTION_SHARES = {"caption": 0.15, "places": 0.3, "color": 0.1, "count": 0.12, "place": 0.13, "check": 0.2}
OPERATION_SHARES = {"add": 0.25, "modify": 0.2, "swap": 0.1, "move": 0.15, "replace": 0.15, "remove": 0.15}


def _check_count(name: str, value: int) -> None:
    if value < 0:
        raise SettingsError(f"{name}={value} is below 0")


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise SettingsError(f"{name}={value} is no probability")


class MultiTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Multi-turn generation: whole trajectories.

    Attributes:
      count: number of samples.
      fault_rate: probability of a faulty first draft per step, while the sample has at most ``max_images``.
    """

    count: int = 32012
    fault_rate: float = 0.03

    def __post_init__(self) -> None:
        _check_count("multi_turn.count", self.count)
        _check_rate("multi_turn.fault_rate", self.fault_rate)


class Conflict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Instruction-intermediate conflict: plans that contradict the prompt, and plans that are merely incomplete.

    Attributes:
      positive, negative: numbers of samples.
      variant: "self" judges plans that ``checkpoint`` writes; "graph" makes wrong plans from the scene graph.
      checkpoint: a pdgen checkpoint or the workdir of a training run on multi-turn samples; only for "self".
      temperature: sampling temperature of the plans; only for "self".
    """

    positive: int = 6905
    negative: int = 8296
    variant: Literal["graph", "self"] = "graph"
    checkpoint: str = ""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_count("conflict.positive", self.positive)
        _check_count("conflict.negative", self.negative)
        if self.temperature < 0:
            raise SettingsError(f"conflict.temperature={self.temperature} is below 0")


class Alignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Image-instruction alignment: pictures that show what their plan says, and faulty ones.

    Attributes:
      positive, negative: numbers of samples.
      archive: a GenRef archive (.tar) or a folder of them; "": corrupted scenes of shapes world.
    """

    positive: int = 5000
    negative: int = 10000
    archive: str = ""

    def __post_init__(self) -> None:
        _check_count("alignment.positive", self.positive)
        _check_count("alignment.negative", self.negative)


def _check_shares(name: str, shares: dict[str, float], keys: Sequence[str]) -> None:
    for key, share in shares.items():
        if key not in keys or not (math.isfinite(share) and share >= 0):
            raise SettingsError(f"{name}: {key}={share}: expected a share of one of {', '.join(keys)}")
    if not sum(shares.values()) > 0:
        raise SettingsError(f"{name}: the shares sum to 0")


def _check_numbers(name: str, shares: tuple[float, ...]) -> None:
    if not 1 <= len(shares) <= MAX_OBJECTS or min(shares) < 0 or not sum(shares) > 0:
        raise SettingsError(f"{name}={shares}: expected up to {MAX_OBJECTS} shares that do not sum to 0")


class TextToImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt and its picture, drawn in one step as by the base model. ``tasks`` are those of the whole data set.

    Attributes:
      count: number of samples.
      things: shares of compositions, descriptions and captions with 1, 2, ... things.
      wordings: shares of texts. "prompt": a user's prompt; "description": a plan's description of the whole scene;
        "caption": a caption of the picture; "places": a caption with all places.
      thoughts: probability that a user's prompt is followed by a thought, which describes the picture before it is
        drawn (mode "think").
    """

    count: int = 0
    things: tuple[float, ...] = THING_SHARES
    wordings: dict[str, float] = msgspec.field(default_factory=lambda: dict(WORDING_SHARES))
    thoughts: float = 0.0

    def __post_init__(self) -> None:
        _check_count("text_to_image.count", self.count)
        _check_rate("text_to_image.thoughts", self.thoughts)
        _check_numbers("text_to_image.things", self.things)
        _check_shares("text_to_image.wordings", self.wordings, tuple(WORDING_SHARES))


class Understand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture, a question and its answer.

    Attributes:
      count: number of samples.
      things: shares of pictures with 1, 2, ... things.
      questions: shares of ``questions.KINDS``.
    """

    count: int = 0
    things: tuple[float, ...] = THING_SHARES
    questions: dict[str, float] = msgspec.field(default_factory=lambda: dict(QUESTION_SHARES))

    def __post_init__(self) -> None:
        _check_count("understand.count", self.count)
        _check_numbers("understand.things", self.things)
        _check_shares("understand.questions", self.questions, tuple(QUESTION_SHARES))


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture, an instruction and the changed picture.

    Attributes:
      count: number of samples.
      things: shares of scenes with 1, 2, ... things, after the edit.
      operations: shares of ``graph.OPERATIONS``.
      places: probability that the instruction states the place of an added thing.
    """

    count: int = 0
    things: tuple[float, ...] = THING_SHARES
    places: float = 0.5
    operations: dict[str, float] = msgspec.field(default_factory=lambda: dict(OPERATION_SHARES))

    def __post_init__(self) -> None:
        _check_count("edit.count", self.count)
        _check_numbers("edit.things", self.things)
        _check_rate("edit.places", self.places)
        _check_shares("edit.operations", self.operations, OPERATIONS)


class TeacherSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The teachers of a data set.

    Attributes:
      painter: "shapes", or "kontext" for FLUX.1-Kontext with the settings ``kontext``.
      judge: "exact" for shapes world, or "endpoint" with the settings ``endpoint``.
      writer: "rules", or "endpoint"; it parses prompts from a file.
      prompts: a text file with one prompt per line; "": prompts of shapes world.
      redraws: further attempts at a picture that the judge rejects.
      endpoint, kontext: settings of the endpoint and of FLUX.1-Kontext.
    """

    painter: Literal["shapes", "kontext"] = "shapes"
    judge: Literal["exact", "endpoint"] = "exact"
    writer: Literal["rules", "endpoint"] = "rules"
    prompts: str = ""
    redraws: int = 0
    endpoint: EndpointSettings | None = None
    kontext: KontextSettings = KontextSettings()

    def __post_init__(self) -> None:
        _check_count("teachers.redraws", self.redraws)
        if self.remote and self.endpoint is None:
            raise SettingsError("teachers.endpoint is missing: the endpoint's url, model and cache")
        if self.painter == "kontext" and not self.prompts:
            raise SettingsError("teachers.prompts is missing: Kontext paints prompts from a file, one a line")
        if self.painter == "shapes" and self.writer == "endpoint":
            raise SettingsError("teachers.writer=endpoint reads what shapes world cannot paint; take writer=rules")

    @property
    def remote(self) -> bool:
        """Whether a teacher is remote, so that answers may cost money."""
        return "endpoint" in (self.judge, self.writer)


class DatasetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a data set.

    Attributes:
      seed: a sample depends only on the seed, its subset and number, and these settings.
      image_size: side of a picture of shapes world in pixels.
      positions: positions of objects in shapes world: on the "lattice" of the VAE tokens, or "free".
      shard_size: samples per file; a killed build loses at most that many per worker.
      latents: whether to add latents of shapes world's autoencoder; ``launch/build_data.py encode`` adds any others.
      tasks: shares of ``sample.TASKS``, divided by their sum.
      entities: shares of compositions with 1, 2, ... entities; empty: ``sample.ENTITY_RATES``.
      rewritten: share of multi-turn and alignment samples whose steps also modify, swap, move, replace and remove.
      places: probability that plans of shapes world, and "description" texts, state the place of an entity even if the
        prompt does not.
      max_images: maximum images of a sample.
      allow_leaks: whether to keep prompts of GenEval; they are counted and listed in any case.
      multi_turn, conflict, alignment, text_to_image, understand, edit: the subsets.
      teachers: the teachers.

    Raises:
      SettingsError: a value is out of range; the message names the key.
    """

    seed: int = 0
    image_size: int = 64
    positions: Literal["lattice", "free"] = "lattice"
    shard_size: int = 250
    latents: bool = True
    tasks: dict[str, float] = msgspec.field(default_factory=lambda: dict(TASK_SHARES))
    entities: tuple[float, ...] = ()
    rewritten: float = 0.2
    places: float = 0.0
    max_images: int = 5
    allow_leaks: bool = False
    multi_turn: MultiTurn = MultiTurn()
    conflict: Conflict = Conflict()
    alignment: Alignment = Alignment()
    text_to_image: TextToImage = TextToImage()
    understand: Understand = Understand()
    edit: Edit = Edit()
    teachers: TeacherSettings = TeacherSettings()

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("image_size", 16), ("shard_size", 1), ("max_images", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name}={getattr(self, name)}: at least {least} is needed")
        _check_rate("rewritten", self.rewritten)
        _check_rate("places", self.places)
        _check_shares("tasks", self.tasks, TASKS)
        if self.entities:
            _check_numbers("entities", self.entities)
        if self.multi_turn.fault_rate and self.teachers.painter != "shapes":
            raise SettingsError("multi_turn.fault_rate: only shapes world can draw a faulty draft; set it to 0")

    def count_samples(self, subset: str) -> tuple[int, int]:
        """Return the number of samples of a subset, and of positive ones; 0 if the subset does not distinguish them."""
        part = getattr(self, subset)
        if "count" in part.__struct_fields__:
            return part.count, 0
        return part.positive + part.negative, part.positive

    def common_to_dict(self) -> dict[str, Any]:
        """Convert the settings shared by all subsets to plain data, without those that only affect speed and price."""
        shared = {k: v for k, v in msgspec.to_builtins(self).items() if k not in SUBSETS}
        if endpoint := shared["teachers"]["endpoint"]:
            shared["teachers"]["endpoint"] = {k: endpoint[k] for k in ("url", "model", "parameters", "answers")}
        return shared

    def find_missing(self, subset: str) -> str | None:
        """Return one line on what a stage needs and does not have; None if nothing is missing."""
        needs_scenes = self.teachers.painter != "shapes"
        if subset == "conflict" and self.conflict.variant == "self" and not self.conflict.checkpoint:
            return (
                "conflict: variant 'self' needs a checkpoint trained on multi-turn samples; build --stages=multi_turn, "
                "train on it and pass --config.conflict.checkpoint=WORKDIR, or take --config.conflict.variant=graph"
            )
        if subset == "alignment" and not self.alignment.archive and needs_scenes:
            return (
                "alignment: only shapes world can corrupt scenes; "
                "name a GenRef archive by --config.alignment.archive=TAR"
            )
        if subset in ("text_to_image", "understand", "edit") and needs_scenes:
            return f"{subset}: only shapes world knows what its pictures show; set --config.{subset}.count=0"
        unexplained = self.alignment.archive and self.alignment.positive and self.teachers.judge == "exact"
        if subset == "alignment" and unexplained:
            return (
                "alignment: GenRef does not say why an image fits, so positive samples need "
                "--config.teachers.judge=endpoint, or set --config.alignment.positive=0"
            )
        return None


def scale_settings(settings: DatasetSettings, factor: float, count: int | None = None) -> DatasetSettings:
    """Multiply all numbers of samples by ``factor``.

    Args:
      settings: the settings.
      factor: a positive number.
      count: total number of samples before the multiplication, in the settings' proportions; None: unchanged.

    Raises:
      SettingsError: ``factor`` or ``count`` is not positive, or no sample is left.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise SettingsError(f"--scale={factor} is no positive number")
    total = sum(settings.count_samples(subset)[0] for subset in SUBSETS)
    if count is not None:
        if count < 1 or not total:
            raise SettingsError(f"--count={count}: at least 1 sample is needed")
        factor *= count / total
    changed = {}
    for subset in SUBSETS:
        part = getattr(settings, subset)
        keys = [key for key in ("count", "positive", "negative") if key in part.__struct_fields__]
        changed[subset] = msgspec.structs.replace(part, **{key: round(getattr(part, key) * factor) for key in keys})
    new = msgspec.structs.replace(settings, **changed)
    if not any(new.count_samples(subset)[0] for subset in SUBSETS):
        raise SettingsError(f"no sample is left of {total} at --scale={factor:g}")
    return new
