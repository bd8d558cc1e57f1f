"""The images of a trajectory in one row, with captions."""

from collections.abc import Sequence

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

_MARGIN = 12  # around and between the images, in pixels
_FONT_SIZE = 13
_LINE_HEIGHT = 17


def make_strip(images: Sequence[PIL.Image.Image], captions: Sequence[str], height: int = 192) -> PIL.Image.Image:
    """Join images to one RGB picture, scaled to one height, each with its caption wrapped to its width.

    Images that are enlarged at least twice are first enlarged by a whole factor with square pixels (nearest neighbour).
    All other scaling uses Lanczos.

    Args:
      images: at least one, of any sizes.
      captions: one per image; line breaks are kept.
      height: height of an image in the strip, in pixels.

    Raises:
      ValueError: no images, or not one caption per image.
    """
    return join_images(add_captions(images, captions, height), _MARGIN, _MARGIN)


def join_images(images: Sequence[PIL.Image.Image], gap: int, border: int = 0) -> PIL.Image.Image:
    """Join images to one RGB picture on white, from left to right, with pixels of ``gap`` between and a border."""
    width = sum(image.width + gap for image in images) - gap + 2 * border
    row = PIL.Image.new("RGB", (width, max(image.height for image in images) + 2 * border), "white")
    left = border
    for image in images:
        row.paste(image, (left, border))
        left += image.width + gap
    return row


def add_captions(
    images: Sequence[PIL.Image.Image], captions: Sequence[str], height: int = 192
) -> list[PIL.Image.Image]:
    """Scale images as ``make_strip`` does and add the captions below, on white. Same arguments and errors."""
    if not images or len(images) != len(captions):
        raise ValueError(f"a strip needs images and one caption each, got {len(images)} and {len(captions)}")
    return [_add_caption(image, caption, height) for image, caption in zip(images, captions)]


def _add_caption(image: PIL.Image.Image, caption: str, height: int) -> PIL.Image.Image:
    font = PIL.ImageFont.load_default(_FONT_SIZE)
    image = _scale(image.convert("RGB"), height)
    lines = _wrap(caption, font, image.width)
    still = PIL.Image.new("RGB", (image.width, height + _MARGIN + _LINE_HEIGHT * len(lines)), "white")
    still.paste(image)
    draw = PIL.ImageDraw.Draw(still)
    for number, line in enumerate(lines):
        draw.text((0, height + _MARGIN + number * _LINE_HEIGHT), line, fill="black", font=font)
    return still


def _scale(image: PIL.Image.Image, height: int) -> PIL.Image.Image:
    factor = height // image.height
    if factor >= 2:
        image = image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)
    if image.height == height:
        return image
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), PIL.Image.Resampling.LANCZOS)


def _wrap(text: str, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont, width: int) -> list[str]:
    """Wrap a text to lines of at most ``width`` pixels; words that are longer are split."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while font.getlength(word) > width and len(word) > 1:
                cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                lines += [line] * bool(line) + [word[:cut]]
                line, word = "", word[cut:]
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
