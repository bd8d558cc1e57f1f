"""Pages of a pack: the mask against a dense one, and every token on its document's page."""

import base64
import io
import re

import numpy as np
import PIL.Image
import pytest

from pdgen.data.page import KEYS, draw_mask, render_pack
from pdgen.sequence.explanation import ExplainedDocument, ExplainedPack, TokenRun
from pdgen.sequence.layout import Budgets, intervals

MODES, LENGTHS = ("causal", "noise", "full", "causal"), (40, 60, 70, 30)
MASK = np.stack(intervals(MODES, LENGTHS))
KINDS = np.repeat([0, 3, 2, 0], LENGTHS).astype(np.int8)


def dense():
    k_start, k_end, q_start, q_end = MASK
    q, k = np.arange(200)[:, None], np.arange(200)
    return (k_start[:, None] <= k) & (k < k_end[:, None]) & (q_start <= q) & (q < q_end)


def test_a_small_mask_is_the_dense_one_in_colours():
    picture = np.asarray(draw_mask(MASK, KINDS, side=450))
    assert picture.shape == (400, 400, 4)
    small = picture[::2, ::2]
    np.testing.assert_array_equal(small, picture[1::2, 1::2])
    np.testing.assert_array_equal(small[..., 3], dense() * 255)
    colours = np.array([[int(c[n : n + 2], 16) for n in (1, 3, 5)] for _, c in KEYS])
    np.testing.assert_array_equal(small[..., :3], colours[KINDS] * dense()[..., None])


def test_a_large_mask_is_the_mean_of_its_pairs():
    picture = np.asarray(draw_mask(MASK, KINDS, side=50))
    shares = dense().reshape(50, 4, 50, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(picture[..., 3], np.round(255 * shares))


def test_cells_of_unequal_size_keep_the_area():
    picture = np.asarray(draw_mask(MASK, KINDS, side=33)).astype(float)
    edges = np.diff(np.linspace(0, 200, 34).astype(int))
    pairs = (picture[..., 3] / 255 * np.outer(edges, edges)).sum()
    assert pairs == pytest.approx(dense().sum(), rel=2e-3)


def test_lines_precede_documents_and_hide_nothing():
    plain, lined = (np.asarray(draw_mask(MASK, KINDS, starts, side=200)) for starts in ((), (100,)))
    changed = (plain != lined).any(axis=2)
    assert changed[100].sum() + changed[:, 100].sum() - changed[100, 100] == changed.sum() > 0
    assert not changed[plain[..., 3] > 0].any()


def run(start, end, split, stage, **changes):
    values = {
        "stream": "text",
        "noised": False,
        "token": "",
        "rotary": start,
        "sees": (0, end),
        "seen_by": (start, 12),
        "target": "",
        "weight": 0.0,
    }
    return TokenRun(start, end, split, stage, **(values | changes))


@pytest.fixture(scope="module")
def pages():
    runs = (
        run(0, 1, 0, "prompt", token="<|im_start|>"),
        run(1, 2, 0, "prompt", token="<ins>", target="\u2423red", weight=0.5),
        run(2, 8, 1, "sketch", stream="vae", noised=True, target="velocity", weight=1.0),
    )
    file = "part-00000.array_record"
    first = ExplainedDocument("r<1>", f"{file}: record 1", 2, "turn 1 of 2", ("ViT copy of segment 2 (sketch)",), runs)
    second = ExplainedDocument("r2", f"{file}: record 2", 0, "whole", (), (run(8, 12, 0, "plan", token="b"),))
    streams = np.array([0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 1, 2], np.int8)
    starts = np.repeat([0, 8, 12], [8, 4, 3])
    ends = np.repeat([8, 12, 12], [8, 4, 3])
    mask = np.stack([starts, ends, starts, ends]).astype(np.int32)
    return render_pack(ExplainedPack(7, Budgets(8, 1, 6), (first, second), streams, mask), "Pack 7 of data")


def test_the_overview(pages):
    assert list(pages) == ["index.html", "document-000.html", "document-001.html"]
    index = pages["index.html"]
    assert "2 documents in 12 of 15 slots" in index
    for cells in (("text", 6, 8, "75.0 %"), ("vit", 0, 1, "0.0 %"), ("vae", 6, 6, "100.0 %")):
        found = "".join(f"<td>{cell}</td>" for cell in cells[1:])
        assert f'<td class="left">{cells[0]}</td>{found}' in index.replace("\n", "")
    assert "r&lt;1&gt;" in index and "r<1>" not in index
    assert 'href="document-001.html"' in index and "0 to 7" in index and "8 to 11" in index
    assert index.count("data:image/png;base64,") == 1 and "http" not in index


def test_noised_keys_have_their_own_colour(pages):
    data = re.search(r"data:image/png;base64,([^\"]+)", pages["document-000.html"])[1]
    pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))
    scale = len(pixels) // 8
    assert pixels[5 * scale, 3 * scale].tolist() == [0xCF, 0x4A, 0x36, 255]


def test_a_documents_page(pages):
    page = pages["document-000.html"].replace("\n", "")
    assert "ViT copy of segment 2 (sketch)" in page and "turn 1 of 2, in epoch 2" in page
    assert '<td class="token">&lt;ins&gt;</td><td class="target">\u2423red</td><td>0.5</td><td>1</td>' in page
    assert '<td class="token">6 noised VAE tokens</td><td class="target">velocity</td><td>1</td><td>2 to 7</td>' in page
    assert "Prompt, 2 slots" in page and "Sketch, noised VAE copy, 6 slots" in page
    assert 'href="document-001.html"' in page and "Previous document" not in page
    assert "Next document" not in pages["document-001.html"] and "Previous document" in pages["document-001.html"]


def test_a_pack_of_padding_has_an_overview():
    streams = np.repeat([0, 1, 2], [4, 1, 1]).astype(np.int8)
    pages = render_pack(ExplainedPack(0, Budgets(4, 1, 1), (), streams, np.zeros((4, 6), np.int32)), "Pack 0")
    assert list(pages) == ["index.html"] and "0 documents in 0 of 6 slots" in pages["index.html"]
