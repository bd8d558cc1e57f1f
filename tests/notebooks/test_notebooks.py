"""The notebooks run from beginning to end, and the repository has them with their outputs."""

import functools
import pathlib

import jax
import nbclient
import nbformat
import pytest

from pdgen.assets import shapes_folder
from pdgen.checkpoints.conversion import to_pdgen
from pdgen.checkpoints.pdgen_checkpoint import write_checkpoint
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import get_preset
from pdgen.models import bagel
from pdgen.sample.strategies.table import STRATEGIES
from pdgen.sequence.modes import MODES
from pdgen.sequence.tokenizer import load_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
BAGEL = ROOT / "tests" / "golden" / "bagel-nano"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)


def printed(cells):
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", ()))


def golden(folder):
    """The checkpoint of the golden numbers."""
    to_pdgen(BAGEL, folder, log=lambda line: None)


def shapes(folder):
    """Shapes world's model before training."""
    config = get_preset("shapes_nano")
    params = {
        "model": jax.jit(functools.partial(bagel.init_params, config))(jax.random.key(0)),
        "autoencoder": read_autoencoder(shapes_folder(), config.autoencoder),
    }
    write_checkpoint(
        folder, config, params, tokenizer_files=load_tokenizer(shapes_folder()).files, log=lambda line: None
    )


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """A function that runs a notebook anew in an empty folder and returns its cells."""

    def run(name, **environment):
        for variable, value in {**environment, "JAX_NUM_CPU_DEVICES": 1, "IPYTHONDIR": tmp_path / "ipython"}.items():
            monkeypatch.setenv(variable, str(value))
        notebook = read(name)
        resources = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("model", [golden, shapes])
def test_sampling_runs(executed, model, tmp_path):
    model(tmp_path / "nano")
    cells = executed("sample", PDGEN_CHECKPOINT=tmp_path / "nano", PDGEN_MAX_TOKENS=48, PDGEN_TIMESTEPS=3)
    said = printed(cells)
    assert "not a plan '<ins>..</ins> <des>..</des>': 'a large green star'" in said
    assert "8 trajectories, " in said
    assert "outside <ins>Begin with a blue square.</ins>" in said
    for mode in MODES.keys() - {"process"}:  # the one to which the others are compared
        assert f"{mode}: " in said
    for name in STRATEGIES:
        assert f"{name} " in said
    shown = [out.data for cell in cells for out in cell.outputs if "data" in out]
    assert any(set(data["text/plain"]) <= set("[True, ]") for data in shown)  # the same numbers alone as among others
    assert sum("image/png" in data for data in shown) >= 7


@pytest.mark.slow
def test_converting_runs_and_agrees(executed):
    said = printed(executed("convert", PDGEN_BAGEL=BAGEL))
    assert "equal: True" in said and "False" not in said
    assert "139 of 139 tensors have the same bytes, 0 are new" in said
    assert "120 of 120 tensors have the same bytes, 0 are new" in said


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_has_its_outputs(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(out.output_type == "error" for cell in cells for out in cell.outputs)
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 300_000
    if name == "sample":
        assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs) >= 6
    assert "/tmp/" not in printed(cells)
