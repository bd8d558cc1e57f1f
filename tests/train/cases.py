"""The batch, model and step that tests of training share."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from pdgen.config import ComputeConfig
from pdgen.sequence.layout import Budgets, LatentSegment, TextSegment, VitSegment, assemble, lay_out, stack
from pdgen.sharding import RULES, has_mesh, make_mesh
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.state import StepConfig, TrainState, make_state, state_shardings
from pdgen.train.step import jit_step, make_run_key
from tests.support.small import CONFIG, SWITCHES, shaken_params

ROWS = 8
COMPUTE = ComputeConfig(block_q=16, block_k=12, loss_chunk=10)
BUDGETS = Budgets(text=48, vit=12, vae=44)
KEY = 3
# Nothing is clipped, so that the first moments after one step are the gradient times 1 - b1. With eps 1e-15 the
# rounding of a zero gradient would become a whole step.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, schedule="constant", eps=1e-8, clip_norm=1e9)
STEP = StepConfig(CONFIG, COMPUTE, OPTIMIZER, num_steps=30, ce_weight=0.5)


def make_pack(row):
    """Make a pack of two documents with texts and images; packs differ in the weight of their targets."""
    rng = np.random.default_rng(row)

    def text(loss, **kind):
        return TextSegment(rng.integers(0, 60, rng.integers(1, 6)).tolist(), loss, SWITCHES.vision_start, **kind)

    def latent(tokens, noised):
        values = rng.normal(size=(tokens, CONFIG.latent_dim)).astype(np.float32)
        return LatentSegment(values, rng.integers(0, 16, tokens, np.int32), noised)

    def vit(tokens):
        return VitSegment(rng.uniform(-1, 1, (tokens, 12)).astype(np.float32), rng.integers(0, 16, tokens, np.int32))

    inspection = {"stage": "inspect", "refine": (1, 3)}
    documents = [
        [text(False), text(True), latent(6, True), latent(6, False), vit(5), text(True, **inspection), latent(9, True)],
        [text(True, stage="thought"), latent(4, False), vit(4), text(True, stage="answer"), latent(7, True)][
            : 5 - row % 2
        ],
    ]
    layouts = [lay_out(segments, SWITCHES, CONFIG, balance_texts=True) for segments in documents]
    return assemble(layouts, BUDGETS, row)


def make_batch():
    return stack([make_pack(row) for row in range(ROWS)])


def flat(tree):
    """Flatten a nested dict of arrays to numpy arrays by name."""
    return {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


class Result(NamedTuple):
    """Result of a step: metrics, gradients and updated values of the trained parameters by name; state; program."""

    metrics: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    updated: dict[str, np.ndarray]
    state: TrainState
    program: jax.stages.Compiled


def compile_step(config, *inputs):
    """Compile the step with few optimisations, which halves the time: each program runs only a few times."""
    options = {"xla_backend_optimization_level": 0}
    return jit_step(config).lower(*inputs).compile(compiler_options=options)


def after_one_step(config, mesh_shape=None, params=None, adapters=None, ready=lambda: None):
    """Take one step on a mesh of all processes, or on one device without a mesh.

    Each process feeds its own rows, so the first axes of the mesh must divide the processes. ``params`` and
    ``adapters`` replace the default ones; ``ready`` is called when all is compiled.
    """
    params = shaken_params() if params is None else params

    def start(params, adapters):
        state = make_state(config, params, jax.random.key(0))
        return state if adapters is None else dataclasses.replace(state, trained=adapters)

    if mesh_shape is None:
        state = jax.jit(start)(params, adapters)
        inputs = state, make_batch(), jax.random.key(KEY)
        program = compile_step(config, *inputs)
        state, metrics = program(*inputs)
        return _result(config, state, metrics, program)
    mesh = make_mesh(mesh_shape, jax.devices()[: int(np.prod(mesh_shape))])
    with jax.set_mesh(mesh):
        shardings = state_shardings(config, mesh)
        state = jax.jit(start, out_shardings=shardings)(params, adapters)
        inputs = state, _make_global_batch(make_batch(), mesh), make_run_key(KEY, mesh)
        program = compile_step(config, *inputs)
        ready()
        state, metrics = program(*inputs)
        same = jax.tree.map(lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim), state, shardings)
        assert all(jax.tree.leaves(same))  # the next step needs no resharding
        return _result(config, state, metrics, program)


def _make_global_batch(batch, mesh):
    """Make a global batch from an equal share of rows in each process."""
    sharding = NamedSharding(mesh, RULES.spec("batch"))
    count = ROWS // jax.process_count()
    first = count * jax.process_index()
    local = jax.tree.map(lambda leaf: leaf[first : first + count], batch)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), local)


def _result(config, state, metrics, program):
    assert int(state.step) == 1
    values = metrics, state.opt_state[1].mu, state.trained
    if has_mesh():  # replicate, so that every process holds all values
        whole = functools.partial(jax.tree.map, lambda leaf: jax.sharding.reshard(leaf, PartitionSpec()))
        values = jax.jit(whole)(values)
    metrics, moments, updated = map(flat, values)
    gradients = {name: np.float32(mu) / (1 - config.optimizer.b1) for name, mu in moments.items()}
    return Result(metrics, gradients, updated, state, program)
