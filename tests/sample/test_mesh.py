"""The place of parameters changes no trajectory: on every mesh, and with an expert in host memory."""

import dataclasses
import importlib.metadata
import shutil

import jax
import numpy as np
import PIL.Image
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from pdgen import sharding
from pdgen.checkpoints import load as loading
from pdgen.checkpoints.conversion import to_pdgen
from pdgen.checkpoints.load import LoadedModel, load, make_shardings
from pdgen.models import autoencoder, bagel
from pdgen.models.streaming import HostLayers
from pdgen.sample import capacity as capacities
from pdgen.sample.kernels import make_empty_state
from pdgen.sample.model import make_model
from pdgen.sample.sampler import Sampler
from pdgen.sharding import ShardingError, count_host_bytes, make_mesh
from tests.sample.conftest import PROMPTS, SEEDS, SETTINGS, TERSE, outcome, recording, restrict, use
from tests.support.small import CONFIG

# A given image, a plan, and an image under both kinds of guidance.
ONE_STEP = dataclasses.replace(SETTINGS, max_images=1, max_prompt_tokens=80, batch_size=0)
# Without these emitters, which tests turn off, the loops over host and device layers round differently.
EMITTERS = {"xla_cpu_use_fusion_emitters": True} if importlib.metadata.version("jaxlib").startswith("0.10.") else {}
ASKED = (PROMPTS[:2], SEEDS[:2], ONE_STEP, [[PIL.Image.linear_gradient("L").resize((32, 32))]] * 2)


@pytest.fixture(scope="module")
def alone(sampler):
    return sampler(*ASKED)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 8, 1)], ids=str)
def test_every_mesh(checkpoint, whole_grammar, alone, shape):
    count = int(np.prod(shape))
    mesh = make_mesh(shape, jax.devices()[:count])
    sampler = Sampler.from_checkpoint(checkpoint, mesh=mesh)
    use(sampler, restrict(whole_grammar, sampler.model.tokenizer, TERSE))
    with recording(sampler) as recorder:
        drawn = sampler(*ASKED)
    for one, expected in zip(drawn, alone, strict=True):
        texts = [[getattr(stage, "text", stage.stage) for stage in t.stages] for t in (one, expected)]
        assert texts[0] == texts[1]
        assert one.images and one.stop_reason == expected.stop_reason
        for image, other in zip(one.images, expected.images, strict=True):
            assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 1
    assert recorder.named("draw")[0].static[3]  # with image guidance
    kernel = sampler.model.params["model"]["language"]["layers"]["gen"]["attention"]["q"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "tensor", None, "fsdp")
    assert kernel.addressable_shards[0].data.size * shape[1] * shape[2] == kernel.size
    check_bytes(sampler, count)


def check_bytes(sampler, count):
    """Compare the estimate of a device's part of eight rows and a group of eight with the arrays that it holds."""
    settings = dataclasses.replace(ONE_STEP, batch_size=8)
    starts = sampler.make_starts(*ASKED[:2], settings, ASKED[3])
    with jax.set_mesh(sampler.model.mesh):
        capacity = capacities.compute_capacity(sampler.model, settings, starts)
        state = make_empty_state(sampler.model.static, 8, capacity)
    arrays = (state.full.k, state.full.v, state.texts.k, state.texts.v)
    held = [array.addressable_shards[0].data.nbytes for array in arrays]
    assert sum(held) * count == sum(array.nbytes for array in arrays)
    assert capacities.count_context_bytes(sampler.model, settings, starts, slots=8) == 2 * sum(held)


def test_a_mesh_that_would_cut_key_value_heads_is_refused(checkpoint, sampler):
    """When reading a checkpoint, and with parameters in memory."""
    mesh = make_mesh((1, 1, 4), jax.devices()[:4])
    words = r"mesh \(data, fsdp, tensor\) with tensor=4: must divide the model's 2 key/value heads; choose a smaller"
    with pytest.raises(ShardingError, match=words):
        Sampler.from_checkpoint(checkpoint, mesh=mesh)
    with pytest.raises(ShardingError, match=words):
        make_model(LoadedModel(sampler.model.config, sampler.model.params, sampler.model.tokenizer), mesh=mesh)


def list_kinds(params):
    """Return the kinds of memory that hold each expert's layers."""
    layers = params["model"]["language"]["layers"]
    return {name: {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)} for name, tree in layers.items()}


