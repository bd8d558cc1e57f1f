"""HTML pages of trajectories: one file without network access, for large and small screens."""

import base64
import collections
import dataclasses
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2

from pdgen.report.changes import Change, find_changes
from pdgen.sequence.images import CHANGE, encode_png
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory

_TAGGED = re.compile(r"<(ins|des|refine)>(.*?)<[/\\]\1>", re.DOTALL)
_TAG_LABELS = {"ins": "instruction", "des": "description", "refine": "refine"}
PIXELATED_BELOW = 128  # images with a shorter longest side, in pixels, are shown with square pixels
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
      link: the trajectory's folder relative to the page, whose PNGs are linked. None: images are embedded.
      files: further files in that folder to link, such as an animation.
      changes: the change of each image against the one before; computed from the images if None. With a link, the
        images are needed for this only.
    """

    name: str
    trajectory: Trajectory
    link: str | None = None
    files: Sequence[str] = ()
    changes: Sequence[Change | None] | None = None

    def __post_init__(self) -> None:
        if self.changes is None:
            object.__setattr__(self, "changes", find_changes(self.trajectory.images))

    def without_images(self) -> "Entry":
        """Drop images and latents, which take much memory. Only for entries with a link."""
        return dataclasses.replace(self, trajectory=dataclasses.replace(self.trajectory, images=(), latents=None))


def render(template: str, **values: Any) -> str:
    """Render a template; text is escaped. Raises jinja2.UndefinedError if a value of the template is missing."""
    return _ENVIRONMENT.get_template(template).render(**values)


def render_trajectories(entries: Sequence[Entry], title: str = "Trajectories") -> str:
    """Render an HTML page with all stages of all trajectories, their stop reasons and costs.

    A branch is shown beside its parent, without the steps that both share. Each image has an outline of its change
    against the one before, if both have the same size. Settings that all trajectories share are listed once.
    """
    stops = collections.Counter(_get_stop_reason(entry.trajectory) for entry in entries)
    stages = [stage for entry in entries for stage in entry.trajectory.stages]
    drawn = sum(isinstance(stage, ImageStage) and stage.stage != "given" for stage in stages)
    counts = {"trajectories": len(entries), "images drawn": drawn} | dict(stops.most_common())
    common = _find_common([_collect_settings(entry.trajectory) for entry in entries])
    return render(
        "trajectories.html",
        title=title,
        summary=[f"{name}: {count:,}" for name, count in counts.items()],
        stops=sorted(stops),
        threshold=CHANGE,
        common=common,
        families=[_describe_family(members, common) for members in group_families(entries)],
    )


def group_families(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Group entries to families: each entry is followed by its branches. Branches without their parent are roots."""
    known = {entry.trajectory.fingerprint for entry in entries}
    branches = collections.defaultdict(list)
    roots = []
    for entry in entries:
        parent = entry.trajectory.parent
        (branches[parent.fingerprint] if parent and parent.fingerprint in known else roots).append(entry)

    def walk(entry: Entry) -> Iterator[Entry]:
        yield entry
        for branch in branches[entry.trajectory.fingerprint]:
            yield from walk(branch)

    return [list(walk(root)) for root in roots]


def split_tags(text: str) -> list[tuple[str, str]]:
    """Split a text at its tags to (label, words), with label "" outside tags. A stray tag remains in the words.

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


def _get_stop_reason(trajectory: Trajectory) -> str:
    return trajectory.stop_reason or "unfinished"


def _collect_settings(trajectory: Trajectory) -> dict[str, Any]:
    known = {"mode": trajectory.mode, "checkpoint": trajectory.checkpoint, "model hash": trajectory.model_hash}
    return {**known, **trajectory.settings}


def _find_common(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that all trajectories share, with equal values."""
    if not settings:
        return {}
    first, *others = settings
    return {key: value for key, value in first.items() if all(o.get(key, ...) == value for o in others)}


