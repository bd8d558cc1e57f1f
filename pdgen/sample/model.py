"""The model that sampling runs: sizes, parameters, tokenizer, grammar and compiled functions in one frozen object."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pdgen.checkpoints.load import LoadedModel, make_shardings
from pdgen.checkpoints.runs.layout import TrainingLayout
from pdgen.config import ComputeConfig, ModelConfig
from pdgen.models.linear import is_int8
from pdgen.models.streaming import HostLayers
from pdgen.sample.compiled import Compiler
from pdgen.sample.text import Grammar
from pdgen.sequence.grammar import Automaton, build_automaton
from pdgen.sequence.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Everything that sampling needs of a model; ``make_model`` builds one.

    Attributes:
      config, compute: sizes; dtype and tiles.
      params: ``{"model": tree, "autoencoder": tree}``, on the devices, but for the layers of ``offload``.
      tokenizer, automaton: the checkpoint's tokenizer and its decoding grammar.
      compiler: keeps the compiled functions.
      mesh: splits parameters and rows; None = one device.
      name, digest: of the checkpoint, as trajectories record them; "" for parameters made in memory.
      layout: how its training laid out images; None if that is not recorded.
      offload: the expert, "und" or "gen", whose layers are in host memory; None = neither.
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    compute: ComputeConfig
    automaton: Automaton
    compiler: Compiler
    mesh: Mesh | None = None
    name: str = ""
    digest: str = ""
    layout: TrainingLayout | None = None
    offload: str | None = None

    @functools.cached_property
    def grammar(self) -> Grammar:
        """The automaton's tables on the device."""
        return Grammar(jnp.asarray(self.automaton.table), jnp.asarray(self.automaton.closings))

    @property
    def static(self) -> tuple[ModelConfig, ComputeConfig]:
        """The static arguments of compiled functions."""
        return self.config, self.compute

    @property
    def text_switches(self) -> tuple[int, int]:
        """Ids of <|im_start|> and <|im_end|>."""
        return self.tokenizer.im_start, self.tokenizer.im_end

    @property
    def image_switches(self) -> tuple[int, int]:
        """Ids of <|vision_start|> and <|vision_end|>."""
        return self.tokenizer.vision_start, self.tokenizer.vision_end

    @property
    def row_shards(self) -> int:
        """Number of devices that the rows are split over."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] if self.mesh else 1

    def enter_mesh(self) -> contextlib.AbstractContextManager:
        """Return a context manager that sets the mesh, if there is one."""
        return jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()


def make_model(
    loaded: LoadedModel,
    compute: ComputeConfig | None = None,
    mesh: Mesh | None = None,
    quick: bool = False,
    offload: str | None = None,
) -> Model:
    """Put a loaded checkpoint on the devices and build its grammar.

    Args:
      compute: dtype and tiles; by default the dtype that the parameters are stored in (that of an int8 model's norms).
      mesh: splits parameters and rows; None = one device.
      quick: compile faster, to code that runs slower, for a few trajectories on a CPU; see ``Compiler``.
      offload: the expert, "und" or "gen", whose layers stay in host memory. Wherever it runs, they are copied to the
        device one by one. It changes no number.

    Raises:
      ShardingError: the mesh's tensor axis does not divide the model's key/value heads, there is no such expert, or the
        devices cannot read host memory.
    """
    params, int8 = loaded.params, is_int8(loaded.params["model"])
    unmoved = mesh is None and offload is None
    shardings = None if unmoved else make_shardings(loaded.config, mesh, int8, offload)
    placed = jax.device_put(params, shardings)
    return describe_model(loaded._replace(params=placed), compute, mesh, quick, offload)


def _mark_offloaded(params: dict[str, Any], expert: str) -> dict[str, Any]:
    """Return the same parameters with one expert's layers as ``HostLayers``."""
    language = params["model"]["language"]
    layers = language["layers"] | {expert: HostLayers(language["layers"][expert])}
    return params | {"model": params["model"] | {"language": language | {"layers": layers}}}


def describe_model(
    loaded: LoadedModel,
    compute: ComputeConfig | None = None,
    mesh: Mesh | None = None,
    quick: bool = False,
    offload: str | None = None,
) -> Model:
    """Return the model with its parameters as they are, which may be shapes; arguments as ``make_model``."""
    config, params, tokenizer, name, digest, layout = loaded
    language, int8 = params["model"]["language"], is_int8(params["model"])
    stored = (language["norm"]["und"]["scale"] if int8 else language["head"]["kernel"]).dtype.name
    return Model(
        config=config,
        params=params if offload is None else _mark_offloaded(params, offload),
        tokenizer=tokenizer,
        compute=compute or ComputeConfig(dtype=stored),
        automaton=build_automaton(tokenizer, config.language.vocab_size),
        compiler=Compiler(quick, copy_ahead=offload is not None),
        mesh=mesh,
        name=name,
        digest=digest,
        layout=layout,
        offload=offload,
    )
