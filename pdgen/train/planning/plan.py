"""What a training step needs on machines that one does not have: the very step, compiled for them.

Nothing is computed and no array is made: parameters, optimiser and batch are shapes with shardings. Bytes of the
state follow from these alone; gradients and activations are what the compiler says it must hold beside them.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdgen.checkpoints.pdgen_checkpoint import open_checkpoint
from pdgen.config import ModelConfig, get_preset
from pdgen.sequence.layout import Budgets, Pack, pack_shapes
from pdgen.sharding import RULES, make_mesh
from pdgen.train.monitor.flops import model_flops, peak_flops
from pdgen.train.planning.topology import USABLE, Topology, absent_devices, compiler_options
from pdgen.train.preflight import check_divides, mesh_shape
from pdgen.train.run_config import RunConfig, RunError
from pdgen.train.state import StepConfig, TrainState, abstract_state, state_shardings
from pdgen.train.step import compiled_step


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parameters: of the model, trained and frozen.
      optimizer: Adam's moments and counters.
      ema: the moving average.
      batch: one step's packs.
      temporaries: gradients, activations, gathered parameters: all that lives within the step alone.
      gradients: of these, the gradients at the end of the backward pass.
      program: the compiled code, where it stays in the device's memory.
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
        """The most that is held at one time. The state is donated, so the next one takes its place."""
        return self.parameters + self.optimizer + self.ema + self.batch + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step compiled for a mesh: its memory, and the seconds that tracing and compiling took."""

    memory: Memory
    trace_seconds: float
    compile_seconds: float


def planned_model(run: RunConfig) -> ModelConfig:
    """The sizes of the run's model: the preset's, or with ``model`` "" those of its ``init`` checkpoint."""
    return get_preset(run.model) if run.model else open_checkpoint(run.init).config


def planned_mesh(run: RunConfig, devices: list[jax.Device]) -> Mesh:
    """The mesh that the run would make of the devices. Raises RunError as training does."""
    return make_mesh(mesh_shape(run, len(devices)), devices)


def abstract_arguments(
    step: StepConfig, budgets: Budgets, rows: int, mesh: Mesh
) -> tuple[TrainState, Pack, jax.ShapeDtypeStruct]:
    """State, batch and key of a step as shapes with the shardings that training gives them."""

    def laid_out(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)

    state = laid_out(abstract_state(step), state_shardings(step, mesh))
    shapes = pack_shapes(budgets, step.model, rows)
    batch = laid_out(shapes, jax.tree.map(lambda _: NamedSharding(mesh, RULES.spec("batch")), shapes))
    key = laid_out(jax.eval_shape(lambda: jax.random.key(0)), NamedSharding(mesh, PartitionSpec()))
    return state, batch, key


def device_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compile_step(
    step: StepConfig, budgets: Budgets, rows: int, mesh: Mesh, options: Mapping[str, Any] | None = None
) -> Compiled:
    """Compiles training's own step for the mesh's devices, present or not.

    Args:
      step: all that is static in it.
      budgets, rows: of the global batch.
      mesh: as ``planned_mesh`` makes it.
      options: of the compiler.

    Raises:
      RunError: the mesh does not divide the model, or the compiler finds no way to fit the step.
    """
    check_divides(step, mesh)
    state, batch, key = abstract_arguments(step, budgets, rows, mesh)
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        lowered = compiled_step(step).lower(state, batch, key)
        traced = time.perf_counter()
        try:
            stats = lowered.compile(compiler_options=dict(options or {})).memory_analysis()
        except jax.errors.JaxRuntimeError as fault:
            raise RunError(f"the step does not compile: {' '.join(str(fault).split())[:400]}") from None
        done = time.perf_counter()
    memory = Memory(
        parameters=device_bytes((state.trained, state.frozen)),
        optimizer=device_bytes(state.opt_state),
        ema=device_bytes(state.ema),
        batch=device_bytes(batch),
        temporaries=stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes,
        gradients=device_bytes(state.trained),
        program=stats.generated_code_size_in_bytes,
    )
    return Compiled(memory, traced - start, done - traced)


def plan(run: RunConfig, topology: Topology, sample_length: float, mfu: float) -> dict[str, Any]:
    """Compiles a run's step for a topology and says what it takes, as plain data.

    Args:
      run: the config; neither its data nor, with ``model``, its checkpoint need exist.
      topology: to compile for.
      sample_length: tokens that an average token's sample has: sum(length ** 2) / sum(length).
      mfu: share of the peak at which the time of a step is stated.

    Raises:
      RunError, TopologyError, ConfigError: in one line.
    """
    model = planned_model(run)
    step = run.step(model)
    devices = absent_devices(topology)
    mesh = planned_mesh(run, devices)
    compiled = compile_step(step, run.budgets, run.rows, mesh, compiler_options(topology))
    memory, kind = compiled.memory, devices[0].device_kind
    usable = USABLE * topology.chip.memory
    tokens = run.rows * run.budgets.total
    flops = model_flops(model, tokens, tokens * min(sample_length, run.budgets.total))
    peak = peak_flops(kind)
    assert peak is not None  # of every chip that a topology names
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


def table(facts: Mapping[str, Any], name: str) -> list[str]:
    """The plan as lines of text."""
    sizes, seconds = facts["bytes_per_device"], facts["step_seconds"]
    speed = facts["tokens_per_step"] / seconds / facts["devices"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
    rows = {
        "parameters": sizes["parameters"],
        "optimiser": sizes["optimizer"],
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
