"""The batch, the model and one step that the tests of training share, in this process and in those they start."""

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from pdgen.config import ComputeConfig
from pdgen.interleave.layout import Budgets, LatentSegment, TextSegment, VitSegment, assemble, lay_out, stack
from pdgen.sharding import RULES, make_mesh
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.state import StepConfig, start_state, state_shardings
from pdgen.train.step import compiled_step, run_key
from tests.small import CONFIG, SWITCHES, shaken_params

ROWS = 8
COMPUTE = ComputeConfig(block_q=16, block_k=12, loss_chunk=10)
BUDGETS = Budgets(text=40, vit=12, vae=44)
KEY = 3
# Nothing is clipped, so that the first moments after one step are the gradient times 1 - b1. With eps 1e-15 the
# rounding of a zero gradient would become a whole step.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, schedule="constant", eps=1e-8, clip_norm=1e9)
STEP = StepConfig(CONFIG, COMPUTE, OPTIMIZER, num_steps=30, ce_weight=0.5)


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


def make_batch():
    return stack([make_pack(row) for row in range(ROWS)])


def flat(tree):
    """A nested dict of arrays as one of numpy arrays by name."""
    return {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def after_one_step(config, mesh_shape=None):
    """Metrics, gradients and updated parameters of one step on a mesh of all processes, or on one device.

    The mesh's first axes divide the processes; each feeds its own rows.
    """
    params, batch, key = shaken_params(), make_batch(), jax.random.key(KEY)
    if mesh_shape is None:
        state, metrics = compiled_step(config)(jax.jit(lambda p: start_state(config, p, key))(params), batch, key)
    else:
        mesh = make_mesh(mesh_shape, jax.devices()[: int(np.prod(mesh_shape))])
        with jax.set_mesh(mesh):
            shardings = state_shardings(config, mesh)
            state = jax.jit(lambda p: start_state(config, p, key), out_shardings=shardings)(params)
            count, first = ROWS // jax.process_count(), jax.process_index() * (ROWS // jax.process_count())
            rows = NamedSharding(mesh, RULES.spec("batch"))
            batch = jax.tree.map(
                lambda leaf: jax.make_array_from_process_local_data(rows, leaf[first : first + count]), batch
            )
            state, metrics = compiled_step(config)(state, batch, run_key(KEY, mesh))
        kept = jax.tree.map(lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim), state, shardings)
        assert all(jax.tree.leaves(kept))  # the next step finds the state where this one did
    assert int(state.step) == 1
    results = metrics, state.opt_state[1].mu, state.trained
    metrics, moments, updated = multihost_utils.process_allgather(results, tiled=True)
    gradients = {name: mu / (1 - config.optimizer.b1) for name, mu in flat(moments).items()}
    return flat(metrics), gradients, flat(updated)
