"""How training laid out images: which copies, from which latents, of which sizes.

A run records it in its workdir. From there it goes into every export and, as a json file of its own, into BAGEL's
folder and back. Checkpoints of other writers and of earlier versions have none.
"""

import pathlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from pdgen.checkpoints.errors import CheckpointError
from pdgen.files import new_file
from pdgen.json_text import decode_json

LAYOUT = "training_layout.json"
Copy = Literal["vae", "vit"]


class TrainingLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The layout of images that a model was trained with.

    Attributes:
      given: copies of given images in the context, "vae" (clean VAE tokens) and "vit"; () if the data had none.
      drawn: the same of drawn images.
      latents: whether the VAE tokens are a "sample" of the autoencoder's posterior or its "mean".
      shortest_side, longest_side: of drawn images, in pixels; 0 if there were none.
      records: number of records from which this was measured.
    """

    given: tuple[Copy, ...]
    drawn: tuple[Copy, ...]
    latents: Literal["sample", "mean"]
    shortest_side: int
    longest_side: int
    records: int


def read_layout(source_json: Mapping[str, bytes]) -> TrainingLayout | None:
    """Read the layout among a checkpoint's json files, by name; None if there is none. Raises CheckpointError."""
    if LAYOUT not in source_json:
        return None
    try:
        return decode_json(source_json[LAYOUT], TrainingLayout)
    except msgspec.MsgspecError as fault:
        raise CheckpointError(f"{LAYOUT}: cannot be read ({str(fault)[:200]}); export the checkpoint again") from None


def write_layout(workdir: pathlib.Path, layout: TrainingLayout) -> None:
    """Write the layout of a run into its workdir."""
    with new_file(workdir / LAYOUT) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(layout), indent=1) + b"\n")
