"""What the studio's clients send and receive, as msgspec structs. Pictures are base64 in JSON."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MAX_TEXT = 8_000  # characters of any text
MAX_GIVEN = 4  # images before a prompt
MAX_DRAWS = 8  # drawings of one stage, or trajectories of one prompt
MAX_STEPS = 250  # points of an image's schedule
MAX_IMAGE_PIXELS = 2**24  # of an uploaded image
MAX_IMAGE_BYTES = 2**24
MAX_BODY_BYTES = 3 * 2**25  # of a request: all its images in base64

Words = Annotated[str, Meta(max_length=MAX_TEXT)]
Name = Annotated[str, Meta(pattern=r"^\d{3,8}(-\d{1,4}){0,40}$")]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Draws = Annotated[int, Meta(ge=1, le=MAX_DRAWS)]
Stages = Annotated[int, Meta(ge=0, le=1000)]
Picture = Annotated[bytes, Meta(max_length=MAX_IMAGE_BYTES)]
Settings = dict[Annotated[str, Meta(max_length=64)], Any]
Progress = Literal["idle", "waiting", "running", "done"]


class Create(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Create trajectories of a prompt.

    Attributes:
      prompt: what to draw, edit or answer.
      images: given before the prompt: PNG, JPEG, WebP, BMP or GIF.
      seed: of the first trajectory; None: drawn at random.
      n: number of trajectories; the others have seeds derived from the first.
      stages: to run before the trajectory waits; 0: to its end.
      settings: changes of the defaults, by flat name, such as "image.num_timesteps".
    """

    prompt: Words
    images: Annotated[list[Picture], Meta(max_length=MAX_GIVEN)] = []
    seed: Seed | None = None
    n: Draws = 1
    stages: Stages = 0
    settings: Settings = {}


class Run(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Continue a trajectory by some ``stages``; 0: to its end."""

    stages: Stages = 0


class Branch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Branch a trajectory off at a stage and continue it from there. Give one of plan, critique and image, or none.

    Attributes:
      stage: index of the first stage that is replaced; the number of stages keeps all.
      plan: ``<ins>..</ins> <des>..</des>``, or in mode "think" the thought.
      critique: an inspection, with ``<refine>..</refine>`` if it asks for a correction.
      image: a picture; it is resized to the trajectory's.
      seed: of the continuation; None: the same where something is given, else a new one.
      n: number of branches; the others have seeds derived from the first.
      stages: to run before the branch waits; 0: to its end.
      settings: changes of the parent's settings, by flat name.
    """

    stage: Stages
    plan: Words | None = None
    critique: Words | None = None
    image: Picture | None = None
    seed: Seed | None = None
    n: Draws = 1
    stages: Stages = 0
    settings: Settings = {}


class Correct(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Say that a plan, picture or inspection is right, or wrong and why.

    Attributes:
      stage: index of the stage.
      right: whether it is right.
      reason: what is right or wrong in it.
      correction: what to change; needed where it is wrong.
      better: a branch that does it better at this stage; it also makes a preference pair.
    """

    stage: Stages
    right: bool
    reason: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    correction: Words = ""
    better: Name | None = None


class TextView(msgspec.Struct, tag_field="kind", tag="text", kw_only=True):
    """A text of a trajectory."""

    stage: str
    text: str
    tokens: int
    seconds: float
    origin: str


class ImageView(msgspec.Struct, tag_field="kind", tag="image", kw_only=True):
    """A picture of a trajectory; ``url`` is a PNG."""

    stage: str
    url: str
    width: int
    height: int
    steps: int
    seconds: float
    origin: str


class Summary(msgspec.Struct, kw_only=True):
    """The state of a trajectory.

    Attributes:
      progress: "idle": it can be continued; "waiting": for a free place; "running"; "done": it has ended.
      place: in the queue, from 1; 0: not waiting.
      stages: number of finished stages.
      stop_reason: why it ended.
      parent, stage: the trajectory it branched off, and where.
      fault: why it stopped, if something went wrong.
    """

    id: str
    prompt: str
    mode: str
    seed: int
    progress: Progress
    place: int
    stages: int
    stop_reason: str | None
    parent: str | None
    stage: int | None
    fault: str


class TrajectoryView(msgspec.Struct, kw_only=True):
    """A whole trajectory."""

    summary: Summary
    stages: list[TextView | ImageView]
    settings: dict[str, Any]
    costs: dict[str, float]


class Created(msgspec.Struct, kw_only=True):
    """The trajectories that a request made."""

    trajectories: list[Summary]


class Listing(msgspec.Struct, kw_only=True):
    """All trajectories; the events after ``cursor`` happened later."""

    trajectories: list[Summary]
    cursor: str


class Status(msgspec.Struct, kw_only=True):
    """The server.

    Attributes:
      ready: whether the model is compiled.
      message: what the server does while it is not.
      model: name of the checkpoint.
      settings: the defaults, by flat name.
      corrections: number of corrections so far.
    """

    ready: bool
    message: str
    model: str
    settings: dict[str, Any]
    corrections: int


class Saved(msgspec.Struct, kw_only=True):
    """How many corrections there are, and how many of them make a preference pair."""

    corrections: int
    pairs: int


class Fault(msgspec.Struct, kw_only=True):
    """One line that says what is wrong and the remedy."""

    error: str
