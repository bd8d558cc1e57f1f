"""A verifier that was learnt: the model itself is asked whether a picture shows its prompt.

The question and its answers are records of mode "understand", in training and here. The score is the probability of
"Yes." beside that of "No.", read from the logits of the first token in which the two differ.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pdgen.checkpoints.load import load
from pdgen.config import ComputeConfig, ModelConfig
from pdgen.models import bagel
from pdgen.sample.model import Model, make_model
from pdgen.sequence.images import Picture, encode_png
from pdgen.sequence.layout import Budgets, Pack, assemble, lay_out, stack
from pdgen.sequence.segments import record_segments
from pdgen.sequence.trajectory import Image, Record, Text

YES, NO = "Yes.", "No."
TEXT_STEP = 64  # questions are padded to a multiple of this, so that few lengths are compiled


def make_verdict_record(
    record_id: str, prompt: str, picture: Picture, right: bool, scene: dict[str, Any] | None = None
) -> Record:
    """Make the record of a question about a picture and its answer."""
    segments = [
        Image("given", encode_png(picture), False),
        Text("prompt", f"Does the picture show {prompt}?", False),
        Text("answer", YES if right else NO, True),
    ]
    return Record(id=record_id, source="verifier", complete=True, segments=segments, scene=scene, mode="understand")


class ModelVerifier:
    """A ``Verifier`` (``pdgen.teachers.protocols``) that asks a model, which judges each picture for itself."""

    name = "model"

    def __init__(self, model: Model) -> None:
        yes, no = (model.tokenizer.encode(answer) for answer in (YES, NO))
        self._model = model
        self._place = next(n for n, (a, b) in enumerate(zip(yes, no)) if a != b)
        self._answers = jnp.asarray([yes[self._place], no[self._place]])

    def score(self, prompt: str, picture: Picture) -> float:
        """Compute the probability that the picture shows the prompt.

        Raises:
          SegmentError: the prompt has a token outside the vocabulary, or the picture exceeds the model's grid.
        """
        model = self._model
        record = make_verdict_record("verdict", prompt, picture, right=True)
        document = lay_out(record_segments(record, model.tokenizer, model.config), model.tokenizer, model.config)
        text, vit, _ = document.lengths
        budgets = Budgets(-(-text // TEXT_STEP) * TEXT_STEP, vit, 0)
        pack = stack([assemble([document], budgets, 0)])
        slot = int(np.flatnonzero(pack.text_weights[0])[self._place])
        odds = _compare_answers(*model.static, model.params["model"], pack, slot, self._answers)
        return float(jax.nn.sigmoid(odds))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compare_answers(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    pack: Pack,
    slot: Int[Array, ""],
    answers: Int[Array, "2"],
) -> Float[Array, ""]:
    """Return log p(first answer) - log p(second answer) of the token that follows the text token at ``slot``."""
    und, _ = bagel.encode_pack(config, compute, params, pack, jnp.asarray(pack.vae_latents), jnp.zeros((1, 0)))
    logits = bagel.logits(params, jax.lax.dynamic_slice_in_dim(und, slot, 1, axis=1))[0, 0]
    return logits[answers[0]] - logits[answers[1]]


@functools.cache
def load_verifier(path: str | pathlib.Path) -> ModelVerifier:
    """Load the verifier of a checkpoint, once in a process. Raises as ``load``."""
    return ModelVerifier(make_model(load(path)))
