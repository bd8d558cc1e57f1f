"""Exports of a run as a pdgen checkpoint and a BAGEL folder, and workdirs loaded like checkpoints."""

import dataclasses
import functools
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pdgen.assets import shapes_folder
from pdgen.checkpoints.adapters.export import export_adapters
from pdgen.checkpoints.adapters.merging import merge_adapter
from pdgen.checkpoints.conversion import to_bagel, to_pdgen
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.load import compute_digest, find, load, load_autoencoder
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint, write_checkpoint
from pdgen.checkpoints.runs.layout import LAYOUT, TrainingLayout, write_layout
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, CONFIG_FILE, EXPORT, EXPORTED
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import NANO, SHAPES_NANO
from pdgen.data.image_layout import measure_layout
from pdgen.data.records import Origin, RecordSource, write_dataset
from pdgen.sequence.layout import Budgets
from pdgen.sequence.segments import ConditionDropout
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Record, Text
from pdgen.train.checkpoint import Checkpoints
from pdgen.train.export import export_checkpoint, export_newest, export_step, open_weights, resolve_init
from pdgen.train.lora import LoraConfig
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.run_config import RunConfig, run_to_json
from pdgen.train.state import abstract_state, combine_params
from tests.checkpoints.folders import read_bagel_folder
from tests.data.small_records import image as small_image
from tests.data.small_records import records as small_records

LANGUAGE = dataclasses.replace(NANO.language, hidden_size=32, intermediate_size=48, num_layers=2, head_dim=8)
MODEL = dataclasses.replace(NANO, language=LANGUAGE)
LORA = LoraConfig(rank=2, alpha=6.0, kernels="language/layers/.*|connector/fc1/kernel")
RUN = RunConfig(
    data="data", num_steps=9, rows=1, budgets=Budgets(1, 1, 1), model="", optimizer=OptimizerConfig(ema_decay=0.9)
)


