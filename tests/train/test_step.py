"""The training step: the same on every mesh, sums that add up, draws that follow the pack and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pdgen.config import ComputeConfig
from pdgen.interleave.layout import (
    Budgets,
    LatentSegment,
    TextSegment,
    VitSegment,
    assemble,
    lay_out,
    pack_shapes,
    stack,
)
from pdgen.models import bagel
from pdgen.sharding import RULES, make_mesh
from pdgen.train.loss import FlowInputs, LossSums, cross_entropy, draw_flow_inputs, loss_sums, total_loss
from pdgen.train.optimizer import OptimizerConfig, make_optimizer
from pdgen.train.state import TrainState, abstract_state, state_shardings
from pdgen.train.step import StepConfig, train_step
from tests.small import CONFIG, SWITCHES, shaken_params

ROWS = 8
COMPUTE = ComputeConfig(block_q=16, block_k=12, loss_chunk=10)
BUDGETS = Budgets(text=40, vit=12, vae=44)
KEY = 3


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


def make_pack(row):
    """Two documents with texts and images of their own; the rows differ in the number of targets."""
    rng = np.random.default_rng(row)

    def text(loss):
        return TextSegment(rng.integers(0, 60, rng.integers(1, 6)).tolist(), loss, SWITCHES.vision_start)

    def latent(tokens, noised):
        values = rng.normal(size=(tokens, CONFIG.latent_dim)).astype(np.float32)
        return LatentSegment(values, rng.integers(0, 16, tokens, np.int32), noised)

    def vit(tokens):
        return VitSegment(rng.uniform(-1, 1, (tokens, 12)).astype(np.float32), rng.integers(0, 16, tokens, np.int32))

    documents = [
        [text(False), text(True), latent(6, True), latent(6, False), vit(5), text(True), latent(9, True)],
        [latent(4, False), vit(4), text(False), latent(7, True)][: 4 - row % 2],
    ]
    return assemble([lay_out(segments, SWITCHES, CONFIG) for segments in documents], BUDGETS, row)


@pytest.fixture(scope="module")
def batch():
    return stack([make_pack(row) for row in range(ROWS)])


@pytest.fixture(scope="module")
def params():
    return shaken_params()


# The first member of the optimiser's state is the gradient, as it came.
OPTIMIZER = optax.chain(
    optax.trace(decay=0.0), make_optimizer(OptimizerConfig(learning_rate=3e-3, schedule="constant"), num_steps=30)
)
step = jax.jit(functools.partial(train_step, StepConfig(CONFIG, COMPUTE, ce_weight=0.5), OPTIMIZER))


def run_step(mesh_shape, params, batch):
    """Metrics and gradients of one step on a mesh, or on one device without any mesh."""
    state = TrainState(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params))
    if mesh_shape is None:
        after, metrics = step(state, batch, jax.random.key(KEY))
    else:
        mesh = make_mesh(mesh_shape, jax.devices()[: int(np.prod(mesh_shape))])
        with jax.set_mesh(mesh):
            shardings = state_shardings(CONFIG, OPTIMIZER, mesh)
            state = jax.device_put(state, shardings)
            batch = jax.device_put(batch, NamedSharding(mesh, RULES.spec("batch")))
            key = jax.device_put(jax.random.key(KEY), NamedSharding(mesh, PartitionSpec()))
            after, metrics = step(state, batch, key)
        kept = jax.tree.map(lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim), after, shardings)
        assert all(jax.tree.leaves(kept))  # the next step finds the state where this one did
    assert int(after.step) == 1
    return jax.tree.map(np.asarray, (metrics, after.opt_state[0].trace))


@pytest.fixture(scope="module")
def reference(params, batch):
    return run_step(None, params, batch)


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), (2, 2, 2), (1, 8, 1)], ids=str)
def test_every_mesh_gives_the_same_loss_and_gradients(mesh_shape, params, batch, reference):
    """Data, fully sharded and tensor parallel: within 1e-5 of each metric and of each gradient's largest value."""
    (expected_metrics, expected), (metrics, gradients) = reference, run_step(mesh_shape, params, batch)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    floor = 1e-7 * expected_metrics["grad_norm"]
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        error, bound = np.abs(a - b).max(), 1e-5 * np.abs(b).max() + floor
        assert error <= bound, f"{jax.tree_util.keystr(path)}: {error:.1e} > {bound:.1e}"


def test_metrics(params, batch, reference):
    metrics, gradients = reference
    assert metrics["ce_targets"] == batch.text_weights.sum()
    assert metrics["mse_targets"] == (batch.vae_image >= 0).sum()
    np.testing.assert_allclose(metrics["loss"], 0.5 * metrics["ce"] + metrics["mse"], rtol=1e-6)
    squares = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(squares), rtol=1e-5)


