"""Memory and time of a training step on other machines: the real step, compiled for them.

Nothing is computed and no array is made: parameters, optimizer state and batch are shapes with shardings. They
determine the bytes of the state; the compiler reports the bytes of gradients and activations.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdgen.checkpoints.runs.base import open_init
from pdgen.config import ModelConfig, get_preset
from pdgen.models import bagel
from pdgen.sequence.layout import Budgets, Pack, pack_shapes
from pdgen.sharding import RULES, parameter_shardings
from pdgen.train.monitor.flops import model_flops, peak_flops
from pdgen.train.planning.topology import USABLE_FRACTION, Topology, compiler_options, make_compile_only_devices
from pdgen.train.preflight import check_sharding, make_run_mesh
from pdgen.train.run_config import RunConfig, RunError
from pdgen.train.state import Params, StepConfig, TrainState, abstract_state, add_shardings, state_shardings
from pdgen.train.step import jit_step


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs on one device.

    Attributes:
      parameters: the model's parameters, trained and frozen, and those of the reference.
      optimizer: the optimizer's moments and counters.
      ema: the moving average.
      batch: the packs of one step.
      temporaries: what lives only within the step: gradients, activations, gathered parameters.
      gradients: the part of the temporaries that the gradients take at the end of the backward pass.
      program: the compiled code, if it is in the device's memory.
    """

    parameters: int
    optimizer: int
    ema: int
    batch: int
    temporaries: int
    gradients: int
    program: int

    @property
    def peak(self) -> int:
        """Peak memory. The state is donated, so the next state replaces it."""
        return self.parameters + self.optimizer + self.ema + self.batch + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step compiled for a mesh: its memory, and the seconds for tracing and compiling."""

    memory: StepMemory
    trace_seconds: float
    compile_seconds: float


def read_model_config(run: RunConfig) -> ModelConfig:
    """Return the sizes of the run's model: the preset's, or if ``model`` is "", those of the ``init`` checkpoint."""
    return get_preset(run.model) if run.model else open_init(run.init).config


def abstract_arguments(
    step: StepConfig, budgets: Budgets, rows: int, mesh: Mesh
) -> tuple[TrainState, Pack, jax.ShapeDtypeStruct]:
    """Return state, batch and key of a step as shapes with the shardings that training uses."""
    state = add_shardings(abstract_state(step), state_shardings(step, mesh))
    shapes = pack_shapes(budgets, step.model, rows)
    batch = add_shardings(shapes, jax.tree.map(lambda _: NamedSharding(mesh, RULES.spec("batch")), shapes))
    key = add_shardings(jax.eval_shape(lambda: jax.random.key(0)), NamedSharding(mesh, PartitionSpec()))
    return state, batch, key


def abstract_reference(step: StepConfig, mesh: Mesh) -> Params | None:
    """Return the reference of a step as shapes with shardings; None if it needs none."""
    if not step.needs_reference:
        return None
    shapes = nn.unbox(bagel.abstract_params(step.model, step.compute.param_dtype))
    return add_shardings(shapes, parameter_shardings(bagel.abstract_params(step.model), mesh))


def count_device_bytes(tree: Any) -> int:
    """Return the bytes that a tree of shapes with shardings takes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compile_step(
    step: StepConfig, budgets: Budgets, rows: int, mesh: Mesh, options: Mapping[str, Any] | None = None
) -> CompiledStep:
    """Compile the training step for the devices of a mesh, which need not be present.

    Args:
      step: static settings of the step.
      budgets, rows: slots of a pack, packs in the global batch.
      mesh: see ``pdgen.train.preflight.make_run_mesh``.
      options: options of the compiler, see ``compiler_options``.

    Raises:
      RunError: the mesh does not divide the model, or the compiler fails, for instance for lack of memory.
    """
    check_sharding(step, mesh)
    state, batch, key = abstract_arguments(step, budgets, rows, mesh)
    reference = abstract_reference(step, mesh)
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        lowered = jit_step(step).lower(state, batch, key, reference)
        traced = time.perf_counter()
        try:
            stats = lowered.compile(compiler_options=dict(options or {})).memory_analysis()
        except jax.errors.JaxRuntimeError as fault:
            raise RunError(f"the step does not compile: {' '.join(str(fault).split())[:400]}") from None
        done = time.perf_counter()
    assert stats is not None  # the GPU, TPU and CPU compilers all report memory
    memory = StepMemory(
        parameters=count_device_bytes((state.trained, state.frozen, reference)),
        optimizer=count_device_bytes(state.opt_state),
        ema=count_device_bytes(state.ema),
        batch=count_device_bytes(batch),
        temporaries=stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes,
        gradients=count_device_bytes(state.trained),
        program=stats.generated_code_size_in_bytes,
    )
    return CompiledStep(memory, traced - start, done - traced)


