"""The model on the golden pack: every number of the train group, from the layout's own pack to the gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pdgen.checkpoints.mapping import places
from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.rectified import interpolate, shift_timesteps
from pdgen.models import bagel, vision
from pdgen.sequence.layout import Budgets, Pack, assemble, stack
from pdgen.train.monitor.metrics import loss_metrics
from pdgen.train.objectives.loss import FlowInputs, loss_sums, token_losses, total_loss
from tests.checkpoints.folders import read_bagel_folder
from tests.golden.test_layout import layouts_of

# Tiles and chunks that divide nothing.
COMPUTE = ComputeConfig(block_q=48, block_k=40, loss_chunk=20)
SPARE = Budgets(text=7, vit=5, vae=3)  # padding of each stream


@dataclasses.dataclass(frozen=True)
class Case:
    """A golden folder's parameters, its pack as a batch of one, and the flow inputs it prescribes."""

    config: ModelConfig
    params: dict
    batch: Pack
    flow: FlowInputs


@pytest.fixture(scope="session")
def case(golden):
    config, params = read_bagel_folder(golden.folder)
    layouts = layouts_of(golden)
    text, vit, vae = np.sum([document.lengths for document in layouts], axis=0).tolist()
    batch = stack([assemble(layouts, Budgets(text + SPARE.text, vit + SPARE.vit, vae + SPARE.vae), row=0)])
    t = shift_timesteps(jax.nn.sigmoid(golden.numbers["train.packed_timesteps_logit"]), config.timestep_shift)
    noise = golden.numbers["train.noise"]
    flow = FlowInputs(jnp.pad(t, (0, SPARE.vae))[None], jnp.pad(noise, ((0, SPARE.vae), (0, 0)))[None])
    return Case(config, params["model"], batch, flow)


def test_latent_grids(golden):
    """Return the grid of VAE tokens of every image of the plans, whose height and width are in pixels."""
    stride = golden.config.latent_stride
    sizes = [
        (height // stride, width // stride)
        for sample in golden.expected["samples"]
        for plan, (_, height, width) in zip(
            [item for item in sample["sequence_plan"] if item["type"] != "text"], sample["image_shapes"], strict=True
        )
        if plan["type"] == "vae_image"
    ]
    assert sizes == [tuple(size) for size in golden.expected["vae_latent_shapes"]]


@functools.partial(jax.jit, static_argnums=0)
def intermediate(config, params, batch, flow):
    """Return the intermediate values between the pack and the loss by their golden names, and both hidden states."""
    images = (batch.vit_start, batch.vit_end)
    vit = vision.encode(config.vision, COMPUTE, params["vision"], batch.vit_patches, batch.vit_positions, images)
    latents = interpolate(batch.vae_latents, flow.noise, flow.t)
    inputs = bagel.embed_pack(config, COMPUTE, params, batch, latents, flow.t)
    hidden = bagel.encode_pack(config, COMPUTE, params, batch, latents, flow.t)
    ce, errors = token_losses(config, COMPUTE, params, batch, flow)
    squares = errors * errors
    return {
        "vit_hidden": vit,
        "vit_connected": bagel.connect(params, vit),
        "timestep_embedding": bagel.embed_timestep(config, params, flow.t),
        "timesteps": flow.t,
        "input_embeddings": jnp.concatenate(inputs, axis=1),
        "last_hidden_state": jnp.concatenate(hidden, axis=1),
        "ce_per_token": ce,
        "mse_per_element": squares,
    }


@pytest.fixture(scope="session")
def values(golden, case):
    """The intermediate values without padding, in the golden order."""
    computed = {k: np.asarray(v[0]) for k, v in intermediate(case.config, case.params, case.batch, case.flow).items()}
    pack = jax.tree.map(lambda leaf: leaf[0], case.batch)
    order = pack.to_sequence[: sum(golden.expected["sample_lens"])]
    picks = {
        "vit_hidden": pack.vit_end > 0,
        "vit_connected": pack.vit_end > 0,
        "timestep_embedding": slice(-SPARE.vae),
        "timesteps": slice(-SPARE.vae),
        "input_embeddings": order,
        "last_hidden_state": order,
        "ce_per_token": pack.text_weights > 0,
        "mse_per_element": pack.vae_weights > 0,
    }
    return {name: computed[name][pick] for name, pick in picks.items()}


@pytest.mark.parametrize(
    "name",
    [
        "timesteps",
        "vit_hidden",
        "vit_connected",
        "timestep_embedding",
        "input_embeddings",
        "last_hidden_state",
        "ce_per_token",
        "mse_per_element",
    ],
)
def test_intermediate_value(golden, values, name):
    golden.check(f"train.{name}", values[name])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def losses_and_gradients(config, compute, ce_weight, params, batch, flow):
    def loss(params):
        sums = loss_sums(config, compute, params, batch, flow)
        return total_loss(sums, ce_weight), loss_metrics(sums, ce_weight)

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.fixture(scope="session", params=["dots", "full"], ids="remat {}".format)
def training(request, golden, case):
    """(loss, means), and the gradient of every tensor by PyTorch's name and in its shape."""
    compute = dataclasses.replace(COMPUTE, remat=request.param)
    weight = golden.expected["loss_weights"]["ce"]
    losses, gradients = losses_and_gradients(case.config, compute, weight, case.params, case.batch, case.flow)
    flat = jax.tree.map(np.asarray, traverse_util.flatten_dict({"model": gradients}, sep="/"))
    named = {}
    for name, place in places(case.config, ("model",)).items():
        array = flat[place.path] if place.layer is None else flat[place.path][place.layer]
        named[name] = array.reshape(place.shape)
    return losses, named


def test_losses(golden, training):
    (loss, means), _ = training
    assert golden.expected["loss_weights"]["mse"] == 1
    golden.check("train.loss", loss)
    golden.check("train.ce_loss", means["ce"])
    golden.check("train.mse_loss", means["mse"])


def test_gradients(golden, training):
    golden.check_all("grad.", training[1])


def test_gradient_norms(golden, training):
    """Of every parameter but the fixed position tables, which receive no gradient."""
    gradients = training[1]
    golden.check_all("grad_norm.", {name: np.linalg.norm(g) for name, g in gradients.items()})
    fixed = set(gradients) - set(golden.group("grad_norm."))
    assert fixed == {"vit_pos_embed.pos_embed", "latent_pos_embed.pos_embed"}
    assert not any(gradients[name].any() for name in fixed)
