"""HTML pages of trajectories: one file, no network, readable on a desk and on a phone."""

import base64
import collections
import dataclasses
import io
import pathlib
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

import jinja2
import PIL.Image

from pdgen.interleave.trajectory import ImageStage, TextStage, Trajectory

_TAGGED = re.compile(r"<(ins|des|refine)>(.*?)<[/\\]\1>", re.DOTALL)
_TAG_LABELS = {"ins": "instruction", "des": "description", "refine": "refine"}
# Below this side, in pixels, an image is shown with its pixels square.
_PIXELATED_BELOW = 128
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One trajectory of a page.

    Attributes:
      name: how the page calls it, e.g. its folder's name.
      trajectory: what was sampled.
      images: one per image stage, in order. They are embedded in the page, unless there is a ``link``.
      link: the trajectory's folder as seen from the page; its PNGs are then linked ``images`` is unused.
    """

    name: str
    trajectory: Trajectory
    images: Sequence[PIL.Image.Image] = ()
    link: str | None = None


def render(template: str, **values: Any) -> str:
    """The named template filled in; text is escaped, a value that the template lacks raises."""
    return _ENVIRONMENT.get_template(template).render(**values)


def trajectory_page(entries: Sequence[Entry], title: str = "Trajectories") -> str:
    """An HTML page that shows every stage of every trajectory, with how it stopped and what it cost.

    Raises:
      ValueError: an entry without ``link`` has not one image per image stage.
    """
    stops = collections.Counter(entry.trajectory.stop_reason for entry in entries)
    drawn = sum(_is_drawn(stage) for entry in entries for stage in entry.trajectory.stages)
    counts = {"trajectories": len(entries), "images drawn": drawn} | dict(stops.most_common())
    summary = [f"{name}: {count}" for name, count in counts.items()]
    return render("trajectories.html", title=title, summary=summary, articles=[_article(e) for e in entries])


def _is_drawn(stage: TextStage | ImageStage) -> bool:
    return isinstance(stage, ImageStage) and stage.stage != "given"


def split_tags(text: str) -> list[tuple[str, str]]:
    """A text cut at its tags: (label, words), label "" for words outside; a stray tag stays among the words.

    >>> split_tags("Wrong. <refine>Turn it.</refine>")
    [('', 'Wrong.'), ('refine', 'Turn it.')]
    """
    spans, end = [], 0
    for match in _TAGGED.finditer(text):
        spans.append(("", text[end : match.start()].strip()))
        spans.append((_TAG_LABELS[match.group(1)], match.group(2).strip()))
        end = match.end()
    spans.append(("", text[end:].strip()))
    return [span for span in spans if span[0] or span[1]]


def _article(entry: Entry) -> dict[str, Any]:
    """What the template shows of one trajectory: its steps, each a column of stages around one image."""
    sources = iter(_image_sources(entry))
    steps: list[list[dict[str, Any]]] = []
    closed = True  # the last step has its image, and whatever is not an inspection of it opens the next
    for stage in entry.trajectory.stages:
        is_image = isinstance(stage, ImageStage)
        if not steps or (closed and stage.stage not in ("inspect", "answer")):
            steps.append([])
            closed = False
        closed = closed or is_image
        steps[-1].append(_shown_image(stage, next(sources)) if is_image else _shown_text(stage))
    return {"name": entry.name, "trajectory": entry.trajectory, "steps": steps}


def _shown_text(stage: TextStage) -> dict[str, Any]:
    notes = [f"{stage.tokens} tokens"] * bool(stage.tokens) + [f"{stage.seconds:.1f} s"] * bool(stage.seconds)
    return {"stage": stage.stage, "spans": split_tags(stage.text), "note": ", ".join(notes)}


def _shown_image(stage: ImageStage, source: str) -> dict[str, Any]:
    notes = [f"{stage.width} x {stage.height} px"] + [f"{stage.steps} steps"] * bool(stage.steps)
    notes += [f"{stage.seconds:.1f} s"] * bool(stage.seconds)
    return {
        "stage": stage.stage,
        "source": source,
        "width": stage.width,
        "height": stage.height,
        "pixelated": max(stage.width, stage.height) < _PIXELATED_BELOW,
        "note": ", ".join(notes),
    }


def _image_sources(entry: Entry) -> list[str]:
    """A link or a data URI per image stage."""
    stages = [stage for stage in entry.trajectory.stages if isinstance(stage, ImageStage)]
    if entry.link is not None:
        folder = entry.link.rstrip("/")
        return [urllib.parse.quote(f"{folder}/{stage.file}") for stage in stages]
    if len(stages) != len(entry.images):
        raise ValueError(f"{entry.name}: {len(stages)} image stages, but {len(entry.images)} images")
    sources = []
    for image in entry.images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        sources.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return sources