def plan_run(run: RunConfig, topology: Topology, sample_length: float, mfu: float) -> dict[str, Any]:
    """Compile a run's step for a topology and return its memory and time as plain data.

    Args:
      run: the config. Its data need not exist, nor its checkpoint if ``model`` is given.
      topology: machine to compile for.
      sample_length: mean length in tokens of the sample that a token belongs to: sum(length ** 2) / sum(length).
      mfu: model FLOPs utilisation, 0 to 1, to assume for the time of a step.

    Raises:
      RunError, TopologyError, ConfigError: the run, its mesh or its model does not fit the topology.
    """
    model = read_model_config(run)
    step = run.step_config(model)
    devices = make_compile_only_devices(topology)
    mesh = make_run_mesh(run, devices)
    compiled = compile_step(step, run.budgets, run.rows, mesh, compiler_options(topology))
    memory, kind = compiled.memory, devices[0].device_kind
    usable = USABLE_FRACTION * topology.chip.memory
    tokens = run.rows * run.budgets.total
    flops = model_flops(model, tokens, tokens * min(sample_length, run.budgets.total))
    peak = peak_flops(kind)
    assert peak is not None  # known for every chip of a topology
    seconds = flops / (len(devices) * peak * mfu)
    return {
        "topology": topology.name,
        "device": kind,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "peak_bytes_per_device": memory.peak,
        "bytes_per_device": dataclasses.asdict(memory),
        "memory_bytes": int(topology.chip.memory),
        "usable_bytes": int(usable),
        "fits": memory.peak <= usable,
        "tokens_per_step": tokens,
        "flops_per_step": flops,
        "mfu": mfu,
        "step_seconds": seconds,
        "run_hours": seconds * run.num_steps / 3600,
        "trace_seconds": round(compiled.trace_seconds, 1),
        "compile_seconds": round(compiled.compile_seconds, 1),
        "jax": jax.__version__,
    }


def format_plan_table(facts: Mapping[str, Any], name: str) -> list[str]:
    """Format the result of ``plan_run`` as lines of text under a heading with ``name``."""
    sizes, seconds = facts["bytes_per_device"], facts["step_seconds"]
    speed = facts["tokens_per_step"] / seconds / facts["devices"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
    rows = {
        "parameters": sizes["parameters"],
        "optimizer": sizes["optimizer"],
        "moving average": sizes["ema"],
        "batch": sizes["batch"],
        "gradients": sizes["gradients"],
        "other temporaries": sizes["temporaries"] - sizes["gradients"],
        "program": sizes["program"],
        "peak": facts["peak_bytes_per_device"],
    }
    room = facts["usable_bytes"] - facts["peak_bytes_per_device"]
    verdict = (
        f"fits, {room / 1e9:.1f} GB left"
        if facts["fits"]
        else f"DOES NOT FIT, {-room / 1e9:.1f} GB too much: "
        "use more devices on fsdp, compute.remat=full, more accumulate or smaller budgets"
    )
    return [
        f"{name} on {facts['topology']}: {facts['devices']} x {facts['device']}, mesh {mesh}",
        "",
        f"{'bytes per device':<18}{'GB':>8}",
        *(f"{label:<18}{size / 1e9:>8.3f}" for label, size in rows.items()),
        f"of {facts['usable_bytes'] / 1e9:.1f} GB (the runtime keeps the rest of {facts['memory_bytes'] / 1e9:.0f}): "
        f"{verdict}",
        "",
        f"{facts['tokens_per_step']:,} tokens and {facts['flops_per_step']:.3g} FLOPs a step",
        f"at {facts['mfu']:.0%} MFU {seconds:.3g} s a step, {speed:,.0f} tokens/s a device, "
        f"{facts['run_hours']:.3g} hours in all",
        f"traced in {facts['trace_seconds']} s, compiled in {facts['compile_seconds']} s (jax {facts['jax']})",
    ]
