"""PEFT's folders of adapters: adapter_config.json and adapter_model.safetensors."""

import pathlib
import shutil
import struct

import pytest

from pdgen.checkpoints.adapters.peft import CONFIG, TENSORS, read_adapter
from pdgen.config import read_config
from tests.checkpoints.folders import GOLDEN
from tests.robustness.calls import survey
from tests.robustness.mutations import mutate
from tests.robustness.test_checkpoints import split

pytestmark = pytest.mark.slow  # hundreds of damaged copies

PEFT = pathlib.Path(__file__).parents[1] / "checkpoints" / "peft"
MODEL = read_config(GOLDEN)


@pytest.fixture(params=["patterns", "rslora"])
def folder(request, tmp_path):
    return pathlib.Path(shutil.copytree(PEFT / request.param, tmp_path / "adapter"))


def test_configs(folder, capfd):
    survey(
        folder / CONFIG,
        mutate((folder / CONFIG).read_bytes(), 41),
        lambda: read_adapter(folder, MODEL),
        capfd,
        (TENSORS,),
    )


def test_headers(folder, capfd):
    header, rest = split((folder / TENSORS).read_bytes())
    mutated = ((name, struct.pack("<Q", len(text)) + text + rest) for name, text in mutate(header, 42))
    survey(folder / TENSORS, mutated, lambda: read_adapter(folder, MODEL), capfd)


def test_values(folder, capfd):
    survey(folder / TENSORS, mutate((folder / TENSORS).read_bytes(), 43), lambda: read_adapter(folder, MODEL), capfd)
