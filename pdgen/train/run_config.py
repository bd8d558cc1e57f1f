"""The config of a training run, read strictly, so that a misspelt key never trains silently."""

import dataclasses
import json
from typing import Any

import msgspec
from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict, config_flags

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.data.documents import TooLong, Turns
from pdgen.data.lengths import Broken
from pdgen.data.loader import LoaderConfig
from pdgen.messages import name_some
from pdgen.sequence.layout import Budgets
from pdgen.sequence.segments import NO_DROPOUT, ConditionDropout
from pdgen.train.lora import LoraConfig
from pdgen.train.objectives.preference import PreferenceConfig
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.state import StepConfig

# --config then belongs to the command line that calls define_run_config, and appears in its --help.
flags.disclaim_key_flags()


class RunError(ValueError):
    """A run that cannot start or continue; one line names the key or file and the remedy."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A training run. The keys of ``configs/*.py`` are these attributes.

    Attributes:
      data: folder of a data set written by build_data.py.
      num_steps: optimizer steps of the whole run, at least 1.
      rows: packs in the global batch, a multiple of accumulate * data * fsdp (see ``mesh``).
      budgets: slots for text, ViT and VAE tokens in a pack.
      init: checkpoint to start from: a pdgen checkpoint, a run's workdir or a shipped model. "" starts from fresh
        parameters of ``model`` with shapes world's tokenizer and autoencoder.
      model: name of a preset. With ``init`` the checkpoint must have these sizes; "" accepts any.
      fresh: whether to train fresh parameters although ``init`` is given. The checkpoint then gives sizes, tokenizer
        and autoencoder only. A preset with another autoencoder than shapes world's, such as bagel_7b, needs ``init``.
      seed: of parameters, batches and noise.
      mesh: sizes of (data, fsdp, tensor); one of them may be -1 for the remaining devices.
      ce_weight: lambda_CE, the weight of the cross-entropy.
      accumulate: number of micro-batches of a step. More of them save memory; the result is the same.
      save_every: steps between checkpoints.
      keep: number of newest checkpoints to keep.
      keep_every: also keep the checkpoints of every keep_every-th step; 0 keeps none of these.
      log_every: steps between lines of ``metrics.jsonl``.
      workers: processes that read data; 0 reads in threads.
      held_out: number of records to hold out from training, the last ones of every subset in proportion to its size.
      held_out_every: steps between lines of ``held_out.jsonl``, the losses on these records.
      pictures_every: steps between sampled pictures of ``prompts``; 0 samples none.
      prompts: prompts of these pictures; prompt n always has seed n.
      wandb: project that receives the curves besides TensorBoard; "" for none.
      spike_factor: skip updates whose loss or gradient norm exceeds this many running averages; 0 skips none.
      optimizer, lora, compute: see ``OptimizerConfig``, ``LoraConfig`` and ``pdgen.config.ComputeConfig``.
      preference: see ``PreferenceConfig``. The data are pairs then (``turns`` "pairs"), ``init`` is the reference.
      dropout, mixture, turns, too_long, broken, balance_texts, draws: see ``pdgen.data.loader.LoaderConfig``.

    Raises:
      ValueError: a value is out of range.
    """

    data: str
    num_steps: int
    rows: int
    budgets: Budgets
    init: str = ""
    model: str = "nano"
    fresh: bool = False
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
    preference: PreferenceConfig = PreferenceConfig()

    def __post_init__(self) -> None:
        for name in ("num_steps", "rows", "accumulate", "save_every", "keep", "log_every", "held_out_every", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("keep_every", "held_out", "pictures_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if self.pictures_every and not self.prompts:
            raise ValueError(f"pictures_every is {self.pictures_every}, but there are no prompts; give some, or 0")
        if self.fresh and (self.lora.rank or not self.init):
            reason = f"lora.rank is {self.lora.rank}" if self.lora.rank else "init is empty"
            raise ValueError(f"fresh is true, but {reason}; it trains all parameters, with the autoencoder of init")
        self._check_preference()
        if self.spike_factor and not self.spike_factor > 1:
            raise ValueError(f"spike_factor is {self.spike_factor}, expected more than 1, or 0 to skip no update")
        if self.mesh.count(-1) > 1 or any(size < 1 and size != -1 for size in self.mesh):
            raise ValueError(f"mesh {self.mesh} must be three sizes of at least 1, one of them -1 at most")
        if self.compute.param_dtype != "float32" and not self.lora.rank:
            raise ValueError(
                f"compute.param_dtype is {self.compute.param_dtype}, in which small updates are rounded away; "
                "train float32 parameters (compute.dtype may be bfloat16), or adapters (lora.rank)"
            )

    def _check_preference(self) -> None:
        beta = self.preference.beta
        if bool(beta) != (self.turns == "pairs"):
            raise ValueError(f"preference.beta is {beta} and turns {self.turns!r}; pairs need a beta, and a beta pairs")
        if not beta:
            return
        if not self.init or self.fresh:
            raise ValueError(f"preference.beta is {beta}, but no init is trained further; name the reference with init")
        if self.dropout != NO_DROPOUT or self.draws != 1:
            raise ValueError(
                f"preference.beta is {beta}, but dropout or draws change one side of a pair alone; set the dropout of "
                "text, vae and vit to 0 and draws to 1"
            )

    @property
    def loader_config(self) -> LoaderConfig:
        """Settings of the data loader."""
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

    def step_config(self, model: ModelConfig) -> StepConfig:
        """Return the static settings of a training step for a model of these sizes."""
        return StepConfig(
            model,
            self.compute,
            self.optimizer,
            self.num_steps,
            self.ce_weight,
            self.accumulate,
            self.lora,
            self.spike_factor,
            self.preference,
        )


def read_run_config(values: dict[str, Any]) -> RunConfig:
    """Read a run from plain values. Raises RunError that names an unknown, missing or invalid key."""
    try:
        run = msgspec.convert(values, RunConfig)
    except msgspec.ValidationError as fault:
        raise RunError(f"config: {fault}") from None
    given, known = (traverse_util.flatten_dict(nested, sep=".") for nested in (values, dataclasses.asdict(run)))
    if unknown := sorted(given.keys() - known.keys()):
        raise RunError(f"config: no such key: {name_some(unknown)}")
    return run


class _DefaultsParser(flags.ArgumentParser):
    """Parses a config file with another parser and adds the keys that the file omits."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self._parser = parser

    def parse(self, argument: str) -> ConfigDict:
        config: Any = self._parser.parse(argument)
        with config.unlocked():
            _add_defaults(config, default_values())
        return config.lock()


def define_run_config(text: str) -> flags.FlagHolder:
    """Define the flag ``--config=FILE`` and a flag ``--config.KEY`` for every key, also those that the file omits."""
    holder = config_flags.DEFINE_config_file("config", None, text)
    flags.FLAGS["config"].parser = _DefaultsParser(flags.FLAGS["config"].parser)
    return holder


def default_values() -> dict[str, Any]:
    """Return the optional keys of a run with their defaults, as plain values."""
    required: dict[str, Any] = {"data": "", "num_steps": 1, "rows": 1, "budgets": Budgets(1, 1, 1)}
    values = dataclasses.asdict(RunConfig(**required))
    return {name: value for name, value in values.items() if name not in required}


def _add_defaults(config: ConfigDict, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, dict) and isinstance(config[name], ConfigDict):
            _add_defaults(config[name], value)


def run_to_json(run: RunConfig) -> str:
    """Return the config, defaults included, as the JSON that is saved in the workdir."""
    return json.dumps(dataclasses.asdict(run), indent=1) + "\n"
