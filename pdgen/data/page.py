"""A pack as text and as HTML pages: an overview with documents and attention mask, and the tokens of each document."""

import base64
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Int8, Int32

from pdgen.files import new_folder
from pdgen.report.page import render
from pdgen.sequence.explanation import ExplainedDocument, ExplainedPack, TokenRun
from pdgen.sequence.images import encode_png
from pdgen.sequence.layout import STREAMS

INDEX = "index.html"
_SIDE = 640  # approximate side of a mask in pixels
# The kinds of keys in a mask: name and colour, visible on light and dark pages.
KEYS = (("text", "#3f74c4"), ("ViT", "#c08a1e"), ("clean VAE", "#4f9434"), ("noised VAE", "#cf4a36"))
_NOISED = 3
_HEADER = f"{'slots':>13}  {'token':<24} {'stream':<6} {'expert':<6} {'rotary':>6} {'sees':>13} {'seen by':>13}  target"
_LINE = (128, 128, 128, 90)  # colour of the lines between documents


def draw_mask(
    intervals: Int32[np.ndarray, "4 n"], keys: Int8[np.ndarray, " n"], starts: Sequence[int] = (), side: int = _SIDE
) -> PIL.Image.Image:
    """Draw an attention mask as an RGBA picture: rows are queries, columns are keys, masked pairs are transparent.

    Large masks are scaled down: the opacity of a pixel is the share of allowed pairs in it, and its colour is the mean
    of their keys' colours. Small masks are scaled up by a whole factor.

    Args:
      intervals: k_start, k_end, q_start, q_end of slots 0 .. n - 1.
      keys: kind of each slot, an index of ``KEYS``.
      starts: slots before which a line is drawn.
      side: maximum side of the picture in pixels.
    """
    k_start, k_end, q_start, q_end = intervals
    length = len(keys)
    cells = min(side, length)
    edges = np.linspace(0, length, cells + 1).astype(np.int64)
    cell = np.repeat(np.arange(cells), np.diff(edges))
    pairs = np.zeros((cells, cells, len(KEYS)))
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        low, high = int(k_start[start:end].min()), int(k_end[start:end].max())
        query, key = np.arange(start, end)[:, None], np.arange(low, high)
        allowed = (k_start[query] <= key) & (key < k_end[query]) & (q_start[key] <= query) & (query < q_end[key])
        bins = cell[key] * len(KEYS) + keys[key]
        pairs[row] = np.bincount(bins, allowed.sum(axis=0), cells * len(KEYS)).reshape(cells, -1)
    share = pairs.sum(axis=2)
    colours = np.array([[int(colour[n : n + 2], 16) for n in (1, 3, 5)] for _, colour in KEYS])
    pixels = np.zeros((cells, cells, 4), np.uint8)
    pixels[..., :3] = np.round(pairs @ colours / np.maximum(share, 1)[..., None])
    pixels[..., 3] = np.round(255 * share / np.outer(np.diff(edges), np.diff(edges)))
    for line in cell[list(starts)]:
        pixels[line, pixels[line, :, 3] == 0] = pixels[pixels[:, line, 3] == 0, line] = _LINE
    picture = PIL.Image.fromarray(pixels)
    scale = max(1, side // cells)
    return picture.resize((cells * scale, cells * scale), PIL.Image.Resampling.NEAREST)


def render_pack(pack: ExplainedPack, title: str) -> dict[str, str]:
    """Render HTML pages by file name: ``index.html``, and ``document-<3 digits>.html`` for each document."""
    names = [f"document-{number:03d}.html" for number in range(len(pack.documents))]
    keys = _classify_keys(pack)
    used = np.bincount(pack.streams[: pack.used], minlength=len(STREAMS))
    sizes = dataclasses.astuple(pack.budgets)
    pages = {
        INDEX: render(
            "pack.html",
            title=title,
            slots=(pack.used, pack.budgets.total),
            fills=[
                {"name": name, "used": int(tokens), "size": size, "share": int(tokens) / size if size else 1.0}
                for name, tokens, size in zip(STREAMS, used, sizes)
            ],
            documents=[_describe_document(document) | {"link": name} for document, name in zip(pack.documents, names)],
            mask=_encode_mask(
                pack.intervals, keys, (0, pack.used), [document.start for document in pack.documents[1:]]
            ),
            keys=KEYS,
        )
    }
    for number, (document, name) in enumerate(zip(pack.documents, names)):
        pages[name] = render(
            "pack_document.html",
            title=f"{title}, document {number}",
            document=_describe_document(document),
            groups=_group_runs(document.runs),
            mask=_encode_mask(pack.intervals, keys, (document.start, document.end)),
            keys=KEYS,
            previous=names[number - 1] if number else None,
            next=names[number + 1] if number + 1 < len(names) else None,
        )
    return pages


def write_pack_pages(pack: ExplainedPack, target: pathlib.Path, title: str, overwrite: bool = False) -> pathlib.Path:
    """Write the pages of ``render_pack`` to a folder, atomically. Returns the path of the index page.

    Raises:
      FolderError: the folder cannot be written, or it exists and may not be replaced.
    """
    with new_folder(target, kind="explained pack", replaceable=_holds_pages, overwrite=overwrite) as folder:
        for name, page in render_pack(pack, title).items():
            (folder / name).write_text(page, encoding="utf-8")
    return target / INDEX


def _holds_pages(folder: pathlib.Path) -> bool:
    return (folder / INDEX).is_file() and (folder / "document-000.html").is_file()


def _classify_keys(pack: ExplainedPack) -> Int8[np.ndarray, " S"]:
    keys = pack.streams.copy()
    for run in (run for document in pack.documents for run in document.runs if run.noised):
        keys[run.start : run.end] = _NOISED
    return keys


def _encode_mask(
    intervals: Int32[np.ndarray, "4 S"], keys: np.ndarray, slots: tuple[int, int], starts: Sequence[int] = ()
) -> str:
    """Return a data URI of the mask of slots [start, end), which must see no other slots; "" for no slots."""
    start, end = slots
    if start == end:
        return ""
    mask = draw_mask(intervals[:, start:end] - start, keys[start:end], starts)
    return "data:image/png;base64," + base64.b64encode(encode_png(mask)).decode()


def _describe_document(document: ExplainedDocument) -> dict[str, Any]:
    tokens = {name: sum(r.end - r.start for r in document.runs if r.stream == name) for name in STREAMS}
    targets = sum(run.end - run.start for run in document.runs if run.target)
    return {"document": document, "tokens": tokens, "targets": targets}


def _group_runs(runs: Sequence[TokenRun]) -> list[dict[str, Any]]:
    """Group runs by split, each with its stage and the kind of image copy."""
    groups = []
    for _, own in itertools.groupby(runs, key=lambda run: run.split):
        own = list(own)
        holds = next((run.kind for run in own if run.stream != "text"), "")
        groups.append({"stage": own[0].stage, "holds": holds, "slots": own[-1].end - own[0].start, "runs": own})
    return groups


def format_document(document: ExplainedDocument, number: int) -> list[str]:
    """Format a document as lines of text: a heading for each split, then a line for each run."""
    head = f"document {number}: record {document.record} ({document.name}), {document.turns}, epoch {document.epoch}"
    lines = ["", head, f"dropped: {', '.join(document.dropped) or 'nothing'}", _HEADER]
    split = None
    for run in document.runs:
        if run.split != split:
            lines.append(f"  -- {run.stage}")
            split = run.split
        lines.append(_format_run(run))
    return lines


def _format_run(run: TokenRun) -> str:
    ranges = ((run.start, run.end), run.sees, run.seen_by)
    slots, sees, seen_by = (f"{start}-{end - 1}" if end > start + 1 else str(start) for start, end in ranges)
    what = f"{slots:>13}  {run.text:<24} {run.stream:<6} {run.expert:<6}"
    target = f"{run.target} (weight {run.weight:.3g})" if run.target else ""
    return f"{what} {run.rotary:>6} {sees:>13} {seen_by:>13}  {target}".rstrip()