def test_training_lowers_the_loss(params, batch):
    """Eight packs seen thirty times; the fixed position tables stay as they are."""
    state = TrainState(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(KEY))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    for name in bagel.FIXED_TABLES:
        np.testing.assert_array_equal(state.params[name]["table"], params[name]["table"])


def test_the_sums_of_two_halves_are_the_batch_s(params, batch, reference):
    """One loss for the whole batch, however it is split: normalised by targets, not by rows."""
    sums = jax.jit(functools.partial(loss_sums, CONFIG, COMPUTE))
    halves = [jax.tree.map(lambda leaf, part=part: leaf[part], batch) for part in (slice(0, 4), slice(4, 8))]
    first, second = (sums(params, half, draw_flow_inputs(CONFIG, half, jax.random.key(KEY))) for half in halves)
    assert first.ce_weight != second.ce_weight
    loss, means = total_loss(jax.tree.map(jnp.add, first, second), ce_weight=0.5)
    for name, value in {"loss": loss, **means}.items():
        np.testing.assert_allclose(value, reference[0][name], rtol=1e-5, err_msg=name)


def test_total_loss():
    """0.5 * 12 / 4 + 10 / 5; a batch without targets of a kind adds nothing."""
    loss, means = total_loss(LossSums(*map(jnp.float32, (12, 4, 10, 5))), ce_weight=0.5)
    assert (float(loss), float(means["ce"]), float(means["mse"])) == (3.5, 3, 2)
    assert float(total_loss(LossSums(*map(jnp.float32, (0, 0, 10, 5))), ce_weight=0.5)[0]) == 2


def test_noise_follows_the_pack_s_number(batch):
    """Rows in another order draw the same, bit for bit; other rows, and other keys, draw something else."""
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


def test_noised_tokens_carry_noise_and_clean_ones_do_not(params, batch):
    """What the loss reads of the noise: nothing of a clean image's, all of a target's."""
    flow = draw_flow_inputs(CONFIG, batch, jax.random.key(KEY))

    def loss(noise, params):
        sums = loss_sums(CONFIG, COMPUTE, params, batch, FlowInputs(flow.t, noise))
        return total_loss(sums, 0.5)[0]

    touched = np.abs(jax.jit(jax.grad(loss))(flow.noise, params)).max(-1) > 0
    np.testing.assert_array_equal(touched, batch.vae_image >= 0)


@pytest.mark.parametrize(
    "budgets", [Budgets(40, 0, 44), Budgets(40, 12, 0), Budgets(40, 0, 0)], ids=["no vit", "no vae", "text alone"]
)
def test_streams_without_tokens(budgets):
    """Data without images of a kind gives a budget of 0: the step is traced all the same."""
    state = abstract_state(CONFIG, OPTIMIZER)
    after, _ = jax.eval_shape(step, state, pack_shapes(budgets, CONFIG, ROWS), jax.random.key(KEY))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def plain_cross_entropy(params, hidden, targets):
    log_probabilities = jax.nn.log_softmax(hidden @ params["language"]["head"]["kernel"].T)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 10, 64], ids="chunk {}".format)
def test_chunked_cross_entropy(chunk):
    """Values and gradients of -log softmax(x W)[target]; chunks of one, of some, larger than the row."""
    rng = np.random.default_rng(chunk)
    hidden, weight = rng.normal(size=(2, 23, 8)).astype(np.float32), rng.normal(size=(2, 23)).astype(np.float32)
    targets = rng.integers(0, 50, (2, 23), np.int32)
    params = {"language": {"head": {"kernel": rng.normal(size=(50, 8)).astype(np.float32)}}}

    def values(function):
        weighted = lambda params, hidden: jnp.sum(function(params, hidden, targets) * weight)  # noqa: E731
        return function(params, hidden, targets), jax.grad(weighted, argnums=(0, 1))(params, hidden)

    ours = values(functools.partial(cross_entropy, ComputeConfig(loss_chunk=chunk)))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(values(plain_cross_entropy)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def sizes(jaxpr):
    """Number of elements of every array that a jaxpr computes, inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield from (var.aval.size for var in equation.outvars)
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_logits_of_a_long_row_never_exist_at_once():
    """8,192 tokens over 152,064 words: nothing larger than a chunk's logits, forward and backward."""
    tokens, words, chunk = 8192, 152064, 128
    params = {"language": {"head": {"kernel": jax.ShapeDtypeStruct((words, 16), jnp.float32)}}}
    hidden = jax.ShapeDtypeStruct((1, tokens, 16), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def largest(function):
        gradient = jax.grad(lambda *inputs: function(*inputs).sum(), argnums=(0, 1))
        return max(sizes(jax.make_jaxpr(gradient)(params, hidden, targets).jaxpr))

    assert largest(functools.partial(cross_entropy, ComputeConfig(loss_chunk=chunk))) == chunk * words
    assert largest(plain_cross_entropy) == tokens * words
