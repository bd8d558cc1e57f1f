"""Random models in place of the shipped ones."""

import dataclasses
import pathlib

import jax
import numpy as np

from pdgen.assets import shapes_folder
from pdgen.checkpoints.conversion import to_bagel
from pdgen.checkpoints.pdgen_checkpoint import write_checkpoint
from pdgen.checkpoints.shipped import SHIPPED
from pdgen.config import SHAPES_NANO
from pdgen.models import autoencoder, bagel
from pdgen.sequence.tokenizer import load_tokenizer

LANGUAGE = dataclasses.replace(SHAPES_NANO.language, hidden_size=32, intermediate_size=48, num_layers=2, head_dim=8)
MODEL = dataclasses.replace(SHAPES_NANO, language=LANGUAGE)


def write_models(folder, scratch, seed=0):
    """Write BAGEL folders ``folder/shapes`` and ``folder/shapes_base``, as ``assets.shapes_folder`` has them."""
    for number, name in enumerate(SHIPPED):
        key = jax.random.key(seed + number)
        trees = {"model": bagel.init_params(MODEL, key), "autoencoder": autoencoder.init_params(MODEL.autoencoder, key)}
        params = jax.tree.map(np.asarray, trees)
        tokenizer = load_tokenizer(shapes_folder()).files
        checkpoint = pathlib.Path(scratch) / f"{name}-{seed}"
        write_checkpoint(checkpoint, MODEL, params, tokenizer_files=tokenizer, log=lambda line: None)
        to_bagel(checkpoint, pathlib.Path(folder) / name, log=lambda line: None)
