"""The autoencoder against diffusers' AutoencoderKL, an independent implementation, and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from jax.sharding import NamedSharding

from pdgen.config import SHAPES_AUTOENCODER, AutoencoderConfig
from pdgen.models import autoencoder
from pdgen.sharding import RULES, make_mesh

CONFIGS = {
    "one resolution": AutoencoderConfig(channels=32, multipliers=(1,), num_blocks=1, z_channels=2),
    "shapes": SHAPES_AUTOENCODER,
    "two blocks": AutoencoderConfig(channels=32, multipliers=(1, 2, 2), num_blocks=2, z_channels=4),
    "channels shrink": AutoencoderConfig(
        channels=32, multipliers=(1, 3, 2), num_blocks=1, z_channels=3, scale_factor=0.7, shift_factor=-0.4
    ),
    "three groups": AutoencoderConfig(channels=6, multipliers=(1, 2), num_blocks=1, num_groups=3, z_channels=2),
}
# diffusers' names of the sub-modules that FLUX's checkpoint names differently.
RENAMED = {
    "norm_out": "conv_norm_out",
    "nin_shortcut": "conv_shortcut",
    "attn_1": "attentions.0",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "mid": "mid_block",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
    "kernel": "weight",
    "scale": "weight",
}


def diffusers_name(path: tuple[str, ...], levels: int) -> str:
    """Return the parameter's name in AutoencoderKL: up blocks count from the small end, mid blocks from 0."""
    names = []
    for part in path:
        name, _, number = part.rpartition("_")
        if name == "block":
            names.append(f"resnets.{int(number) - ('mid' in path)}")
        elif name == "down":
            names.append(f"down_blocks.{number}")
        elif name == "up":
            names.append(f"up_blocks.{levels - 1 - int(number)}")
        else:
            names.append(RENAMED.get(part, part))
    return ".".join(names)


def tree_of(tensors: dict[str, torch.Tensor], config: AutoencoderConfig) -> dict:
    """Return tensors by diffusers' names as pdgen's parameter tree; every tensor is used once."""
    tensors = dict(tensors)

    def take(path, leaf):
        tensor = tensors.pop(diffusers_name(tuple(p.key for p in path), len(config.multipliers)))
        return jnp.asarray(tensor.detach().numpy().reshape(leaf.shape))

    tree = jax.tree_util.tree_map_with_path(take, autoencoder.abstract_params(config))
    assert not tensors
    return tree


def torch_model(config: AutoencoderConfig, seed: int) -> AutoencoderKL:
    """AutoencoderKL of these sizes; norms are random too, so that a missing scale or bias is noticed."""
    levels = len(config.multipliers)
    torch.manual_seed(seed)
    model = AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(m * config.channels for m in config.multipliers),
        layers_per_block=config.num_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=config.num_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def to_torch(x) -> torch.Tensor:
    """Turn a channels-last array into a channels-first tensor."""
    return torch.from_numpy(np.array(x)).movedim(-1, 1)


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.fixture(scope="module")
def params():
    """Random parameters of the shapes-world sizes."""
    return autoencoder.init_params(SHAPES_AUTOENCODER, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_gradients_are_those_of_diffusers(name):
    config = CONFIGS[name]
    model = torch_model(config, seed=len(name))
    params = tree_of(dict(model.named_parameters()), config)
    height, width = 4 * config.downsample, 6 * config.downsample
    images = jax.random.uniform(jax.random.key(1), (2, height, width, 3), minval=-1, maxval=1)
    target = jax.random.normal(jax.random.key(2), images.shape)

    def loss(params):
        mean, logvar = autoencoder.encode(config, params, images)
        decoded = autoencoder.decode(config, params, autoencoder.latent_from_moments(config, mean))
        return jnp.mean(decoded * target) + jnp.mean(jnp.square(logvar)), (mean, logvar, decoded)

    with jax.default_matmul_precision("highest"):
        (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    posterior = model.encode(to_torch(images)).latent_dist
    decoded = model.decode(posterior.mean).sample
    expected = (decoded * to_torch(target)).mean() + posterior.logvar.square().mean()
    expected.backward()
    assert_close(value, expected.detach())
    for actual, tensor in zip(outputs, (posterior.mean, posterior.logvar, decoded), strict=True):
        assert_close(actual, tensor.detach().movedim(1, -1))
    torch_gradients = tree_of({n: p.grad for n, p in model.named_parameters()}, config)
    for actual, tensor in zip(jax.tree.leaves(gradients), jax.tree.leaves(torch_gradients), strict=True):
        assert np.abs(actual - tensor).max() <= 1e-4 * np.abs(tensor).max() + 1e-6


def test_flux_sizes_are_those_of_the_public_checkpoint():
    leaves = jax.tree.leaves(autoencoder.abstract_params(AutoencoderConfig()))
    assert len(leaves) == 244
    assert sum(leaf.size for leaf in leaves) == 83_819_683


def test_flux_latents_of_a_1024_pixel_image_and_back():
    config = AutoencoderConfig()
    params = autoencoder.abstract_params(config, jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 1024, 768, 3), jnp.float32)

    def run(params, images):
        mean, _ = autoencoder.encode(config, params, images, jnp.bfloat16)
        return mean, autoencoder.decode(config, params, mean, jnp.bfloat16)

    mean, decoded = jax.eval_shape(run, params, images)
    assert (mean.shape, decoded.shape) == ((1, 128, 96, 16), (1, 1024, 768, 3))
    assert mean.dtype == decoded.dtype == jnp.float32


def test_kernels_start_uniform_within_the_root_of_their_fan_in(params):
    kernel = params["encoder"]["mid"]["block_1"]["conv1"]["kernel"]
    bound = (64 * 3 * 3) ** -0.5
    assert 0.99 * bound < jnp.abs(kernel).max() <= bound
    np.testing.assert_allclose(jnp.std(kernel), bound / 3**0.5, rtol=0.02)


def test_attention_of_many_positions_in_chunks_is_the_same():
    positions, channels = autoencoder.MAX_DENSE_POSITIONS + 100, 4
    q, k, v, g = (jax.random.normal(key, (1, positions, channels)) for key in jax.random.split(jax.random.key(0), 4))

    def run(q, k, v):
        out, pull = jax.vjp(autoencoder.attend_positions, q, k, v)
        return out, pull(g)

    assert f"{positions},{positions}" not in str(jax.make_jaxpr(run)(q, k, v))
    with jax.default_matmul_precision("highest"):
        out, gradients = jax.jit(run)(q, k, v)
    inputs = [torch.from_numpy(np.array(x)).requires_grad_() for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs)
    assert_close(out, expected.detach())
    for actual, tensor in zip(gradients, torch.autograd.grad(expected, inputs, torch.from_numpy(np.array(g)))):
        assert_close(actual, tensor)


def test_bfloat16_stays_near_float32(params):
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1, maxval=1)
    exact, _ = autoencoder.encode(SHAPES_AUTOENCODER, params, images)
    rounded, _ = autoencoder.encode(SHAPES_AUTOENCODER, params, images, jnp.bfloat16)
    error = jnp.abs(exact - rounded).max()
    assert 0 < error < 0.03 * jnp.abs(exact).max()