def state_at(config, step):
    """Make a random state whose average differs from the parameters."""
    rng = np.random.default_rng(step)

    def draw(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(rng.normal(size=leaf.shape) if floating else step, leaf.dtype)

    return jax.tree.map(draw, abstract_state(config))


def params_of(config, state, weights):
    """Return the model's tree as the training step uses it."""
    trained = state.ema if weights == "ema" else state.trained
    return jax.jit(functools.partial(combine_params, config))(trained, state.frozen)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A checkpoint of the small model, from which runs start."""
    folder = tmp_path_factory.mktemp("init") / "small"
    state = state_at(RUN.step_config(MODEL), 0)
    autoencoder = read_autoencoder(shapes_folder(), MODEL.autoencoder)
    params = {"model": params_of(RUN.step_config(MODEL), state, "raw"), "autoencoder": autoencoder}
    write_checkpoint(folder, MODEL, params, tokenizer_files=load_tokenizer(shapes_folder()).files)
    return folder


@pytest.fixture
def workdir(init, tmp_path):
    """A function that makes the workdir of a run with these saved steps."""

    def make(*steps, **changes):
        run = dataclasses.replace(RUN, init=str(init), **changes)
        with Checkpoints(tmp_path / "run", 5, 0, print) as checkpoints:
            for step in steps:
                checkpoints.save(step, state_at(run.step_config(MODEL), step))
        (tmp_path / "run" / CONFIG_FILE).write_text(run_to_json(run))
        return tmp_path / "run"

    return make


def assert_model(folder, run, step, weights="raw", **close):
    config = run.step_config(MODEL)
    expected = params_of(config, state_at(config, step), weights)
    compare = functools.partial(np.testing.assert_allclose, **close) if close else np.testing.assert_array_equal
    jax.tree.map(compare, load_checkpoint(folder)[1]["model"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("changes", [{}, {"lora": LORA}], ids=["whole", "lora"])
def test_a_step_as_a_checkpoint(workdir, weights, changes, tmp_path):
    """Equal to the state in memory; adapters, which are merged layer by layer, up to rounding."""
    folder = workdir(3, **changes)
    export_step(folder, tmp_path / "out", 3, weights, lambda line: None)
    close = {"rtol": 1e-6, "atol": 1e-5} if changes else {}
    assert_model(tmp_path / "out", dataclasses.replace(RUN, **changes), 3, weights, **close)


@pytest.mark.slow
def test_a_workdir_is_its_newest_whole_step(workdir):
    folder, lines = workdir(3, 5), []
    for step in (3, 5):
        values = folder / CHECKPOINTS / str(step) / "trained.connector.fc1.kernel" / "c" / "0" / "0"
        assert values.is_file()
    os.truncate(values, 10)
    assert export_checkpoint(folder, lines.append) == folder / EXPORT
    what = rf"{folder}/checkpoints/5: step 5 is damaged, .*/c/0/0 has 10 bytes, not [\d,]+; an older one is used"
    assert re.fullmatch(what, lines[0])
    assert_model(folder / EXPORT, RUN, 3)
    before = (folder / EXPORT).stat().st_ino
    export_checkpoint(folder, lambda line: None)
    assert (folder / EXPORT).stat().st_ino == before  # step 5 is still damaged, so nothing is written
    with Checkpoints(folder, 5, 0, print) as checkpoints:
        checkpoints.save(7, state_at(RUN.step_config(MODEL), 7))
    export_checkpoint(folder, lambda line: None)
    assert_model(folder / EXPORT, RUN, 7)
    assert json.loads((folder / EXPORTED).read_text()) == {"step": 7}


def test_an_export_of_an_unknown_step_is_written_again(workdir):
    """A process was killed between writing the two."""
    folder = workdir(3)
    export_checkpoint(folder, lambda line: None)
    (folder / EXPORTED).unlink()
    before = (folder / EXPORT).stat().st_ino
    export_checkpoint(folder, lambda line: None)
    assert (folder / EXPORT).stat().st_ino != before


def test_a_run_may_start_from_the_workdir_of_another(workdir):
    folder = workdir(3)
    run = resolve_init(dataclasses.replace(RUN, init=str(folder)), lambda line: None)
    assert run.init == str(folder / EXPORT)
    assert resolve_init(run) == run


@pytest.mark.slow
def test_a_bagel_folder_of_either_weights(workdir, tmp_path):
    folder = workdir(3)
    for weights in ("raw", "ema"):
        with open_weights(folder, weights, lambda line: None) as source:
            to_bagel(source, tmp_path / weights, log=lambda line: None)
        config = RUN.step_config(MODEL)
        read, params = read_bagel_folder(tmp_path / weights)
        assert read == MODEL
        expected = params_of(config, state_at(config, 3), weights)
        jax.tree.map(np.testing.assert_array_equal, params["model"], expected)
    assert not list(folder.glob(".ema*"))


def test_exports_that_are_impossible_are_one_line(workdir, init, tmp_path):
    def line(kind, function, *arguments):
        with pytest.raises(kind) as fault:
            function(*arguments, lambda line: None)
        assert "\n" not in str(fault.value)
        return str(fault.value)

    def choose(*arguments):
        with open_weights(*arguments):
            pass

    folder = workdir(optimizer=OptimizerConfig(ema_decay=0.0))
    assert line(CheckpointError, export_checkpoint, folder) == (
        f"{folder}: the training run has no whole checkpoint yet; wait for its first save"
    )
    folder = workdir(3, optimizer=OptimizerConfig(ema_decay=0.0))
    assert "keeps no moving average" in line(CheckpointError, choose, folder, "ema")
    assert "leave --weights out" in line(CheckpointError, choose, init, "raw")
    text = (folder / CONFIG_FILE).read_text()
    (folder / CONFIG_FILE).write_text("{")
    assert f"{folder / CONFIG_FILE}: cannot be read" in line(CheckpointError, export_checkpoint, folder)
    (folder / CONFIG_FILE).write_text(text)
    (folder / CHECKPOINTS / "3" / "trained.connector.fc1.kernel").rename(tmp_path / "elsewhere")
    missing = line(CheckpointError, export_step, folder, tmp_path / "x", 3, "raw")
    assert "trained.connector.fc1.kernel: cannot be opened" in missing


def list_files(folder):
    """Return paths and modification times of everything in a folder."""
    return sorted((str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"lora": LORA}], ids=["whole", "lora"])
def test_a_workdir_is_read_as_its_export_would_be(workdir, changes):
    """Values, name and digest; the digest is that of the export, so samplings resume."""
    folder = workdir(3, **changes)
    before = list_files(folder)
    loaded = load(folder)
    assert list_files(folder) == before
    assert loaded.name == str(folder / CHECKPOINTS / "3")
    assert load(loaded.name).digest == compute_digest(find(folder)) == loaded.digest
    offloaded = load(folder, offload="gen").params["model"]["language"]["layers"]["gen"]
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(offloaded)} == {"pinned_host"}
    jax.tree.map(np.testing.assert_array_equal, offloaded, loaded.params["model"]["language"]["layers"]["gen"])
    jax.tree.map(np.testing.assert_array_equal, load_autoencoder(folder)[1], loaded.params["autoencoder"])
    export_newest(folder, lambda line: None)
    exported = load(folder)
    assert (exported.name, exported.digest) == (str(folder / EXPORT), loaded.digest)
    assert exported.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, exported.params, loaded.params)


def test_a_damaged_step_that_is_named_is_refused(workdir):
    folder = workdir(3)
    step = folder / CHECKPOINTS / "3"
    next(path for path in step.rglob("0") if path.is_file() and path.stat().st_size > 4).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"the step is damaged, .* has 0 bytes, .*; name an older one"):
        load(step)


def test_adapters_are_exported_in_peft_s_format(workdir, tmp_path):
    """W + alpha / r * B A in PyTorch, PEFT's formula, gives the kernels of the merged export, layer by layer."""
    folder = workdir(3, lora=LORA)
    line = export_adapters(folder, tmp_path / "adapter", log=lambda line: None)
    assert line == f"{tmp_path / 'adapter'}: 29 adapters of rank 2 from step 3"  # 2 layers, 2 experts, 7 kernels; fc1
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 2, 6.0, "none")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(factors) == 2 * len(config["target_modules"]) == 58
    export_newest(folder, lambda line: None)
    to_bagel(folder / EXPORT, tmp_path / "merged", log=lambda line: None)
    state = state_at(dataclasses.replace(RUN, lora=LORA).step_config(MODEL), 3)
    kernel = np.asarray(state.frozen["language"]["layers"]["gen"]["attention"]["o"]["kernel"])
    merged = load_file(tmp_path / "merged" / "ema.safetensors")
    for layer in range(2):
        module = f"language_model.model.layers.{layer}.self_attn.o_proj_moe_gen"
        a, b = (factors[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "AB")
        assert a.shape == (2, 32) and b.shape == (32, 2)
        expected = torch.from_numpy(kernel[layer].reshape(32, 32)) + 6.0 / 2 * b @ a
        torch.testing.assert_close(merged[f"{module}.weight"], expected, rtol=1e-5, atol=1e-5)


def test_an_exported_adapter_merges_back(workdir, init, tmp_path):
    """Into the run's own base as the run itself merges it, for the weights and for their average."""
    folder = workdir(3, lora=LORA)
    base = dataclasses.replace(RUN, lora=LORA).step_config(MODEL)
    write_checkpoint(
        tmp_path / "base",
        MODEL,
        {"model": state_at(base, 3).frozen, "autoencoder": load_autoencoder(init)[1]},
        tokenizer_files=load_tokenizer(shapes_folder()).files,
    )
    for weights in ("raw", "ema"):
        export_adapters(folder, tmp_path / weights, weights, log=lambda line: None)
        changes = merge_adapter(tmp_path / weights, tmp_path / "base", tmp_path / f"{weights} merged")[1]
        assert len(changes) == 29
        changed = dataclasses.replace(RUN, lora=LORA)
        assert_model(tmp_path / f"{weights} merged", changed, 3, weights, rtol=1e-6, atol=1e-5)


def test_runs_without_adapters_export_none(workdir, init, tmp_path):
    folder = workdir(3)
    with pytest.raises(CheckpointError, match=r"was trained without adapters \(lora.rank is 0\); export it with --rev"):
        export_adapters(folder, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"is no workdir of a training run; --adapters exports"):
        export_adapters(init, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_layout_of_training_accompanies_the_weights(workdir, tmp_path):
    """From the workdir into the export, BAGEL's folder and back; the digest of the step is that of its export."""
    folder = workdir(3)
    before = load(folder)
    assert before.layout is None
    layout = TrainingLayout(("vit",), ("vae", "vit"), "sample", 64, 128, 20)
    write_layout(folder, layout)
    step = load(folder)
    assert step.layout == layout and step.digest != before.digest
    exported = load(export_newest(folder, lambda line: None))
    assert (exported.layout, exported.digest) == (layout, step.digest)
    to_bagel(folder / EXPORT, tmp_path / "bagel", log=lambda line: None)
    assert (tmp_path / "bagel" / LAYOUT).read_bytes() == (folder / LAYOUT).read_bytes()
    to_pdgen(tmp_path / "bagel", tmp_path / "back", log=lambda line: None)
    assert load(tmp_path / "back").layout == layout
    (folder / LAYOUT).write_text('{"given": "all"}')
    with pytest.raises(CheckpointError, match=r"training_layout.json: cannot be read \(.*\); export"):
        load(folder / CHECKPOINTS / "3")


def test_the_layout_is_measured_on_the_data(tmp_path):
    """Sizes come from the latents, copies from the layout, without those that condition dropout always drops."""
    edit = Record(
        id="edit",
        source="test",
        mode="edit",
        complete=True,
        segments=[
            small_image(np.random.default_rng(0), "given", False, side=32),
            Text("prompt", "draw a star", False),
            small_image(np.random.default_rng(1), "sketch", True, side=48),
        ],
    )
    for name, records in (("drawn", small_records(4)), ("edited", [*small_records(4), edit])):
        write_dataset(tmp_path / name, records, Origin(0))
    drawn, edited = RecordSource(tmp_path / "drawn"), RecordSource(tmp_path / "edited")
    assert measure_layout(drawn, ConditionDropout(), SHAPES_NANO) == TrainingLayout(
        (), ("vae", "vit"), "sample", 64, 64, 4
    )
    assert measure_layout(edited, ConditionDropout(vae=1.0), SHAPES_NANO) == TrainingLayout(
        ("vit",), ("vit",), "sample", 48, 64, 5
    )
