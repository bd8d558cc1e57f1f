"""Writing one text: a compiled loop that decodes every row until its text has closed.

Axis legend: B batch, N vocabulary, W room for a text's tokens, E states of the grammar.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.models import bagel
from pdgen.models.context import Cache, add_text
from pdgen.sharding import place

TO_THE_END = 2**31 - 1  # steps, more than any text has


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How a text is written.

    Attributes:
      max_tokens: maximum of tokens in one text, tags included; then the grammar closes the open tags.
      temperature: 0 = greedy, else within [0.001, 100]; the base model's default is 0.3.
      top_p: draw from the likeliest tokens that together reach this probability; 1 = all.
      top_k: draw from this many of the likeliest tokens; 0 = all.

    Raises:
      ValueError: a value out of range; the message names it.
    """

    max_tokens: int = 256
    temperature: float = 0.3
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_tokens must be at least 1": self.max_tokens >= 1,
            # Logits overflow when divided by less, and become equal when divided by infinity.
            "temperature must be 0 or within [0.001, 100]": self.temperature == 0 or 1e-3 <= self.temperature <= 100,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "top_k must be at least 0": self.top_k >= 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"text settings: {rule}; got {self}")


class Grammar(NamedTuple):
    """The automaton's tables on the device; see ``sequence.grammar.Automaton``."""

    table: Int[Array, "E N"]
    closings: Int[Array, "E W"]


class WrittenTexts(NamedTuple):
    """Texts that ``write_text`` has begun or finished: the state of its loop. Inactive rows have count 0.

    Attributes:
      tokens: the text's tokens without switch tokens; undefined beyond ``count``.
      count: number of tokens.
      state: of the grammar; at the end the one in which the text closed.
      limited: the text has reached its limit, so the forced closing is written.
      logits: after the closing token; they decide which segment follows.
      token: the next token to feed.
      done: the text has closed.
      closing_from: the grammar's state at the limit.
      closing_at: place in the forced closing; -1 before it.
      steps: of the loop so far.
    """

    tokens: Int[Array, "B W"]
    count: Int[Array, " B"]
    state: Int[Array, " B"]
    limited: Bool[Array, " B"]
    logits: Float[Array, "B N"]
    token: Int[Array, " B"]
    done: Bool[Array, " B"]
    closing_from: Int[Array, " B"]
    closing_at: Int[Array, " B"]
    steps: Int[Array, ""]


def count_text_slots(settings: TextSettings, grammar: Grammar) -> int:
    """Return the maximum of cache slots that one text takes, with switch tokens and a forced closing."""
    return settings.max_tokens + grammar.closings.shape[1] + 2


def write_text(
    model: tuple[ModelConfig, ComputeConfig],
    settings: TextSettings,
    switches: tuple[int, int],
    params: dict[str, Any],
    grammar: Grammar,
    cache: Cache,
    rows: tuple[Int[Array, " B"], Bool[Array, " B"], Array],
    written: WrittenTexts | None = None,
    until: int | Int[Array, ""] = TO_THE_END,
) -> tuple[Cache, WrittenTexts]:
    """Write one text, with its switch tokens, in every active row; each row draws from its own key.

    Consecutive calls give the same texts as one call.

    Args:
      switches: ids of <|im_start|> and <|im_end|>.
      rows: the grammar's start state, whether the row is active, and a random key, for each row.
      written: the result of the earlier steps; None before the first.
      until: steps of the loop after which to return, even if a text is not finished.
    """
    start, active, keys = rows
    (config, compute), (opening, closing) = model, switches
    batch, width = start.shape[0], count_text_slots(settings, grammar) - 2
    if written is None:
        zero = jnp.zeros(batch, jnp.int32)
        tokens, logits = jnp.zeros((batch, width), jnp.int32), jnp.zeros((batch, grammar.table.shape[1]))
        first = (zero + opening, zero > 0, zero, zero - 1, jnp.zeros((), jnp.int32))
        written = WrittenTexts(tokens, zero, start, zero > 0, logits, *first)

    def step(carry: tuple[Cache, WrittenTexts]) -> tuple[Cache, WrittenTexts]:
        cache, row = carry
        cache, hidden = add_text(config, compute, params, cache, row.token[:, None], (~row.done).astype(jnp.int32))
        new = place(bagel.logits(params, hidden)[:, 0], None, None)
        # A row that is done feeds nothing and keeps the logits after its closing token.
        logits = jnp.where(row.done[:, None], row.logits, new)
        # The opening token may be the closing one too, so the first step never ends a text.
        done = row.done | (row.token == closing) & (row.steps > 0)
        own_keys = jax.vmap(lambda key: jax.random.fold_in(key, row.steps))(keys)
        next_row = _choose_token(settings, grammar, closing, row._replace(done=done), new, own_keys)
        is_word = ~done & (next_row.token != closing)
        slot = jnp.where(is_word, row.count, width)  # slot ``width`` does not exist, so the write is dropped
        tokens = row.tokens.at[jnp.arange(batch), slot].set(next_row.token, mode="drop")
        return cache, next_row._replace(tokens=tokens, count=row.count + is_word, logits=logits, steps=row.steps + 1)

    carry = (cache, written._replace(done=written.done | ~active))
    return jax.lax.while_loop(lambda carry: ~carry[1].done.all() & (carry[1].steps < until), step, carry)


def _choose_token(
    settings: TextSettings, grammar: Grammar, closing: int, row: WrittenTexts, logits: Float[Array, "B N"], keys: Array
) -> WrittenTexts:
    """Choose each row's next token: one that the grammar allows, or the forced closing at the limit."""
    next_state = grammar.table[row.state]
    drawn = pick(settings, jnp.where(next_state >= 0, logits, -jnp.inf), keys)
    reached = (row.count >= settings.max_tokens) & ~row.limited & (drawn != closing)
    closing_from = jnp.where(reached, row.state, row.closing_from)
    limited = row.limited | reached
    closing_at = jnp.where(limited, row.closing_at + 1, row.closing_at)
    width = grammar.closings.shape[1]
    forced = jnp.where(closing_at < width, grammar.closings[closing_from, jnp.minimum(closing_at, width - 1)], -1)
    token = jnp.where(limited, jnp.where(forced < 0, closing, forced), drawn)
    state = jnp.take_along_axis(next_state, token[:, None], axis=1)[:, 0].astype(jnp.int32)
    token, state = jnp.where(row.done, row.token, token), jnp.where(row.done, row.state, state)
    return row._replace(token=token, state=state, limited=limited, closing_from=closing_from, closing_at=closing_at)


def pick(settings: TextSettings, logits: Float[Array, "B N"], keys: Array) -> Int[Array, " B"]:
    """Pick one token per row: the likeliest at temperature 0, else a draw from softmax(logits / temperature).

    ``top_k`` and then ``top_p`` (nucleus sampling, Holtzman et al. 2020) restrict the draw. Tokens that are as likely
    as the last one within the restriction stay.
    """
    if settings.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / settings.temperature
    if settings.top_k:
        least = jax.lax.top_k(logits, min(settings.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if settings.top_p < 1:
        falling = -jnp.sort(-logits, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(falling), axis=-1) - jax.nn.softmax(falling)
        least = jnp.min(jnp.where(before < settings.top_p, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