def test_posterior_samples_have_its_mean_and_variance():
    mean = jnp.array([-2.0, 0.0, 3.0])
    logvar = jnp.log(jnp.array([0.25, 1.0, 4.0]))
    n = 40_000
    key = jax.random.key(3)
    draws = autoencoder.sample_posterior(*(jnp.broadcast_to(x, (n, 3)) for x in (mean, logvar)), key)
    # Five standard errors: sigma / sqrt(n) of a mean, sigma^2 sqrt(2 / n) of a variance.
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.exp(logvar / 2) / n**0.5)
    assert np.all(np.abs(draws.var(0) - np.exp(logvar)) < 5 * np.exp(logvar) * (2 / n) ** 0.5)


def test_scale_and_shift_are_undone_by_decode(params):
    other = dataclasses.replace(SHAPES_AUTOENCODER, scale_factor=2.0, shift_factor=-1.0)
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 16))
    decoded = [
        autoencoder.decode(config, params, autoencoder.latent_from_moments(config, x))
        for config in (SHAPES_AUTOENCODER, other)
    ]
    assert_close(*decoded)
    np.testing.assert_allclose(autoencoder.latent_from_moments(other, jnp.float32(3.0)), 8.0)


def test_a_batch_split_over_devices_stays_split():
    config, mesh = SHAPES_AUTOENCODER, make_mesh((2, 2, 2))
    batch = RULES.spec("batch", None, None, None)

    def run(params, images):
        mean, _ = autoencoder.encode(config, params, images)
        return autoencoder.decode(config, params, autoencoder.latent_from_moments(config, mean))

    with jax.set_mesh(mesh):
        # Operations whose result has no unambiguous sharding fail while they are traced.
        images = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32, sharding=NamedSharding(mesh, batch))
        decoded = jax.eval_shape(run, autoencoder.abstract_params(config), images)
    assert decoded.sharding.spec == batch


def test_an_image_side_that_does_not_divide_names_the_multiple():
    params = autoencoder.abstract_params(SHAPES_AUTOENCODER)
    with pytest.raises(ValueError, match=r"15 x 16 pixels: .* multiples of 8"):
        autoencoder.encode(SHAPES_AUTOENCODER, params, jnp.zeros((1, 15, 16, 3)))


def test_channels_that_do_not_divide_into_groups_are_named():
    with pytest.raises(ValueError, match=r"48 channels .* 32 groups"):
        autoencoder.abstract_params(AutoencoderConfig(channels=48, multipliers=(2, 4)))
    with pytest.raises(ValueError, match=r"12 channels .* 8 groups; choose multiples of 8"):
        autoencoder.abstract_params(AutoencoderConfig(channels=12, multipliers=(2, 4), num_groups=8))