def sample_from(checkpoint, grammar, **options):
    """Return the model, and its plan and image for a given image, under both kinds of guidance."""
    sampler = Sampler.from_checkpoint(checkpoint, quick=True, **options)
    sampler.model.compiler._options = sampler.model.compiler._options | EMITTERS
    use(sampler, restrict(grammar, sampler.model.tokenizer, TERSE))
    return sampler.model, [outcome(one) for one in sampler(*ASKED)]


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True], ids=["floats", "int8"])
def test_an_expert_in_host_memory_changes_no_bit(checkpoint, whole_grammar, tmp_path, int8):
    if int8:
        to_pdgen(checkpoint, tmp_path / "int8", int8=True)
    folder = tmp_path / "int8" if int8 else checkpoint
    model, expected = sample_from(folder, whole_grammar)
    assert list_kinds(model.params) == {"und": {"device"}, "gen": {"device"}}
    for expert, other in (("und", "gen"), ("gen", "und")):
        model, drawn = sample_from(folder, whole_grammar, offload=expert)
        assert list_kinds(model.params) == {expert: {"pinned_host"}, other: {"device"}}
        assert isinstance(model.params["model"]["language"]["layers"][expert], HostLayers)
        assert drawn == expected


@pytest.mark.slow
def test_an_expert_in_the_host_memory_of_a_mesh(checkpoint, whole_grammar):
    """Each device copies its own part of a layer."""
    mesh = make_mesh((2, 2, 2), jax.devices())
    _, expected = sample_from(checkpoint, whole_grammar, mesh=mesh)
    model, drawn = sample_from(checkpoint, whole_grammar, mesh=mesh, offload="gen")
    assert list_kinds(model.params) == {"und": {"device"}, "gen": {"pinned_host"}}
    kernel = model.params["model"]["language"]["layers"]["gen"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "tensor", "fsdp")
    assert drawn == expected


def test_parameters_in_memory_are_moved(sampler):
    params = sampler.model.params
    model = make_model(LoadedModel(sampler.model.config, params, sampler.model.tokenizer), offload="und")
    assert list_kinds(model.params) == {"und": {"pinned_host"}, "gen": {"device"}}
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(model.params), jax.tree.leaves(params))


def test_an_impossible_offload_is_refused(checkpoint, sampler, monkeypatch):
    with pytest.raises(ShardingError, match=r"^offload=both: there is no such expert; choose und or gen$"):
        Sampler.from_checkpoint(checkpoint, offload="both")
    monkeypatch.setattr(sharding, "_HOST_MEMORY", "far_host")
    with pytest.raises(ShardingError, match=r"^\S+ has no far_host memory, only device, .*; leave out offload$"):
        load(checkpoint, offload="gen")


@pytest.mark.parametrize("shape", [None, (2, 2, 2)], ids=["alone", "mesh"])
def test_too_little_host_memory_is_refused_before_a_weight_is_read(checkpoint, tmp_path, monkeypatch, shape):
    """All parameters of CPU devices are in it, one part for each device."""
    mesh = make_mesh(shape) if shape else None
    loaded = load(checkpoint, mesh, offload="gen")
    held = sum(part.data.nbytes for leaf in jax.tree.leaves(loaded.params) for part in leaf.addressable_shards)
    monkeypatch.setattr(loading, "read_available_bytes", lambda: held)
    load(checkpoint, mesh, offload="gen")
    folder = shutil.copytree(checkpoint, tmp_path / "unread")
    shutil.rmtree(folder / "params")
    monkeypatch.setattr(loading, "read_available_bytes", lambda: held - 1)
    with pytest.raises(ShardingError) as fault:
        load(folder, mesh, offload="gen")
    assert str(fault.value) == (
        f"{folder}: parameters need {held:,} bytes of the host's memory, {held - 1:,} are available; free some, or "
        "leave out offload, or round it with launch/convert.py --quantize=int8"
    )


def test_a_pinned_expert_is_counted_and_the_rest_is_not(monkeypatch):
    """On a device with a memory of its own: its layers, by the sizes of the config."""
    shardings = make_shardings(CONFIG, None, offload="gen")
    monkeypatch.setattr(type(jax.devices()[0]), "platform", "gpu")
    shapes = {
        "model": nn.unbox(bagel.abstract_params(CONFIG)),
        "autoencoder": nn.unbox(autoencoder.abstract_params(CONFIG.autoencoder)),
    }
    language = CONFIG.language
    D, F, h = language.hidden_size, language.intermediate_size, language.head_dim
    heads, kv_heads = language.num_heads * h, language.num_kv_heads * h
    layer = D * (2 * heads + 2 * kv_heads) + heads + 2 * kv_heads + 2 * h + 3 * D * F + 2 * D
    assert count_host_bytes(shapes, shardings) == 4 * language.num_layers * layer
