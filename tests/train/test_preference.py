"""Preferences: values and gradients against closed forms and PyTorch, shared draws, packs against single documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pdgen.config import ComputeConfig
from pdgen.models import bagel
from pdgen.sequence.layout import Budgets, LatentSegment, TextSegment, assemble, lay_out, stack
from pdgen.train.monitor.metrics import preference_metrics
from pdgen.train.objectives.loss import FlowInputs, token_losses
from pdgen.train.objectives.preference import (
    PreferenceConfig,
    TokenLosses,
    count_pairs,
    draw_paired_inputs,
    mean_preference_loss,
    number_documents,
    preference_sums,
)
from tests.models.test_torch_parity import sizes
from tests.support.small import CONFIG, SWITCHES
from tests.torch_reference.cases import SampleMaker, random_model, random_switches, to_pack, to_tree
from tests.torch_reference.packing import pack as pack_torch

BETA, CE_WEIGHT, FLOW_WEIGHT = 0.3, 0.7, 0.2
PREFERENCE = PreferenceConfig(BETA, FLOW_WEIGHT)


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with jax.default_matmul_precision("highest"):
        yield
    torch.set_num_threads(before)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def make_pack(*documents, row=0):
    """A pack of documents; a number is a drawn image of so many VAE tokens with its clean copy, a list a text."""

    def segments(document):
        for part in document:
            if isinstance(part, list):
                yield TextSegment(part, loss=True)
            else:
                values = np.zeros((part, CONFIG.latent_dim), np.float32)
                yield LatentSegment(values, np.arange(part, dtype=np.int32), noised=True)
                yield LatentSegment(values, np.arange(part, dtype=np.int32))

    prompt = TextSegment([1, 2])
    layouts = [lay_out([prompt, *segments(document)], SWITCHES, CONFIG) for document in documents]
    return assemble(layouts, Budgets(72, 0, 72), row)


def on_device(*packs):
    return jax.tree.map(jnp.asarray, stack(packs))


def test_documents_are_numbered():
    pack = stack([make_pack([[5]], [3, [7, 8]], row=0), make_pack([[5]], [[6]], [2], [[4], 1], row=1)])
    texts, vae = number_documents(pack)
    # A prompt has 4 tokens, a text 2 more than its words, the switch tokens of an image's two copies 4.
    assert texts[0].tolist() == [0] * 7 + [1] * 12 + [-1] * 53
    assert vae[0].tolist() == [1] * 6 + [-1] * 66
    assert texts[1].tolist() == [0] * 7 + [1] * 7 + [2] * 8 + [3] * 11 + [-1] * 39
    assert vae[1].tolist() == [2] * 4 + [3] * 2 + [-1] * 66
    assert count_pairs(pack) == 3


def test_closed_form_of_two_tokens_and_two_steps():
    """A policy with logits a[step, token] writes 0, 1 (better) or 1, 1 (worse).

    margin = sum over steps of log p(better) - log p(worse) = a[0, 0] - a[0, 1], less that of the reference. The
    gradient is -beta sigmoid(-beta margin) (1, -1) for the first step and 0 for the second, whose token is the same.
    """
    logits, reference = np.array([[0.4, -0.3], [0.2, 0.9]]), np.array([[-0.1, 0.5], [0.0, 0.3]])
    pack = on_device(make_pack([[5, 6]], [[7, 6]]))
    places = np.flatnonzero(pack.text_weights[0]).reshape(2, 3)  # two words and the closing token
    written = np.array([[0, 1], [1, 1]])

    def losses(a):
        ce = jax.nn.logsumexp(a, axis=1)[None, :] - jnp.stack([a[np.arange(2), tokens] for tokens in written])
        texts = jnp.zeros(72).at[places[:, :2]].set(ce)
        return TokenLosses(texts[None], jnp.zeros((1, 72, CONFIG.latent_dim)))

    def loss(a):
        sums = preference_sums(PreferenceConfig(BETA), 1.0, pack, losses(a), losses(jnp.asarray(reference)))
        return mean_preference_loss(sums, sums.pairs), sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
    margin = (0.4 + 0.3) - (-0.1 - 0.5)
    np.testing.assert_allclose(value, -np.log(sigmoid(BETA * margin)), rtol=1e-6)
    slope = -BETA * sigmoid(-BETA * margin)
    np.testing.assert_allclose(gradient, [[slope, -slope], [0, 0]], atol=1e-6)
    assert (sums.pairs, sums.correct, sums.better_targets, sums.worse_targets) == (1, 1, 3, 3)
    np.testing.assert_allclose([sums.margin, sums.text_margin, sums.flow_margin], [margin, margin, 0], rtol=1e-6)


def test_closed_form_of_velocities():
    """One value off by e and the reference's off by 0: l - l_ref = -flow_weight e^2, on the worse side alone."""
    pack = on_device(make_pack([1], [1]))
    zeros = TokenLosses(jnp.zeros((1, 72)), jnp.zeros((1, 72, CONFIG.latent_dim)))
    worse = 2  # VAE tokens: better noised, clean, worse noised, clean

    def loss(e):
        model = zeros._replace(errors=zeros.errors.at[0, worse, 3].set(e))
        sums = preference_sums(PREFERENCE, CE_WEIGHT, pack, model, zeros)
        return sums.loss, sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(1.5)
    margin = FLOW_WEIGHT * 1.5**2
    np.testing.assert_allclose(value, -np.log(sigmoid(BETA * margin)), rtol=1e-6)
    np.testing.assert_allclose(gradient, -BETA * sigmoid(-BETA * margin) * FLOW_WEIGHT * 2 * 1.5, rtol=1e-5)
    metrics = preference_metrics(sums)
    np.testing.assert_allclose(metrics["flow_kl"], 1.5**2 / CONFIG.latent_dim / 2, rtol=1e-6)
    np.testing.assert_allclose([metrics["worse_reward"], metrics["flow_margin"]], [-margin, margin], rtol=1e-6)
    assert metrics["better_reward"] == 0 and metrics["text_kl"] == 0