def _describe_family(members: Sequence[Entry], common: dict[str, Any]) -> dict[str, Any]:
    """Collect the template's values for a trajectory and its branches, and the words that the filter searches."""
    names = {member.trajectory.fingerprint: member.name for member in members}
    articles = [_describe_trajectory(member, common, names) for member in members]
    column = 1
    for article in articles:
        end = -1 if article is articles[-1] else column + len(article["steps"])
        article["columns"] = (column, end)
        column += len(article["steps"])
    words = {word for member in members for word in (member.name, member.trajectory.mode, member.trajectory.prompt)}
    return {
        "name": members[0].name,
        "articles": articles,
        "columns": column - 1,
        "words": " ".join(sorted(words)).lower(),
        "stops": "|".join(sorted({_get_stop_reason(member.trajectory) for member in members})),
    }


def _describe_trajectory(entry: Entry, common: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Collect the template's values for one trajectory; ``names`` holds the names of its family by fingerprint.

    ``steps`` are columns of stages around one image. A branch beside its parent begins with the column that contains
    its first own stage.
    """
    trajectory, parent = entry.trajectory, entry.trajectory.parent
    beside = parent is not None and parent.fingerprint in names
    fork = parent.stage if beside else 0
    steps = _group_steps(trajectory, _describe_stages(entry, fork))
    first = next((n for n, step in enumerate(steps) if any(not shown["kept"] for shown in step)), len(steps))
    settings = {key: value for key, value in _collect_settings(trajectory).items() if key not in common}
    folder = (entry.link or "").rstrip("/")
    return {
        "name": entry.name,
        "title": entry.name if beside else trajectory.prompt,
        "trajectory": trajectory,
        "branch_of": f"{names.get(parent.fingerprint, parent.fingerprint)} from stage {parent.stage}" if parent else "",
        "stop": _get_stop_reason(trajectory),
        "steps": steps[first:],
        "costs": {key.replace("_", " "): value for key, value in trajectory.costs.items()},
        "settings": settings,
        "files": {name: urllib.parse.quote(f"{folder}/{name}") for name in entry.files},
    }


def _group_steps(trajectory: Trajectory, shown: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group stages by step: after an image, any stage but an inspection or an answer begins the next step."""
    steps: list[list[dict[str, Any]]] = []
    closed = True
    for stage, one in zip(trajectory.stages, shown):
        if not steps or (closed and stage.stage not in ("inspect", "answer")):
            steps.append([])
            closed = False
        closed = closed or isinstance(stage, ImageStage)
        steps[-1].append(one)
    return steps


def _describe_stages(entry: Entry, fork: int) -> list[dict[str, Any]]:
    """Collect the template's values for every stage; those before ``fork`` are the parent's."""
    assert entry.changes is not None  # set when the entry was made
    stages = entry.trajectory.stages
    pictures = zip(_get_sources(entry), entry.changes)
    shown = [_describe_image(s, *next(pictures)) if isinstance(s, ImageStage) else _describe_text(s) for s in stages]
    for number, (stage, one) in enumerate(zip(stages, shown)):
        remark = "kept" if number < fork else "from outside" if stage.origin == "outside" else ""
        one |= {"stage": stage.stage, "number": number, "kept": number < fork, "remark": remark}
    return shown


def _describe_text(stage: TextStage) -> dict[str, Any]:
    notes = [f"{stage.tokens} tokens"] * bool(stage.tokens) + [f"{stage.seconds:.1f} s"] * bool(stage.seconds)
    return {"spans": split_tags(stage.text), "note": ", ".join(notes)}


def _describe_image(stage: ImageStage, source: str, changed: Change | None) -> dict[str, Any]:
    notes = [f"{stage.width} x {stage.height} px"] + [f"{stage.steps} steps"] * bool(stage.steps)
    notes += [f"{stage.seconds:.1f} s"] * bool(stage.seconds)
    notes += [f"{changed.share:.0%} changed"] if changed else []
    return {
        "source": source,
        "width": stage.width,
        "height": stage.height,
        "pixelated": max(stage.width, stage.height) < PIXELATED_BELOW,
        "changed": changed,
        "note": ", ".join(notes),
    }


def _get_sources(entry: Entry) -> list[str]:
    """Return the source of each image: a link to its file, or a data URI."""
    if entry.link is not None:
        files = [stage.file for stage in entry.trajectory.stages if isinstance(stage, ImageStage)]
        return [urllib.parse.quote(f"{entry.link.rstrip('/')}/{file}") for file in files]
    return ["data:image/png;base64," + base64.b64encode(encode_png(i)).decode() for i in entry.trajectory.images]
