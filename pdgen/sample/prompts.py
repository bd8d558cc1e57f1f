"""What is to be sampled: prompts with their seeds and given images, from flags or from a file."""

import pathlib
import warnings
from collections.abc import Sequence

import msgspec
import PIL.Image

from pdgen.data.prompts import PromptError, read_prompt_file
from pdgen.files import sha256
from pdgen.sample.engine import MAX_GIVEN_PIXELS
from pdgen.sequence.images import ImageError, decode_image, image_size


class Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A given image: its file, and the SHA-256 of what that held when the run began."""

    path: str
    sha256: str


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One trajectory to sample. ``name`` is its folder's within the run's."""

    name: str
    prompt: str
    seed: int
    images: list[Given]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a JSON lines file: a prompt, its first seed (by default the run's next) and paths of given images.

    Raises:
      PromptError: the prompt is empty.
    """

    prompt: str
    seed: int | None = None
    images: list[str] = []

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise PromptError("a prompt is empty; say what to draw")


def read_prompts(path: pathlib.Path) -> list[Line]:
    """Reads a file of prompts as ``read_prompt_file`` does, and looks for given images beside the file.

    Raises:
      PromptError: the file is unreadable or empty, or a line is no prompt; the line is named.
    """
    lines = read_prompt_file(path, Line, plain=Line)
    return [msgspec.structs.replace(line, images=[str(path.parent / image) for image in line.images]) for line in lines]


def jobs_of(lines: Sequence[Line], samples: int, seed: int) -> list[Job]:
    """``samples`` trajectories of every line, in order, named 000, 001, ...

    Args:
      seed: of the first trajectory; each further one has the next, unless its line names its own, from which the
        seeds of that line's samples count.

    Raises:
      PromptError: a seed is out of range, or a given image cannot be read or is too large (it is
        not decoded here).
    """
    made = []
    digits = max(3, len(str(len(lines) * samples - 1)))
    for line in lines:
        images = [Given(image, _digest(pathlib.Path(image))) for image in line.images]
        for sample in range(samples):
            number = len(made)
            own = seed + number if line.seed is None else line.seed + sample
            if not 0 <= own < 2**32:
                raise PromptError(f"{line.prompt[:60]!r}: seed {own} must be at least 0 and below 2^32")
            made.append(Job(f"{number:0{digits}d}", line.prompt, own, images))
    return made


def read_picture(path: str | pathlib.Path) -> PIL.Image.Image:
    """A PNG or JPEG as an RGB image.

    Raises:
      PromptError: it cannot be read, or has more than ``MAX_GIVEN_PIXELS`` pixels (it is not decoded then).
    """
    path = pathlib.Path(path)
    try:
        return decode_image(_bytes(path), str(path))
    except ImageError as fault:
        raise PromptError(f"{fault}") from None


def _digest(path: pathlib.Path) -> str:
    return sha256(_bytes(path))


def _bytes(path: pathlib.Path) -> bytes:
    """What an image's file holds, if its header says that it may be decoded."""
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # below, one line says the same
            width, height = image_size(data, str(path))
    except OSError as fault:
        raise PromptError(f"{path}: {fault.strerror or fault}") from None
    except ImageError as fault:
        raise PromptError(f"{fault}") from None
    if width * height > MAX_GIVEN_PIXELS:
        raise PromptError(
            f"{path}: {width} x {height} pixels are too many, at most {MAX_GIVEN_PIXELS:,} are read; scale it down"
        )
    return data
