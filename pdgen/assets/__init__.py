"""Small files shipped with the package: shapes world's models, digests of prompts, a GPU."""

import importlib.resources
import pathlib


def shapes_folder(name: str = "shapes") -> pathlib.Path:
    """The BAGEL folder of a model of shapes world (see ``pdgen.checkpoints.shipped``).

    ``tokenizer.model`` and ``ae.safetensors`` are the same in all of them.
    """
    return pathlib.Path(str(importlib.resources.files(__name__) / name))


def geneval_prompts_file() -> pathlib.Path:
    """The SHA-256 of each of GenEval's 553 prompts in normal form (``pdgen.synthesis.leaks``), one a line."""
    return pathlib.Path(str(importlib.resources.files(__name__) / "geneval_prompts.sha256"))


def h100_description() -> pathlib.Path:
    """XLA's description of the H100 SXM (public facts), from which it compiles without one."""
    return pathlib.Path(str(importlib.resources.files(__name__) / "h100_sxm.txtpb"))
