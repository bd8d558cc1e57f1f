"""The table of names, against the public checkpoint's counts, the golden folder and the Flax models' trees."""

import dataclasses
import math

import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pdgen.checkpoints.mapping import RULES, array_shapes, autoencoder_places, expected_tensors, places
from pdgen.config import (
    BAGEL_7B,
    NANO,
    PRESETS,
    AutoencoderConfig,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
    read_config,
)
from pdgen.models import autoencoder, bagel

from .folders import AUTOENCODER, GOLDEN, WEIGHTS


@pytest.mark.parametrize("part, tensors, values", [("model", 1_223, 14_607_260_128), ("autoencoder", 244, 83_819_683)])
def test_counts_of_the_public_checkpoint(part, tensors, values):
    expected = expected_tensors(BAGEL_7B, (part,))
    assert len(expected) == tensors
    assert sum(map(math.prod, expected.values())) == values


@pytest.mark.parametrize("part, file", [("model", WEIGHTS), ("autoencoder", AUTOENCODER)])
def test_golden_names_and_shapes(part, file):
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(GOLDEN / file).items()}
    assert expected_tensors(read_config(GOLDEN), (part,)) == shapes


def test_every_name_matches_exactly_one_rule():
    patterns = [rule.pattern() for rule in RULES]
    for name in expected_tensors(BAGEL_7B, ("model",)):
        assert sum(bool(pattern.fullmatch(name)) for pattern in patterns) == 1, name


def test_numbers_match_in_their_usual_form_alone():
    patterns = [rule.pattern() for rule in RULES]
    name = "language_model.model.layers.{}.input_layernorm.weight"
    found = [[bool(p.fullmatch(name.format(n))) for p in patterns].count(True) for n in ("0", "10", "01", "-1", "x")]
    assert found == [1, 1, 0, 0, 0]


def flax_shapes(config):
    model = nn.unbox(bagel.abstract_params(config))
    tree = {"model": model, "autoencoder": autoencoder.abstract_params(config.autoencoder)}
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


@pytest.mark.parametrize("name", PRESETS)
def test_the_tree_is_that_of_the_flax_models(name):
    assert array_shapes(PRESETS[name]) == flax_shapes(PRESETS[name])


numbers = st.integers(1, 4)


@st.composite
def configs(draw):
    kv_heads = draw(numbers)
    language = LanguageConfig(
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=4 * draw(numbers),
        intermediate_size=draw(st.integers(1, 40)),
        num_layers=draw(numbers),
        num_heads=kv_heads * draw(numbers),
        num_kv_heads=kv_heads,
        head_dim=2 * draw(numbers),
    )
    heads = draw(numbers)
    vision = VisionConfig(
        hidden_size=4 * heads * draw(numbers),
        intermediate_size=draw(st.integers(1, 40)),
        num_layers=draw(numbers),
        num_heads=heads,
        patch_size=draw(numbers),
        max_side=draw(numbers),
    )
    groups = draw(numbers)
    coder = AutoencoderConfig(
        channels=groups * draw(numbers),
        num_groups=groups,
        multipliers=tuple(draw(st.lists(numbers, min_size=1, max_size=3))),
        num_blocks=draw(st.integers(1, 3)),
        z_channels=draw(numbers),
    )
    return ModelConfig(language, vision, coder, latent_patch_size=draw(numbers), max_latent_size=draw(numbers))


@settings(max_examples=6)
@given(configs())
def test_the_tree_is_that_of_the_flax_models_at_any_size(config):
    assert array_shapes(config) == flax_shapes(config)


def test_slots_reshape_tensors_and_fill_every_array():
    filled = dict.fromkeys(array_shapes(NANO), 0)
    for place in places(NANO).values():
        assert math.prod(place.slot) == math.prod(place.shape)
        filled[place.path] += math.prod(place.slot)
    assert filled == {path: math.prod(shape) for path, shape in array_shapes(NANO).items()}


def test_heads_are_rows_of_the_projection():
    config = dataclasses.replace(NANO.language, num_layers=1)
    place = places(dataclasses.replace(NANO, language=config))["language_model.model.layers.0.self_attn.k_proj.weight"]
    weight = np.arange(math.prod(place.shape)).reshape(place.shape)
    head = weight.reshape(place.slot)[1]  # torch: k_proj(x).view(-1, kv_heads, head_dim)[:, 1]
    np.testing.assert_array_equal(head, weight[config.head_dim : 2 * config.head_dim])
    assert (place.path, place.layer) == ("model/language/layers/und/attention/k/kernel", 0)


@pytest.mark.parametrize(
    "name, path",
    [
        ("encoder.down.0.block.1.conv1.weight", "encoder/down_0/block_1/conv1/kernel"),
        ("encoder.mid.attn_1.norm.weight", "encoder/mid/attn_1/norm/scale"),
        ("decoder.up.3.upsample.conv.bias", "decoder/up_3/upsample/conv/bias"),
        ("decoder.norm_out.weight", "decoder/norm_out/scale"),
        ("decoder.mid.block_2.norm2.bias", "decoder/mid/block_2/norm2/bias"),
    ],
)
def test_autoencoder_paths(name, path):
    assert autoencoder_places(BAGEL_7B.autoencoder)[name].path == f"autoencoder/{path}"
