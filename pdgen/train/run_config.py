"""One training run as a config says it: read strictly, so that a typing error never trains silently."""

import dataclasses
import json
from typing import Any

import msgspec
from absl import flags
from ml_collections import ConfigDict, config_flags

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.data.documents import TooLong, Turns
from pdgen.data.lengths import Broken
from pdgen.data.loader import LoaderConfig
from pdgen.sequence.layout import Budgets
from pdgen.sequence.segments import ConditionDropout
from pdgen.train.lora import LoraConfig
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.state import StepConfig

flags.disclaim_key_flags()  # --config is a flag of the command line that calls define_run_config, and in its --help


class RunError(ValueError):
    """A run that cannot start or go on; one line names the key or file and the remedy."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run. ``configs/*.py`` give these keys.

    Attributes:
      data: folder that build_data.py wrote.
      init: pdgen checkpoint to start from; "" = fresh parameters of ``model`` with shapes world's tokenizer
        and autoencoder.
      model: preset; with ``init`` the sizes that it must hold, "" for whatever it holds.
      num_steps: optimiser steps of the whole run.
      rows: packs in the global batch, a multiple of accumulate * mesh data * fsdp.
      mesh: sizes of (data, fsdp, tensor); one -1 takes the devices that are left.
      ce_weight: lambda_CE, the weight of the cross-entropy.
      accumulate: micro-batches that a step's rows are computed in, to save memory; the result is the same.
      save_every, log_every: in steps.
      keep: newest checkpoints that stay.
      keep_every: those of every keep_every-th step stay as well; 0 keeps none of these.
      workers: processes that read data; 0 reads in threads.
      held_out: records, the last of every subset in proportion to its size, that are never trained on; 0: none.
      held_out_every: steps between the losses of these, written to ``held_out.jsonl``.
      pictures_every: steps between pictures of ``prompts``; 0: none are drawn.
      prompts: what they are of; prompt n has the seed n every time.
      wandb: project that the curves go to besides TensorBoard; "": none.
      spike_factor: an update is left out where the loss or the gradient's norm exceeds this many times its running
        average; 0: none is.
      optimizer, lora, compute: see ``OptimizerConfig``, ``LoraConfig`` and ``pdgen.config.ComputeConfig``.
      dropout, mixture, turns, too_long, broken, balance_texts, draws: see ``pdgen.data.loader.LoaderConfig``.
    """

    data: str
    num_steps: int
    rows: int
    budgets: Budgets
    init: str = ""
    model: str = "nano"
    seed: int = 0
    mesh: tuple[int, int, int] = (1, -1, 1)
    ce_weight: float = 1.0
    accumulate: int = 1
    save_every: int = 500
    keep: int = 3
    keep_every: int = 0
    log_every: int = 10
    workers: int = 0
    held_out: int = 0
    held_out_every: int = 500
    pictures_every: int = 0
    prompts: tuple[str, ...] = ()
    wandb: str = ""
    spike_factor: float = 0.0
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig = LoraConfig()
    compute: ComputeConfig = ComputeConfig()
    dropout: ConditionDropout = ConditionDropout()
    mixture: dict[str, float] = dataclasses.field(default_factory=dict)
    turns: Turns = "whole"
    too_long: TooLong = "refuse"
    broken: Broken = "stop"
    balance_texts: bool = False
    draws: int = 1

    def __post_init__(self) -> None:
        for name in ("num_steps", "rows", "accumulate", "save_every", "keep", "log_every", "held_out_every", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("keep_every", "held_out", "pictures_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if self.pictures_every and not self.prompts:
            raise ValueError(f"pictures_every is {self.pictures_every}, but there are no prompts; give some, or 0")
        if self.spike_factor and not self.spike_factor > 1:
            raise ValueError(f"spike_factor is {self.spike_factor}, expected more than 1, or 0 to leave no update out")
        if self.mesh.count(-1) > 1 or any(size < 1 and size != -1 for size in self.mesh):
            raise ValueError(f"mesh {self.mesh} must be three sizes of at least 1, one of them -1 at most")
        if self.compute.param_dtype != "float32" and not self.lora.rank:
            raise ValueError(
                f"compute.param_dtype is {self.compute.param_dtype}, in which small updates are rounded away; "
                "train float32 parameters (compute.dtype may be bfloat16), or adapters (lora.rank)"
            )

    @property
    def loader(self) -> LoaderConfig:
        """The settings of its packs."""
        return LoaderConfig(
            self.rows,
            self.budgets,
            self.seed,
            self.dropout,
            self.mixture,
            self.turns,
            self.too_long,
            self.broken,
            held_out=self.held_out,
            workers=self.workers,
            balance_texts=self.balance_texts,
            draws=self.draws,
        )

    def step(self, model: ModelConfig) -> StepConfig:
        """The settings of its steps."""
        return StepConfig(
            model,
            self.compute,
            self.optimizer,
            self.num_steps,
            self.ce_weight,
            self.accumulate,
            self.lora,
            self.spike_factor,
        )


def read_run_config(values: dict[str, Any]) -> RunConfig:
    """The run of a plain dict. Raises RunError naming an unknown, missing or wrong key."""
    try:
        run = msgspec.convert(values, RunConfig)
    except msgspec.ValidationError as fault:
        raise RunError(f"config: {fault}") from None
    unknown = sorted(_paths(values) - _paths(dataclasses.asdict(run)))
    if unknown:
        raise RunError(f"config: no such key: {', '.join(unknown)}")
    return run


class _WithDefaults(flags.ArgumentParser):
    """Another parser's config, with the keys that its file leaves out."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self._parser = parser

    def parse(self, argument: str) -> ConfigDict:
        config: Any = self._parser.parse(argument)
        with config.unlocked():
            _fill(config, default_values())
        return config.lock()


def define_run_config(text: str) -> flags.FlagHolder:
    """The flag ``--config=FILE``, whose every key, in the file or not, is a flag ``--config.KEY`` as well."""
    holder = config_flags.DEFINE_config_file("config", None, text)
    flags.FLAGS["config"].parser = _WithDefaults(flags.FLAGS["config"].parser)
    return holder


def default_values() -> dict[str, Any]:
    """The keys of a run that a config may leave out, as plain values."""
    needed: dict[str, Any] = {"data": "", "num_steps": 1, "rows": 1, "budgets": Budgets(1, 1, 1)}
    values = dataclasses.asdict(RunConfig(**needed))
    return {name: value for name, value in values.items() if name not in needed}


def _fill(config: ConfigDict, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, dict) and isinstance(config[name], ConfigDict):
            _fill(config[name], value)


def run_json(run: RunConfig) -> str:
    """The resolved config, as it is saved with the run."""
    return json.dumps(dataclasses.asdict(run), indent=1) + "\n"


def _paths(values: dict[str, Any], prefix: str = "") -> set[str]:
    paths = set()
    for key, value in values.items():
        paths |= _paths(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return paths
