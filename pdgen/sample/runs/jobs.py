"""The jobs of a sampled run: prompts with their seeds and given images, from flags or from a file."""

import pathlib
from collections.abc import Sequence

import msgspec
import PIL.Image

from pdgen.data.prompts import PromptError, read_prompt_file
from pdgen.files import sha256
from pdgen.sequence.images import ImageError, decode_image, image_size


class GivenImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A given image: its file, and the SHA-256 (hex) of the file when the run began."""

    path: str
    sha256: str


class SampleJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One trajectory to sample. ``name``: of its folder in the run's folder."""

    name: str
    prompt: str
    seed: int
    images: list[GivenImage]


class PromptLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a JSON lines file: a prompt, its first seed (default: the run's next) and paths of given images.

    Raises:
      PromptError: the prompt is empty.
    """

    prompt: str
    seed: int | None = None
    images: list[str] = []

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise PromptError("a prompt is empty; say what to draw")


def read_prompts(path: pathlib.Path) -> list[PromptLine]:
    """Read a file of prompts as ``read_prompt_file`` does; paths of given images are relative to the file.

    Raises:
      PromptError: the file is unreadable or empty, or a line is no prompt; the message names the line.
    """
    lines = read_prompt_file(path, PromptLine, plain=PromptLine)
    return [msgspec.structs.replace(line, images=[str(path.parent / image) for image in line.images]) for line in lines]


def make_jobs(lines: Sequence[PromptLine], samples: int, seed: int) -> list[SampleJob]:
    """Make ``samples`` jobs of every line, in order, named 000, 001, ...

    Args:
      seed: of the first job; each further job has the next seed. The samples of a line with its own seed count from
        that seed.

    Raises:
      PromptError: a seed is out of range, or a given image cannot be read or is too large. Images are not decoded.
    """
    jobs: list[SampleJob] = []
    digits = max(3, len(str(len(lines) * samples - 1)))
    for line in lines:
        images = [GivenImage(image, sha256(_read_checked(pathlib.Path(image)))) for image in line.images]
        for sample in range(samples):
            number = len(jobs)
            own = seed + number if line.seed is None else line.seed + sample
            if not 0 <= own < 2**32:
                raise PromptError(f"{line.prompt[:60]!r}: seed {own} must be at least 0 and below 2^32")
            jobs.append(SampleJob(f"{number:0{digits}d}", line.prompt, own, images))
    return jobs


def read_picture(path: str | pathlib.Path) -> PIL.Image.Image:
    """Read an image file as ``pdgen.sequence.images.decode_image`` does. Raises PromptError where that fails."""
    path = pathlib.Path(path)
    try:
        return decode_image(_read_checked(path), str(path))
    except ImageError as fault:
        raise PromptError(f"{fault}") from None


def _read_checked(path: pathlib.Path) -> bytes:
    """Read an image's file. Raises PromptError where its header is no image's, or announces too large an image."""
    try:
        data = path.read_bytes()
        image_size(data, str(path))
    except OSError as fault:
        raise PromptError(f"{path}: {fault.strerror or fault}") from None
    except ValueError as fault:  # of the image, or of a path with a null byte
        words = f"{fault}" if isinstance(fault, ImageError) else f"{str(path)!r}: cannot be opened ({fault})"
        raise PromptError(words) from None
    return data
