"""Arithmetic of the benchmarks, and a run of the accelerator benchmark at the smallest sizes."""

import json

import jax
import numpy as np
import pytest

from benchmarks import base_curve, gpu
from benchmarks.process_pack import make_process_pack
from pdgen.config import BAGEL_7B, ComputeConfig
from pdgen.evaluate.abilities.prompts import make_draws
from pdgen.evaluate.abilities.scores import AbilityOutcome
from pdgen.evaluate.errors import EvaluationError
from pdgen.train.monitor.flops import model_flops
from tests.support.small import CONFIG

SIZES = gpu.Sizes(
    model=CONFIG,
    compute=ComputeConfig(block_q=32, block_k=32, remat="full", loss_chunk=64),
    layers=(1, 2),
    tokens=400,
    pack_side=16,
    side=16,
    timesteps=3,
    context=5,
    words=3,
    rounds=1,
)


def test_packs_have_the_paper_s_proportions():
    """At 512 pixels the copies of an image are 3,423 tokens: 1,024 twice and 37 * 37, with two switch tokens each."""
    pack, lengths = make_process_pack(BAGEL_7B, 512, 33_000)
    copies = 2 * (1024 + 2) + (37 * 37 + 2)
    one = 42 + 102 + copies + 42  # of one image: prompt, plan, copies, inspection
    assert copies == 3423
    assert lengths == (one + 2 * (one - 42), one + 3 * (one - 42), one + (one - 42))  # of 3, 4 and then 2 images
    assert sum(lengths) <= 33_000 < sum(lengths) + one
    assert len(pack.rotary) % 128 == 0 and len(pack.rotary) - sum(lengths) < 3 * 128
    assert int((pack.k_end > 0).sum()) == sum(lengths)


def test_a_pack_too_short_for_one_image_is_refused():
    with pytest.raises(ValueError, match=r"a trajectory with one image of 512 pixels is 3609 tokens, more than 3000"):
        make_process_pack(BAGEL_7B, 512, 3000)


def test_all_layers_follow_from_two_depths(monkeypatch):
    """2 s and 3 s with 4 and 8 layers: 0.25 s a layer, so 28 of them take 8 s."""
    seconds = {4: 2.0, 8: 3.0}
    monkeypatch.setattr(gpu, "measure_step", lambda _, n, pack: {"layers": n, "seconds": seconds[n], "bytes": 0})
    monkeypatch.setattr(gpu, "get_device_peak", lambda: 1e15)
    sizes = gpu.Sizes(BAGEL_7B, SIZES.compute, (4, 8), 33_000, 512, 1024, 50, 100, 100, 1)
    result = gpu.measure_train(sizes)
    lengths = make_process_pack(BAGEL_7B, 512, 33_000)[1]
    assert result["extrapolated_seconds"] == pytest.approx(8.0)
    assert result["tokens_per_second"] == pytest.approx(sum(lengths) / 8)
    flops = model_flops(BAGEL_7B, sum(lengths), float(np.sum(np.square(lengths))))
    assert result["mfu"] == pytest.approx(flops / 8e15)


@pytest.fixture
def quick_compiler():
    """Compile with few optimisations: the machine code runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_every_part_runs(quick_compiler):
    result = gpu.measure(SIZES, list(gpu.PARTS))
    assert list(result) == list(gpu.PARTS)
    assert result["train"]["mfu"] is None and result["train"]["measured"][1]["layers"] == 2
    assert min(row["seconds"] for row in result["train"]["measured"]) > 0
    assert result["image"]["every_step"]["forward_passes"] >= 2
    layer = 32 * (2 * 4 + 2 * 2) * 8 + 3 * 32 * 48  # q and o, k and v, mlp
    small = 2 * 32 + 2 * 8 + (4 + 2 * 2) * 8  # norms and biases
    assert result["text"]["bytes_a_token"] == 4 * (2 * (layer + small) + 64 * 32)
    assert result["attention"]["seconds"] > 0 and result["attention"]["bytes"] > 0


def test_a_curve_has_image_draws_and_every_row(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    lines = [{"step": n, "images_per_second": 60.0, "step_seconds": s} for n, s in ((50, 1.5), (100, 2.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"step": 1}, *lines]))
    assert base_curve.count_images_per_step(str(tmp_path), None) == 120.0
    assert base_curve.count_images_per_step(None, 7.0) == 7.0
    with pytest.raises(EvaluationError, match="--run: name the run's workdir, or --images_per_step"):
        base_curve.count_images_per_step(None, None)
    assert base_curve.read_checkpoints(["300=b", "20=a=c"]) == {20: "a=c", 300: "b"}
    for wrong in (["a"], ["x=a"], ["3=a", "3=b"]):
        with pytest.raises(EvaluationError, match=f"--checkpoint={wrong[-1]}: write STEP=FOLDER"):
            base_curve.read_checkpoints(wrong)
    every = make_draws(2, rows=base_curve.ROWS)
    found = [
        AbilityOutcome(d.job.name, d.case.group, d.case.row, "", 0, {"right": float(n % 2)})
        for n, d in enumerate(every)
    ]
    rows = base_curve.compute_scores(found)
    assert len(rows) == 14 and rows["reading: caption"] == {"value": 0.5, "low": 0.0, "high": 1.0, "prompts": 2}
    figure = base_curve.plot_scores([{"image_draws": n, "rows": rows} for n in (1200, 36_000)])
    assert [len(axes.lines) for axes in figure.axes] == [6, 4, 4]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1200, 36_000]
