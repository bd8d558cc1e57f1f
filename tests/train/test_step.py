"""The training step: sums that add up, noise that depends on the pack alone, chunked losses, equality on all meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from pdgen.config import ComputeConfig
from pdgen.models import bagel
from pdgen.sequence.layout import TARGETS, Budgets, pack_shapes
from pdgen.train.monitor.flops import model_flops
from pdgen.train.monitor.metrics import drop_absent, loss_metrics
from pdgen.train.objectives.loss import (
    FlowInputs,
    LossSums,
    cross_entropy,
    draw_flow_inputs,
    loss_sums,
    token_losses,
    total_loss,
)
from pdgen.train.state import abstract_state, make_state
from pdgen.train.step import compute_gradients, train_step
from tests.support.small import CONFIG, shaken_params
from tests.train.cases import (
    BUDGETS,
    COMPUTE,
    KEY,
    OPTIMIZER,
    ROWS,
    STEP,
    after_one_step,
    compile_step,
    flat,
    make_batch,
)
from tests.train.two_processes import run_two_processes


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def params():
    return shaken_params()


@pytest.fixture(scope="module")
def reference():
    """Metrics, gradients and updated parameters of one step."""
    return after_one_step(STEP)[:3]


def test_metrics(params, batch, reference):
    metrics, gradients, _ = reference
    np.testing.assert_allclose(metrics["ce_targets"], batch.text_weights.sum(), rtol=1e-6)
    assert metrics["mse_targets"] == (batch.vae_image >= 0).sum()
    np.testing.assert_allclose(metrics["loss"], 0.5 * metrics["ce"] + metrics["mse"], rtol=1e-6)
    squares = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in gradients.values())
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(squares), rtol=1e-5)


def test_norms_of_the_experts(reference):
    """Each tensor belongs to one part, and the parts add up to the whole norm."""
    metrics, gradients, _ = reference
    squares = dict.fromkeys(("und", "gen", "other"), 0.0)
    for name, leaf in gradients.items():
        part = "und" if "/und/" in name else "gen" if "/gen/" in name else "other"
        squares[part] += np.sum(np.square(leaf, dtype=np.float64))
    for part, total in squares.items():
        np.testing.assert_allclose(metrics[f"grad_norm_{part}"], np.sqrt(total), rtol=1e-5)
    for name in ("grad_norm", "update_norm", "param_norm"):
        parts = [float(metrics[f"{name}_{part}"]) for part in squares]
        np.testing.assert_allclose(metrics[name], np.linalg.norm(parts), rtol=1e-5)


def test_an_update_is_what_moves_the_parameters(params, reference):
    metrics, _, updated = reference
    moved = [updated[name] - leaf for name, leaf in flat(params).items() if name in updated]
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in moved))
    np.testing.assert_allclose(metrics["update_norm"], norm, rtol=1e-3)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-3, rtol=1e-6)


def test_fill_and_flops(batch, reference):
    """Of the packs in ``cases``: 9 ViT tokens each, 32 or 25 VAE tokens; documents counted by their first slot."""
    metrics, _, _ = reference
    lengths = np.concatenate(
        [np.unique(start[end > 0], return_counts=True)[1] for start, end in zip(batch.k_start, batch.k_end)]
    )
    assert len(lengths) == 16 and metrics["tokens"] == lengths.sum()
    np.testing.assert_allclose(
        metrics["flops"], model_flops(CONFIG, float(lengths.sum()), float(np.square(lengths).sum())), 1e-6
    )
    np.testing.assert_allclose(metrics["fill_vit"], 9 / 12, rtol=1e-6)
    np.testing.assert_allclose(metrics["fill_vae"], (32 + 25) / 2 / 44, rtol=1e-6)
    text = metrics["tokens"] - 8 * 9 - 4 * (32 + 25)
    np.testing.assert_allclose(metrics["fill_text"], text / (8 * BUDGETS.text), rtol=1e-6)


def test_losses_by_kind_and_band(params, batch, reference):
    """Against numpy, from the losses of every token."""
    metrics, _, _ = reference
    flow = draw_flow_inputs(CONFIG, batch, jax.random.key(KEY))
    losses = jax.jit(functools.partial(token_losses, CONFIG, COMPUTE))(params, batch, flow)
    ce, mse, t = np.asarray(losses[0]), np.square(losses[1]).mean(axis=-1), np.asarray(flow.t)
    for number, kind in enumerate(TARGETS):
        weights = batch.text_weights * (batch.text_kinds == number)
        assert weights.any()
        np.testing.assert_allclose(metrics[f"ce_{kind}"], np.average(ce, weights=weights), rtol=1e-5)
    found = 0
    for band in range(4):
        inside = (batch.vae_weights > 0) & (t >= band / 4) & (t < band / 4 + 0.25)
        assert metrics[f"mse_{band}_targets"] == inside.sum()
        if inside.any():
            found += 1
            np.testing.assert_allclose(metrics[f"mse_{band}"], mse[inside].mean(), rtol=1e-5)
    assert found >= 3


@pytest.mark.slow
def test_training_lowers_the_loss(params, batch):
    """Eight packs seen thirty times; the fixed position tables stay as they are."""
    state, losses = jax.jit(functools.partial(make_state, STEP))(params, jax.random.key(0)), []
    step = compile_step(STEP, state, batch, jax.random.key(KEY))
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(KEY))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    for name in bagel.FIXED_TABLES:
        np.testing.assert_array_equal(state.frozen[name]["table"], params[name]["table"])


def test_the_sums_of_two_halves_are_those_of_the_batch(params, batch, reference):
    """One loss for the whole batch, however it is split: normalised by targets, not by rows."""
    of = jax.jit(functools.partial(loss_sums, CONFIG, COMPUTE))
    halves = [jax.tree.map(lambda leaf, part=part: leaf[part], batch) for part in (slice(0, 4), slice(4, 8))]
    first, second = (of(params, half, draw_flow_inputs(CONFIG, half, jax.random.key(KEY))) for half in halves)
    for a, b in zip(first, second):
        assert np.any(np.asarray(a) != b)
    for name, value in loss_metrics(jax.tree.map(jnp.add, first, second), ce_weight=0.5).items():
        np.testing.assert_allclose(value, reference[0][name], rtol=1e-5, err_msg=name)


def sums(ce, ce_weight, mse, mse_count):
    return LossSums(*(jnp.array(values, jnp.float32) for values in (ce, ce_weight, mse, mse_count)))


def test_loss_by_kind_and_band():
    """0.5 * (12 + 3) / (4 + 1) + (10 + 2) / (5 + 1); a kind without targets has no mean of its own."""
    made = sums([12, 0, 0, 3, 0], [4, 0, 0, 1, 0], [0, 10, 0, 2], [0, 5, 0, 1])
    metrics = {name: float(value) for name, value in loss_metrics(made, ce_weight=0.5).items()}
    assert (metrics["loss"], metrics["ce"], metrics["mse"]) == (3.5, 3, 2)
    shown = drop_absent(metrics)
    kinds = {"ce_plan": 3, "ce_switch": 3, "mse_1": 2, "mse_3": 2}
    weights = {"ce_plan": 4, "ce_switch": 1, "mse_1": 5, "mse_3": 1, "ce": 5, "mse": 6}
    means = {"loss": 3.5, "ce": 3, "mse": 2}
    assert shown == means | kinds | {f"{name}_targets": weight for name, weight in weights.items()}


def test_a_batch_without_targets_of_a_kind_adds_nothing():
    metrics = loss_metrics(sums([0] * len(TARGETS), [0] * len(TARGETS), [10, 0, 0, 0], [5, 0, 0, 0]), ce_weight=0.5)
    values = {name: float(value) for name, value in metrics.items()}
    assert values["loss"] == 2 and not {"ce", "ce_targets"} & set(drop_absent(values))


def test_weights_that_sum_to_less_than_one_still_make_a_mean():
    """0.5 * 0.3 / 0.25, not 0.5 * 0.3."""
    loss = total_loss(LossSums(*map(jnp.float32, (0.3, 0.25, 0, 0))), ce_weight=0.5)
    np.testing.assert_allclose(loss, 0.6, rtol=1e-6)


def test_noise_follows_the_pack_s_number(batch):
    """Reordered rows draw the same bits; other rows and keys draw other values."""
    draw = jax.jit(functools.partial(draw_flow_inputs, CONFIG))
    order = np.array([5, 0, 7, 2, 1, 6, 3, 4])
    moved = jax.tree.map(lambda leaf: leaf[order], batch)
    flow = draw(batch, jax.random.key(KEY))
    for a, b in zip(draw(moved, jax.random.key(KEY)), flow):
        np.testing.assert_array_equal(a, b[order])
    assert len(np.unique(flow.noise)) > 0.99 * flow.noise.size
    assert not np.any(draw(batch, jax.random.key(KEY + 1)).noise == flow.noise)


def test_timesteps(batch):
    """One per noised image, shifted; 0 for clean images and padding."""
    flow = draw_flow_inputs(CONFIG, batch, jax.random.key(KEY))
    drawn = set()
    for row, numbers in enumerate(batch.vae_image):
        t = np.asarray(flow.t[row])
        assert not t[numbers < 0].any()
        for number in np.unique(numbers[numbers >= 0]):
            values = set(t[numbers == number].tolist())
            assert len(values) == 1 and 0 < min(values) < 1
            drawn |= values
    assert len(drawn) == sum(len(np.unique(numbers[numbers >= 0])) for numbers in batch.vae_image)


@pytest.mark.slow
def test_noised_tokens_carry_noise_and_clean_ones_do_not(params, batch):
    """The loss depends on the noise of targets and not on that of clean images."""
    flow, arrays = draw_flow_inputs(CONFIG, batch, jax.random.key(KEY)), jax.tree.map(jnp.asarray, batch)

    def loss(noise, params):
        return total_loss(loss_sums(CONFIG, COMPUTE, params, arrays, FlowInputs(flow.t, noise)), 0.5)

    touched = np.abs(jax.jit(jax.grad(loss))(flow.noise, params)).max(-1) > 0
    np.testing.assert_array_equal(touched, batch.vae_image >= 0)


@pytest.mark.parametrize(
    "budgets", [Budgets(40, 0, 44), Budgets(40, 12, 0), Budgets(40, 0, 0)], ids=["no vit", "no vae", "text alone"]
)
def test_streams_without_tokens(budgets):
    """A budget may be 0, for data without images of a kind."""
    state = abstract_state(STEP)
    step = functools.partial(train_step, STEP)
    after, _ = jax.eval_shape(step, state, pack_shapes(budgets, CONFIG, ROWS), jax.random.key(KEY))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_rows_that_do_not_divide():
    shapes = abstract_state(STEP), pack_shapes(Budgets(40, 0, 0), CONFIG, ROWS), jax.random.key(KEY)
    with pytest.raises(ValueError, match="a batch of 8 rows does not divide into accumulate = 3 micro-batches"):
        jax.eval_shape(functools.partial(compute_gradients, dataclasses.replace(STEP, accumulate=3)), *shapes)


def assert_same(result, expected):
    """Compare to 1e-5 of each metric and of each gradient's largest value; parameters if their gradient is not tiny."""
    (metrics, gradients, updated), (expected_metrics, expected_gradients, expected_updated) = result[:3], expected[:3]
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert gradients.keys() == updated.keys() == expected_gradients.keys()
    floor = 1e-7 * expected_metrics["grad_norm"]
    for name, gradient in expected_gradients.items():
        error, bound = np.abs(gradients[name] - gradient).max(), 1e-5 * np.abs(gradient).max() + floor
        assert error <= bound, f"{name}: {error:.1e} > {bound:.1e}"
        large = np.abs(gradient) > 1e-6
        np.testing.assert_allclose(
            updated[name][large],
            expected_updated[name][large],
            rtol=1e-5,
            atol=1e-3 * OPTIMIZER.learning_rate,
            err_msg=name,
        )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 8, 1)], ids=str)
