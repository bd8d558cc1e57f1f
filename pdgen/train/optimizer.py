"""AdamW with clipping and a schedule, as the base model's trainer has it."""

import dataclasses

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Learning rate and Adam.

    Attributes:
      learning_rate: peak, reached after ``warmup_steps`` of linear growth from 0.
      schedule: "cosine" (falls to a tenth of the peak at the last step) or "constant".
      b1, b2, eps: Adam's decay rates and denominator; no weight decay.
      clip_norm: largest global norm of the gradient.
    """

    learning_rate: float = 2e-5
    warmup_steps: int = 0
    schedule: str = "cosine"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-15
    clip_norm: float = 1.0


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The schedule over ``num_steps``. Raises ValueError for an unknown name or a warm-up that does not fit."""
    if config.schedule not in ("cosine", "constant"):
        raise ValueError(f"optimizer.schedule={config.schedule!r} is unknown; choose cosine or constant")
    if config.warmup_steps >= num_steps:
        raise ValueError(f"optimizer.warmup_steps={config.warmup_steps} must be below num_steps={num_steps}")
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    rest = num_steps - config.warmup_steps
    after = {
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest, alpha=0.1),
        "constant": optax.constant_schedule(config.learning_rate),
    }[config.schedule]
    return optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW without decay."""
    rate = learning_rate(config, num_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=0.0),
    )
