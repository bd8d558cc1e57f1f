"""Small files shipped with the package: the tokenizer and the autoencoder of shapes world."""

import importlib.resources
import pathlib


def shapes_folder() -> pathlib.Path:
    """The folder with shapes world's ``tokenizer.model`` and ``ae.safetensors`` (torch tensor names)."""
    return pathlib.Path(str(importlib.resources.files(__name__) / "shapes"))
