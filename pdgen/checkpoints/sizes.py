"""The sizes of a model from the shapes of its tensors, since json files may contradict them.

Published json files have wrong sizes, such as ``max_latent_size`` 32 for a table of 64 x 64 positions. The size of
each letter of the mapping's axis legend is the majority over all tensors with this axis. So one misshapen tensor is
reported and does not change the model.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from pdgen.checkpoints.mapping import RULES, axis_sizes
from pdgen.config import AutoencoderConfig, LanguageConfig, ModelConfig, VisionConfig

Shapes = Mapping[str, tuple[int, ...]]


def _majority(values: Iterable[int], stated: int) -> int:
    """Return the most frequent of ``values``; ``stated`` if there is none or two are equally frequent."""
    counts = collections.Counter(values).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return stated
    return counts[0][0]


def _root(number: int, stated: int) -> int:
    """Return the side of a square of ``number`` positions; ``stated`` if it is not a square."""
    root = math.isqrt(number)
    return root if root and root * root == number else stated


def _quotient(number: int, divisor: int, stated: int) -> int:
    return number // divisor if divisor and number and number % divisor == 0 else stated


def _count_votes(numbers: Iterable[set[int]]) -> list[int]:
    """Return the number of layers of each kind of tensor whose layer numbers have no gap."""
    return [len(found) for found in numbers if found == set(range(len(found)))]


def _axis_votes(shapes: Shapes) -> dict[str, list[int]]:
    """Collect the sizes of each axis over all tensors ("D", or "H h" for a joint axis), and of L and N by rule."""
    votes: dict[str, list[int]] = collections.defaultdict(list)
    for rule in RULES:
        pattern, layers = rule.pattern(), set()
        for name, shape in shapes.items():
            found = pattern.fullmatch(name)
            if found and rule.layers:
                layers.add(int(found[1]))
            if found and len(shape) == len(rule.groups):
                for group, size in zip(rule.groups, shape, strict=True):
                    votes[" ".join(group)].append(size)
        if rule.layers:
            votes[rule.layers] += _count_votes([layers] if layers else [])
    return votes


def _language(config: LanguageConfig, size: dict[str, int]) -> LanguageConfig:
    return dataclasses.replace(
        config,
        vocab_size=size["V"],
        hidden_size=size["D"],
        intermediate_size=size["F"],
        num_layers=size["L"],
        head_dim=size["h"],
        num_heads=_quotient(size["H h"], size["h"], config.num_heads),
        num_kv_heads=_quotient(size["K h"], size["h"], config.num_kv_heads),
    )


def _vision(config: VisionConfig, size: dict[str, int]) -> VisionConfig:
    pixels = _quotient(size["P"], config.num_channels, config.patch_size**2)
    return dataclasses.replace(
        config,
        hidden_size=size["C"],
        intermediate_size=size["I"],
        num_layers=size["N"],
        patch_size=_root(pixels, config.patch_size),
        max_side=_root(size["S"], config.max_side),
    )


def _autoencoder(config: AutoencoderConfig, shapes: Shapes) -> AutoencoderConfig:
    def axis(index: int, stated: int, *names: str) -> int:
        known = (shapes[name] for name in names if name in shapes)
        return _majority((shape[index] for shape in known if len(shape) > index), stated)

    def count(pattern: str, stated: int) -> int:
        numbers: dict[str, set[int]] = collections.defaultdict(set)
        for found in filter(None, (re.fullmatch(pattern, name) for name in shapes)):
            numbers[found[2]].add(int(found[1]))
        return _majority(_count_votes(numbers.values()), stated)

    channels = axis(0, config.channels, "encoder.conv_in.weight", "encoder.conv_in.bias", "decoder.norm_out.weight")
    multipliers = []
    for level in range(count(r"encoder\.down\.(\d+)\.block\.0\.(.+)", len(config.multipliers))):
        block = f"encoder.down.{level}.block.0."
        width = axis(0, 0, *(block + name for name in ("conv1.weight", "conv1.bias", "norm2.weight", "conv2.weight")))
        multipliers.append(_quotient(width, channels, config.multipliers[min(level, len(config.multipliers) - 1)]))
    return dataclasses.replace(
        config,
        channels=channels,
        multipliers=tuple(multipliers),
        num_blocks=count(r"encoder\.down\.0\.block\.(\d+)\.(.+)", config.num_blocks),
        z_channels=axis(1, config.z_channels, "decoder.conv_in.weight"),
        in_channels=axis(1, config.in_channels, "encoder.conv_in.weight"),
        out_channels=axis(0, config.out_channels, "decoder.conv_out.weight", "decoder.conv_out.bias"),
    )


def config_from_tensors(stated: ModelConfig, shapes: Shapes) -> ModelConfig:
    """Return the ``stated`` sizes of the json files with every size that the tensors' shapes determine.

    Values that no shape determines do not change: the ViT's number of heads, groups of norms, rope base, eps, shifts.
    Neither do sizes on which the tensors are split evenly or that are impossible. A comparison with
    ``pdgen.checkpoints.mapping.expected_tensors`` then finds the wrong tensors.
    """
    letters = axis_sizes(stated)
    groups = {" ".join(group) for rule in RULES for group in rule.groups} | {"L", "N"}
    votes = _axis_votes(shapes)
    size = {g: _majority(votes.get(g, ()), math.prod(letters[letter] for letter in g.split())) for g in groups}
    autoencoder = _autoencoder(stated.autoencoder, shapes)
    latents = _quotient(size["Z"], autoencoder.z_channels, stated.latent_patch_size**2)
    return dataclasses.replace(
        stated,
        language=_language(stated.language, size),
        vision=_vision(stated.vision, size),
        autoencoder=autoencoder,
        latent_patch_size=_root(latents, stated.latent_patch_size),
        max_latent_size=_root(size["M"], stated.max_latent_size),
        time_frequency_dim=size["T"],
    )
