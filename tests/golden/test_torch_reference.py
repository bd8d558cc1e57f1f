"""The PyTorch reference reproduces every golden number, so other tests may trust it."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.torch_reference.autoencoder import Autoencoder, patchify
from tests.torch_reference.bagel import Bagel, Inputs, Targets, shift_timesteps, sincos_table
from tests.torch_reference.packing import Segment
from tests.torch_reference.packing import pack as pack_samples
from tests.torch_reference.sampling import (
    Branch,
    Cache,
    ImageSettings,
    Sampler,
    Switches,
    draw_image,
    position_ids,
)

BRANCHES = ("context_order", "cfg_text_context", "cfg_img_context")


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def model(golden):
    model = Bagel(golden.json["config"], golden.json["llm_config"], golden.json["vit_config"])
    model.load_state_dict(tensors(golden.weights), strict=True)
    return model


@pytest.fixture(scope="module")
def autoencoder(golden):
    autoencoder = Autoencoder(golden.json["config"]["vae_config"])
    autoencoder.load_state_dict(tensors(golden.autoencoder_weights), strict=True)
    return autoencoder


@pytest.fixture(scope="module")
def sampler(golden, model, autoencoder):
    expected = golden.expected
    switches = Switches(expected["bos"], expected["eos"], expected["soi"], expected["eoi"])
    return Sampler(model, autoencoder, switches)


def golden_inputs(golden, latent):
    """The golden pack with its indexes as given; ``latent`` [images, z, h, w] is padded to the largest."""
    train, expected = tensors(golden.group("train.")), golden.expected
    patch, shapes = golden.config.latent_patch_size, expected["vae_latent_shapes"]
    cropped = [one[:, : h * patch, : w * patch] for one, (h, w) in zip(latent, shapes)]
    clean = torch.cat([patchify(one, patch) for one in cropped])
    t = shift_timesteps(torch.sigmoid(train["packed_timesteps_logit"]), golden.config.timestep_shift)
    noised, lens = (t > 0), expected["sample_lens"]
    allowed = train["attention_allowed"].bool()
    inputs = Inputs(
        text_ids=train["packed_text_ids"],
        text_indexes=train["packed_text_indexes"],
        position_ids=train["packed_position_ids"],
        sample_lens=lens,
        masks=[rows.split(lens, dim=1)[i] for i, rows in enumerate(allowed.split(lens))],
        vit_tokens=train["packed_vit_tokens"],
        vit_indexes=train["packed_vit_token_indexes"],
        vit_position_ids=train["packed_vit_position_ids"],
        vit_seqlens=train["vit_token_seqlens"].tolist(),
        latents=(1 - t[:, None]) * clean + t[:, None] * train["noise"],
        vae_indexes=train["packed_vae_token_indexes"],
        latent_position_ids=train["packed_latent_position_ids"],
        timesteps=t,
    )
    targets = Targets(
        ce_indexes=train["ce_loss_indexes"],
        labels=train["packed_label_ids"],
        mse_indexes=train["mse_loss_indexes"],
        velocity=(train["noise"] - clean)[noised],
        ce_weight=expected["loss_weights"]["ce"],
        mse_weight=expected["loss_weights"]["mse"],
    )
    return inputs, targets


@pytest.fixture(scope="module")
def training(golden, model, autoencoder):
    """All tensors of one training step, and the gradient of every parameter."""
    with torch.no_grad():
        latent = autoencoder.encode(torch.from_numpy(golden.numbers["train.padded_images"]))
    inputs, targets = golden_inputs(golden, latent)
    model.zero_grad(set_to_none=True)
    parts = model.losses(inputs, targets)
    parts["loss"].backward()
    values = {name: value.detach() for name, value in parts.items()}
    values |= {"padded_latent": latent, "timesteps": inputs.timesteps}
    return values, {name: p.grad for name, p in model.named_parameters()}


def test_fixed_position_tables(golden, model):
    config, width = golden.config, golden.config.language.hidden_size
    sides = {"vit_pos_embed": config.vision.max_side, "latent_pos_embed": config.max_latent_size}
    for name, side in sides.items():
        np.testing.assert_allclose(
            sincos_table(side, width), golden.weights[f"{name}.pos_embed"], atol=1e-6, err_msg=name
        )


def test_position_ids(golden):
    for case in golden.expected["position_ids"]:
        for rule in ("extrapolate", "interpolate"):
            ids = position_ids(*case["grid"], case["max_side"], rule == "interpolate")
            assert ids.tolist() == case[rule], (case["grid"], rule)


def test_autoencoder(golden, autoencoder):
    with torch.no_grad():
        image = torch.from_numpy(golden.numbers["vae.image"])
        golden.check("vae.moments", autoencoder.encoder(image))
        golden.check("vae.latent_mean", autoencoder.encode(image))
        golden.check("vae.decoded", autoencoder.decode(torch.from_numpy(golden.numbers["vae.latent_mean"])))


def planned_samples(golden, inputs):
    """The samples of expected.json as segments, with the tokens of ``inputs``."""
    vit = iter(zip(*(a.split(inputs.vit_seqlens) for a in (inputs.vit_tokens, inputs.vit_position_ids))))
    counts = [rows * columns for rows, columns in golden.expected["vae_latent_shapes"]]
    vae_arrays = (inputs.latents, inputs.latent_position_ids, inputs.timesteps)
    vae = iter(zip(*(a.split(counts) for a in vae_arrays)))
    samples = []
    for sample in golden.expected["samples"]:
        texts, segments = iter(sample["text_ids_list"]), []
        for plan in sample["sequence_plan"]:
            kind = plan["type"].removesuffix("_image")
            label = plan["special_token_label"] if plan["special_token_loss"] else None
            segment = Segment(kind, loss=bool(plan["loss"]), closing_label=label)
            if kind == "text":
                segment.ids = next(texts)
            elif kind == "vit":
                segment.values, segment.table_ids = next(vit)
            else:
                segment.values, segment.table_ids, t = next(vae)
                segment.t, segment.noise = float(t[0]), segment.values
            segments.append(segment)
        samples.append(segments)
    return samples


def test_packing(golden, sampler):
    latent = torch.from_numpy(golden.numbers["train.padded_latent"])
    given, targets = golden_inputs(golden, latent)
    inputs, packed_targets = pack_samples(planned_samples(golden, given), sampler.switches)
    for name in (
        "text_ids",
        "text_indexes",
        "vit_indexes",
        "vae_indexes",
        "position_ids",
        "sample_lens",
        "vit_seqlens",
    ):
        assert torch.equal(torch.as_tensor(getattr(inputs, name)), torch.as_tensor(getattr(given, name))), name
    for name in ("ce_indexes", "labels", "mse_indexes"):
        assert torch.equal(getattr(packed_targets, name), getattr(targets, name)), name
    golden.check("train.attention_allowed", torch.block_diag(*inputs.masks))


@pytest.mark.parametrize(
    "name",
    [
        "padded_latent",
        "timesteps",
        "vit_hidden",
        "vit_connected",
        "timestep_embedding",
        "input_embeddings",
        "last_hidden_state",
        "ce_per_token",
        "ce_loss",
        "mse_per_element",
        "mse_loss",
        "loss",
    ],
)
def test_training_value(golden, training, name):
    golden.check(f"train.{name}", training[0][name])


def test_gradients(golden, training):
    gradients = training[1]
    golden.check_all("grad.", gradients)
    golden.check_all("grad_norm.", {name: grad.norm() for name, grad in gradients.items()})
    assert set(gradients) == set(golden.group("grad_norm."))


@pytest.fixture(scope="module")
def caches(golden, sampler):
    """The three contexts of guidance."""
    infer = golden.expected["infer"]
    result = []
    with torch.no_grad():
        for branch in BRANCHES:
            cache = Cache()
            for segment in infer[branch]:
                kind, name = segment.split(":")
                if kind == "text":
                    cache = sampler.add_text(cache, infer[f"{name}_ids"])
                else:
                    image = torch.from_numpy(golden.numbers[f"infer.{name}"])[0]
                    add = {"vae": sampler.add_vae_image, "vit": sampler.add_vit_image}[kind]
                    cache = add(cache, image)
            result.append(cache)
    return result


def test_caches(golden, caches):
    infer = golden.expected["infer"]
    for cache, prefix in zip(caches, ("", "cfg_text_", "cfg_img_")):
        assert (cache.length, cache.position) == (infer[f"{prefix}kv_len"], infer[f"{prefix}rope"]), prefix
    for index, side in enumerate("kv"):
        layers = {str(n): layer[index] for n, layer in enumerate(caches[0].layers)}
        golden.check_all(f"infer.cache.{side}.", layers)


def test_drawn_latents(golden, sampler, caches):
    infer, noise = golden.expected["infer"], torch.from_numpy(golden.numbers["infer.init_noise"])
    fields = {field.name for field in dataclasses.fields(ImageSettings)}
    latents = {}
    for name, run in infer["runs"].items():
        assert set(run) <= fields, f"{name}: the reference does not know {set(run) - fields}"
        settings = ImageSettings(**run)
        branches = [Branch(sampler, c, infer["image_grid"], settings.enable_taylorseer) for c in caches]
        with torch.no_grad():
            latents[name] = draw_image(branches, noise, settings)
    golden.check_all("infer.latent.", latents)


def test_greedy_text(golden, sampler, caches):
    with torch.no_grad():
        tokens, logits = sampler.greedy_text(caches[0], len(golden.numbers["infer.text_tokens"]))
    golden.check("infer.text_tokens", tokens)
    golden.check("infer.text_logits", logits)
