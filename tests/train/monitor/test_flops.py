"""The FLOPs behind MFU, against numbers worked out by hand and those published for BAGEL."""

import dataclasses

import pytest

from pdgen.config import BAGEL_7B
from pdgen.train.monitor.flops import expert_parameters, model_flops, peak_flops
from tests.support.small import CONFIG


def test_one_expert_of_bagel():
    """q and o 3584 x 3584, k and v 512 x 3584, three matrices of 3584 x 18944; 28 layers."""
    assert expert_parameters(BAGEL_7B.language) == 28 * (2 * 3584**2 + 2 * 512 * 3584 + 3 * 3584 * 18944)


def test_a_token_of_bagel_is_about_52_9_gigaflops():
    """Published runs: packs of 34,070 tokens whose samples are about 6,000 tokens long."""
    tokens, length = 34_070, 5_950
    assert model_flops(BAGEL_7B, tokens, tokens * length) / tokens == pytest.approx(52.9e9, rel=2e-3)


def test_official_training_speed_gives_its_published_mfu():
    """3,351 tokens/s on an H100 were published as 17.9 %."""
    per_token = model_flops(BAGEL_7B, 1, 5_950)
    assert 3_351 * per_token / peak_flops("NVIDIA H100 80GB HBM3") == pytest.approx(0.179, abs=1e-3)


def test_small_case_by_hand():
    """Width 32, mlp 48, 4 heads and 2 key/value heads of 8, 2 layers, vocabulary 64."""
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48
    expected = 6 * (2 * layer + 2 * 64 * 32) * 10 + 12 * 8 * 4 * 2 * 58
    assert model_flops(CONFIG, 10, 3**2 + 7**2) == expected


def test_attention_grows_with_the_square_of_a_sample_alone():
    one, two = model_flops(CONFIG, 100, 100**2), model_flops(CONFIG, 100, 2 * 50**2)
    deep = dataclasses.replace(CONFIG, language=dataclasses.replace(CONFIG.language, head_dim=0))
    assert one - two == 12 * 8 * 4 * 2 * (100**2 - 2 * 50**2)
    assert model_flops(deep, 100, 100**2) == model_flops(deep, 100, 1)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("TPU v5p", 459e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU7x", 2307e12),
        ("cpu", None),
    ],
)
def test_peaks_by_device_kind(kind, peak):
    assert peak_flops(kind) == peak
