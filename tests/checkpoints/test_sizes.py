"""Sizes are read from the tensors, whatever the json files state."""

import dataclasses

import pytest
from hypothesis import given, settings

from pdgen.checkpoints.bagel_json import compare_configs
from pdgen.checkpoints.mapping import expected_tensors
from pdgen.checkpoints.sizes import config_from_tensors
from pdgen.config import BAGEL_7B, NANO

from .test_mapping import configs


@settings(max_examples=50)
@given(configs())
def test_all_sizes_are_found(config):
    """From a config that is wrong throughout; no shape shows the ViT's heads or the norms' groups."""
    heads = dataclasses.replace(NANO.vision, num_heads=config.vision.num_heads)
    groups = dataclasses.replace(NANO.autoencoder, num_groups=config.autoencoder.num_groups)
    stated = dataclasses.replace(NANO, vision=heads, autoencoder=groups)
    found = config_from_tensors(stated, expected_tensors(config))
    assert found == config


def test_max_latent_size_is_read_from_the_tensors():
    stated = dataclasses.replace(BAGEL_7B, max_latent_size=32)
    found = config_from_tensors(stated, expected_tensors(BAGEL_7B))
    assert found == BAGEL_7B
    assert compare_configs(stated, found) == {("config.json", "max_latent_size"): (32, 64)}


SHAPES = expected_tensors(NANO)


def test_one_tensor_does_not_change_the_model():
    for name in SHAPES:
        missing = {n: shape for n, shape in SHAPES.items() if n != name}
        assert config_from_tensors(NANO, missing) == NANO, name
        other_rank = {**SHAPES, name: (*SHAPES[name], 1)}
        assert config_from_tensors(NANO, other_rank) == NANO, name


@pytest.mark.parametrize(
    "name, shape",
    [
        ("language_model.model.layers.1.mlp.gate_proj.weight", (1, 128)),
        ("language_model.model.embed_tokens.weight", (511, 128)),
        ("vit_model.vision_model.encoder.layers.0.mlp.fc1.bias", (0,)),
        ("latent_pos_embed.pos_embed", (255, 128)),
        ("encoder.mid.block_1.conv1.weight", (1, 1, 3, 3)),
    ],
)
def test_one_misshapen_tensor_does_not_change_the_model(name, shape):
    assert config_from_tensors(NANO, {**SHAPES, name: shape}) == NANO


def test_a_lone_tensor_of_another_layer_adds_none():
    extra = f"language_model.model.layers.{NANO.language.num_layers}.input_layernorm.weight"
    assert config_from_tensors(NANO, {**SHAPES, extra: (128,)}) == NANO
    far = "vit_model.vision_model.encoder.layers.1000000000.layer_norm1.bias"
    assert config_from_tensors(NANO, {**SHAPES, far: (64,)}) == NANO


def test_without_tensors_the_config_stays():
    assert config_from_tensors(NANO, {}) == NANO


def test_a_gap_in_the_layers_is_kept():
    """Layer 1 is missing: its tensors are reported later, and the layers after it count."""
    assert NANO.language.num_layers > 2
    shapes = {name: shape for name, shape in SHAPES.items() if not name.startswith("language_model.model.layers.1.")}
    assert len(shapes) == len(SHAPES) - 28
    assert config_from_tensors(NANO, shapes) == NANO