def test_the_step_is_the_same_on_every_mesh(mesh, reference):
    assert_same(after_one_step(STEP, mesh), reference)


@pytest.mark.slow
@pytest.mark.parametrize("mesh, accumulate", [((1, 1, 1), 4), ((2, 2, 2), 2)], ids=str)
def test_the_step_is_the_same_with_micro_batches(mesh, accumulate, reference):
    """Losses are normalised by the targets of the whole batch; micro-batches have different numbers of them."""
    assert_same(after_one_step(dataclasses.replace(STEP, accumulate=accumulate), mesh), reference)


@pytest.mark.slow
def test_the_step_is_the_same_in_two_processes(reference, tmp_path):
    """Four devices each, parameters split over both, two micro-batches."""
    run_two_processes("step", tmp_path)
    for number in range(2):
        parts = [dict(np.load(tmp_path / f"{number}.{part}.npz")) for part in ("metrics", "gradients", "updated")]
        assert_same(parts, reference)


def plain_cross_entropy(params, hidden, targets):
    log_probabilities = jax.nn.log_softmax(hidden @ params["language"]["head"]["kernel"].T)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 10, 64], ids="chunk {}".format)
def test_chunked_cross_entropy(chunk):
    """Values and gradients of -log softmax(x W)[target]; chunks of one, of some, larger than the row."""
    rng = np.random.default_rng(chunk)
    hidden, weight = (jnp.float32(rng.normal(size=shape)) for shape in ((2, 23, 8), (2, 23)))
    targets = jnp.int32(rng.integers(0, 50, (2, 23)))
    params = {"language": {"head": {"kernel": jnp.float32(rng.normal(size=(50, 8)))}}}

    def values(function):
        weighted = lambda params, hidden: jnp.sum(function(params, hidden, targets) * weight)  # noqa: E731
        return function(params, hidden, targets), jax.grad(weighted, argnums=(0, 1))(params, hidden)

    ours = values(functools.partial(cross_entropy, ComputeConfig(loss_chunk=chunk)))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(values(plain_cross_entropy)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def list_sizes(jaxpr):
    """Yield the number of elements of every array that a jaxpr and its inner jaxprs compute."""
    for equation in jaxpr.eqns:
        yield from (var.aval.size for var in equation.outvars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from list_sizes(inner)


def test_logits_of_a_long_row_never_exist_at_once():
    """8,192 tokens, vocabulary 152,064: no array is larger than the logits of a chunk, forward and backward."""
    tokens, vocabulary, chunk = 8192, 152064, 128
    params = {"language": {"head": {"kernel": jax.ShapeDtypeStruct((vocabulary, 16), jnp.float32)}}}
    hidden = jax.ShapeDtypeStruct((1, tokens, 16), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def largest(function):
        gradient = jax.grad(lambda *inputs: function(*inputs).sum(), argnums=(0, 1))
        return max(list_sizes(jax.make_jaxpr(gradient)(params, hidden, targets).jaxpr))

    assert largest(functools.partial(cross_entropy, ComputeConfig(loss_chunk=chunk))) == chunk * vocabulary
    assert largest(plain_cross_entropy) == tokens * vocabulary
