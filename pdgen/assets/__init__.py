"""Small files that the package contains: models of shapes world, digests of prompts, a description of a GPU."""

import importlib.resources
import pathlib


def shapes_folder(name: str = "shapes") -> pathlib.Path:
    """Return the BAGEL folder of a model of shapes world (see ``pdgen.checkpoints.shipped``).

    All of these models have the same ``tokenizer.model`` and ``ae.safetensors``.
    """
    return pathlib.Path(str(importlib.resources.files(__name__) / name))


def geneval_prompts_file() -> pathlib.Path:
    """Return the file with the SHA-256 of GenEval's 553 prompts, in normal form (``pdgen.synthesis.leaks``)."""
    return pathlib.Path(str(importlib.resources.files(__name__) / "geneval_prompts.sha256"))


def h100_description() -> pathlib.Path:
    """Return XLA's description of the H100 SXM (public facts), to compile for this GPU on other machines."""
    return pathlib.Path(str(importlib.resources.files(__name__) / "h100_sxm.txtpb"))
