"""Where every token of a document stands: streams, rotary positions, attention intervals, targets.

A document (one trajectory) is a list of segments. ``lay_out`` turns them into numpy arrays in **sequence
order**; ``assemble`` joins several documents into a ``Pack`` of fixed size. Sampling prefills one segment
at a time with the same ``advance`` and ``SWITCHES``, so training and sampling cannot disagree.

Worked example: text ``a``, then an image of two VAE tokens that the model draws (noised, then clean)::

    slot       0    1    2     3    4    5    6     7    8    9    10
    token      <im> a    </im> <v>  x0   x1   </v>  <v>  x0   x1   </v>
    stream     text text text  text vae  vae  text  text vae  vae  text
    split      causal -------  noise --------------  full --------------
    rotary     0    1    2     3    3    3    3     3    3    3    3     (the clean copy advances to 4)
    k_start    0    0    0     0    0    0    0     0    0    0    0
    k_end      1    2    3     7    7    7    7     11   11   11   11
    q_start    0    1    2     3    3    3    3     7    7    7    7
    q_end      11   11   11    7    7    7    7     11   11   11   11

``allowed(q, k) <=> k_start[q] <= k < k_end[q] and q_start[k] <= q < q_end[k]``: slot 8 sees the text and
its own split, but not the noised split, whose keys end being visible at 7.

Axes: S sequence slots = T + V + G, T text tokens, V ViT tokens, G VAE tokens, P values of a ViT patch,
C values of a VAE token.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32, Int32


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Tokens of each stream in one pack: text T (switch tokens included), vit V, vae G."""

    text: int
    vit: int
    vae: int

    @property
    def total(self) -> int:
        """Sequence slots of a pack, S = T + V + G."""
        return self.text + self.vit + self.vae


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pack:
    """One row of the device's batch: several documents, padded to the budgets. Batches stack on axis 0.

    Stream order is concat(text[T], vit[V], vae[G]); sequence order is the documents' own order, padding
    last. Padding holds 0 everywhere but in ``vae_image`` (-1) and in the two permutations.

    Attributes:
      text_ids: token ids of texts and switch tokens.
      text_targets: the label that the token predicts, 0 where it has none.
      text_weights: weight of the token's cross-entropy, 0 = no loss.
      vit_patches: pixels in [-1, 1], ordered (row, column, channel).
      vit_positions: row * max_side + column of the patch.
      vit_start, vit_end: the ViT stream's interval that is the token's image.
      vae_latents: clean, scaled latents, patchified (row, column, channel).
      vae_positions: row * max_side + column of the latent patch.
      vae_image: number 0, 1, .. in the pack of the noised image the token belongs to; -1 if clean.
      vae_weights: 1 where the token is a flow target.
      rotary: rotary position, in stream order.
      to_sequence: sequence slot -> stream index, a permutation.
      to_stream: stream index -> sequence slot, its inverse.
      k_start, k_end: keys [k_start, k_end) that the slot's query may see, in sequence order.
      q_start, q_end: queries [q_start, q_end) that may see the slot's key, in sequence order.
      row: the pack's number n in the run; noise and timesteps are drawn from it.
    """

    text_ids: Int32[np.ndarray, " T"]
    text_targets: Int32[np.ndarray, " T"]
    text_weights: Float32[np.ndarray, " T"]
    vit_patches: Float32[np.ndarray, "V P"]
    vit_positions: Int32[np.ndarray, " V"]
    vit_start: Int32[np.ndarray, " V"]
    vit_end: Int32[np.ndarray, " V"]
    vae_latents: Float32[np.ndarray, "G C"]
    vae_positions: Int32[np.ndarray, " G"]
    vae_image: Int32[np.ndarray, " G"]
    vae_weights: Float32[np.ndarray, " G"]
    rotary: Int32[np.ndarray, " S"]
    to_sequence: Int32[np.ndarray, " S"]
    to_stream: Int32[np.ndarray, " S"]
    k_start: Int32[np.ndarray, " S"]
    k_end: Int32[np.ndarray, " S"]
    q_start: Int32[np.ndarray, " S"]
    q_end: Int32[np.ndarray, " S"]
    row: Int32[np.ndarray, ""]
