"""docs/method.md: its functions exist; its tables, formulas and worked trajectory agree with the code."""

import contextlib
import io
import pathlib
import pkgutil
import re

import jax
import numpy as np
import pytest

from pdgen.assets import shapes_folder
from pdgen.models.parameters import Leaf
from pdgen.sequence.explanation import readable
from pdgen.sequence.segments import CLEAN, NOISED, TEXT, VIT, document_units, switch_targets, unit_kinds
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image, Record, Text, check_grammar
from pdgen.train.optimizer import MUON_RMS, OptimizerConfig, make_optimizer

METHOD = (pathlib.Path(__file__).parents[1] / "docs" / "method.md").read_text()
NAMES = sorted(set(re.findall(r"\bpdgen(?:\.\w+)+", re.sub(r"```.*?```", "", METHOD, flags=re.DOTALL))))


@pytest.mark.parametrize("name", NAMES)
def test_named_functions_exist(name):
    pkgutil.resolve_name(name)


@pytest.mark.parametrize(("name", "value"), re.findall(r"`(pdgen[\w.]+)` = (\d[\d.]*\d|\d)", METHOD))
def test_named_constants(name, value):
    assert pkgutil.resolve_name(name) == float(value)


@pytest.fixture(scope="module")
def worked():
    """The output of the program of the worked trajectory, and its variables."""
    program = re.search(r"```python\n(.*?)```", METHOD, flags=re.DOTALL)[1]
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    return printed.getvalue(), names


def test_worked_tokens(worked):
    listing = re.search(r"```\n(document 0.*?)```", METHOD, flags=re.DOTALL)[1]
    assert worked[0].strip() == listing.strip()


def table(head):
    """Return the cells of the document's table under the line ``head``."""
    lines = METHOD.partition(head + "\n")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_worked_segments(worked):
    record, document = worked[1]["record"], worked[1]["document"]
    segment_of = [number for number, _ in document_units(record, load_tokenizer(shapes_folder()))]
    rows = table("| segment | what it holds | target |")
    for number, (segment, (stage, holds, target)) in enumerate(zip(record.segments, rows, strict=True)):
        *inner, closing = [run for run in document.runs if segment_of[run.split] == number]
        learnt = [run.target for run in inner if run.target]
        assert segment.stage == stage
        if isinstance(segment, Text):
            assert f"`{segment.text}`" == holds
            assert learnt in ([], [run.token for run in (*inner[1:], closing)])
        else:
            assert learnt in ([], ["velocity"])
        parts = ["velocity" if learnt == ["velocity"] else "words"] if learnt else []
        parts += [f"`{closing.target}` at {closing.start}"] if closing.target else []
        assert "; ".join(parts) == target


def test_switches_after_a_wrong_plan():
    rows = table("| segment | has its own loss | its switch |")
    segments = []
    for stage, learnt, _ in rows:
        if stage in ("sketch", "refine"):
            segments.append(Image(stage=stage, png=b"", target=learnt == "yes"))
        else:
            words = {"prompt": "a dog", "plan": "<ins>a</ins> <des>a</des>", "inspect": "<refine>a</refine>"}[stage]
            segments.append(Text(stage=stage, text=words, target=learnt == "yes"))
    record = Record(id="worked", source="conflict", complete=False, segments=segments)
    check_grammar(record)
    tokenizer = load_tokenizer(shapes_folder())
    labels = switch_targets(record, tokenizer)
    assert [f"`{readable(tokenizer, n)}`" if n is not None else "" for n in labels] == [row[2] for row in rows]


COPIES = {TEXT: "text", NOISED: "noised", CLEAN: "clean", VIT: "ViT"}
WORDS = {"plan": "<ins>a</ins> <des>a</des>"}


@pytest.mark.parametrize(("mode", "stages", "copies"), table("| mode | segments | copies |"))
def test_copies_of_a_record(mode, stages, copies):
    segments = []
    for stage in stages.split(", "):
        target = stage not in ("prompt", "given")
        drawn = stage in ("given", "sketch")
        segments.append(Image(stage, b"", target) if drawn else Text(stage, WORDS.get(stage, "a"), target))
    record = Record(id="copies", source="test", complete=True, segments=segments, mode=mode)
    check_grammar(record)
    assert "; ".join(", ".join(COPIES[kind] for kind in kinds) for kinds in unit_kinds(record)) == copies


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_muon_updates_as_written(shape):
    """A layer's matrix over three steps, the formulas in float64."""
    leaves = {"kernel": Leaf((1, *shape), (None,) * 3, jax.nn.initializers.zeros, inputs=1, stacked=True)}
    config = OptimizerConfig(name="muon", learning_rate=0.1, schedule="constant", clip_norm=1e9)
    optimizer = make_optimizer(config, 10, {"kernel": 0.5}, leaves)
    params = {"kernel": np.zeros((1, *shape), np.float32)}
    state, rng, M = optimizer.init(params), np.random.default_rng(0), np.zeros(shape)
    for _ in range(3):
        G = rng.normal(size=shape)
        updates, state = optimizer.update({"kernel": G[None].astype(np.float32)}, state, params)
        M = G + config.b2 * M
        X = G + config.b2 * M
        X = (X.T if shape[0] > shape[1] else X) / (np.sqrt((X * X).sum()) + 1e-8)
        for _ in range(5):
            A = X @ X.T
            X = 3.4445 * X + (2.0315 * A @ A - 4.775 * A) @ X
        expected = -0.1 * 0.5 * MUON_RMS * np.sqrt(8) * (X.T if shape[0] > shape[1] else X)
        np.testing.assert_allclose(updates["kernel"][0], expected, atol=1e-5)