def test_both_sides_of_a_pair_have_the_same_draws():
    """Of three pairs in two packs; the worse side of the second pair has an image more, the third none in common."""
    packs = stack([make_pack([3, 2], [3, 2], [2], [2, 4], row=3), make_pack([[5]], [3], row=4)])
    flow = jax.jit(functools.partial(draw_paired_inputs, CONFIG))(packs, jax.random.key(5))
    t, noise = np.asarray(flow.t), np.asarray(flow.noise)
    noised = [np.flatnonzero(row >= 0) for row in packs.vae_image]
    first = noised[0][:5], noised[0][5:10]
    second = noised[0][10:12], noised[0][12:18]
    for better, worse in (first, second):
        np.testing.assert_array_equal(t[0, better], t[0, worse[: len(better)]])
        np.testing.assert_array_equal(noise[0, better], noise[0, worse[: len(better)]])
    drawn = [t[0, first[0]], t[0, second[1]], t[1, noised[1]]]
    assert [len(np.unique(part)) for part in drawn] == [2, 2, 1]  # one timestep an image
    assert len(np.unique(np.concatenate(drawn))) == 5
    rows = np.concatenate([noise[0, first[0]], noise[0, second[1]], noise[1, noised[1]]])
    assert len(np.unique(rows, axis=0)) == 5 + 6 + 3
    assert not t[packs.vae_image < 0].any()


CASE = sizes(32, (2, 1, 16), mlp=40, vocab=61, vision=(16, 20, 2, 3), latent=(1, 3))
COMPUTE = ComputeConfig(block_q=32, block_k=32, loss_chunk=50)


@pytest.fixture(scope="module")
def case():
    """Two pairs that share prompts, plans and sizes, two models, and both in pdgen's form."""
    maker = SampleMaker(CASE, 3)
    samples = [maker.trajectory(4, grids, (2, 2)) for grids in ([(2, 3)], [(2, 3), (1, 2)], [(3, 1)], [(3, 1)])]
    models = [random_model(CASE, seed) for seed in (1, 2)]
    trees = [to_tree(CASE, model.state_dict().items()) for model in models]
    return samples, models, trees


def measure(model, sample):
    """The reference's l of one sample alone."""
    inputs, targets = pack_torch([sample], random_switches(CASE))
    values = model.losses(inputs, targets)
    return -CE_WEIGHT * values["ce_per_token"].sum() - FLOW_WEIGHT * values["mse_per_element"].sum()


@jax.jit
def differentiate(params, reference, pack, flow):
    """Loss, sums and gradient of a batch."""

    def loss(params):
        own, other = (TokenLosses(*token_losses(CASE, COMPUTE, tree, pack, flow)) for tree in (params, reference))
        sums = preference_sums(PREFERENCE, CE_WEIGHT, pack, own, other)
        return mean_preference_loss(sums, sums.pairs), sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, sums, gradient


@pytest.mark.slow
def test_a_pack_of_pairs_has_what_each_side_alone_has_in_torch(case):
    """Values and gradients; PyTorch reads every trajectory alone, with the draws that the pack has."""
    samples, (model, other), (params, reference) = case
    pack, flow = to_pack(CASE, samples, (3, 2, 5))
    batch, flow = on_device(pack), FlowInputs(flow.t[None], flow.noise[None])
    value, sums, gradient = differentiate(params, reference, batch, flow)
    with torch.no_grad():
        before = [measure(other, sample) for sample in samples]
    model.zero_grad(set_to_none=True)
    gains = [measure(model, sample) - old for sample, old in zip(samples, before)]
    margins = torch.stack([gains[0] - gains[1], gains[2] - gains[3]])
    loss = -torch.nn.functional.logsigmoid(BETA * margins).mean()
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    np.testing.assert_allclose(sums.better, (gains[0] + gains[2]).item(), rtol=1e-4)
    np.testing.assert_allclose(sums.worse, (gains[1] + gains[3]).item(), rtol=1e-4)
    np.testing.assert_allclose(sums.margin, margins.sum().item(), rtol=1e-3)
    expected = to_tree(CASE, ((name, p.grad) for name, p in model.named_parameters()))
    for name in bagel.FIXED_TABLES:  # buffers in PyTorch
        del expected[name], gradient[name]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * largest), gradient, expected)
