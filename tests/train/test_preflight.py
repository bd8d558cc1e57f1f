"""Wrong runs are refused before anything is compiled, each in one line that names the key and the remedy."""

import dataclasses
import errno
import fcntl
import json
import subprocess
import sys

import jax
import msgspec
import numpy as np
import pytest
from flax import linen as nn

from pdgen.assets import shapes_folder
from pdgen.checkpoints.pdgen_checkpoint import write_checkpoint
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import NANO
from pdgen.data.records import Dataset, Origin, read_dataset, write_dataset, write_files, write_index
from pdgen.models import bagel
from pdgen.sequence.layout import Budgets
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image, Text
from pdgen.train.lora import LoraConfig
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.preflight import (
    CHANGEABLE_KEYS,
    check_workdir,
    claim_workdir,
    continue_schedule,
    preflight,
    resolve_mesh_shape,
)
from pdgen.train.run_config import RunConfig, RunError, read_run_config
from tests.data.small_records import records
from tests.support.disks import forbid_writing

DEVICES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, records(20), Origin(seed=0))
    return folder


@pytest.fixture
def run(data):
    return RunConfig(data=str(data), num_steps=12, rows=8, budgets=Budgets(512, 128, 352))


def check(run, workdir):
    checked = preflight(run, workdir, jax.devices()[:DEVICES])
    with claim_workdir(run, workdir, print):
        return checked


def get_refusal(run, workdir):
    """Return the one line that refuses the run; its folder must not exist."""
    with pytest.raises(ValueError) as caught:
        check(run, workdir)
    assert not workdir.exists()
    line = str(caught.value)
    assert "\n" not in line
    return line


def change_records(change):
    """Return the small records with ``change`` applied to every segment."""
    return [msgspec.structs.replace(r, segments=[change(s) for s in r.segments]) for r in records(6)]


def copy_with_origin(data, folder, **changes):
    """Make a copy of a data set with another origin."""
    folder.mkdir()
    for file in data.glob("*.array_record"):
        (folder / file.name).symlink_to(file)
    dataset = read_dataset(data)
    write_index(folder, Dataset(files=dataset.files, origin=msgspec.structs.replace(dataset.origin, **changes)))
    return str(folder)


def write_zeros(folder, config=NANO, tokenizer=None):
    """Write a checkpoint of zeros."""
    shapes = nn.unbox(bagel.abstract_params(config))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params = {"model": zeros, "autoencoder": read_autoencoder(shapes_folder(), config.autoencoder)}
    files = (tokenizer or load_tokenizer(shapes_folder())).files
    write_checkpoint(folder, config, params, tokenizer_files=files, source_json={}, overwrite=False)
    return str(folder)


def test_a_good_run_passes_and_claims_its_folder(run, tmp_path):
    checked = check(run, tmp_path / "run")
    assert tuple(checked.mesh.shape.values()) == (1, 8, 1)
    assert checked.base.config == NANO and len(checked.source) == 20
    assert checked.step == run.step_config(NANO)
    text = (tmp_path / "run" / "config.json").read_text()
    assert read_run_config(json.loads(text)) == run
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "lock"]


@pytest.mark.parametrize(
    ("mesh", "expected"), [((1, -1, 1), (1, 8, 1)), ((2, 2, 2), (2, 2, 2)), ((-1, 2, 1), (4, 2, 1))]
)
def test_a_mesh_size_of_minus_1_is_replaced(run, mesh, expected):
    assert resolve_mesh_shape(dataclasses.replace(run, mesh=mesh), DEVICES) == expected


@pytest.mark.parametrize("mesh", [(1, 4, 1), (3, -1, 1), (2, 2, 4)])
def test_a_mesh_for_other_devices(run, tmp_path, mesh):
    line = get_refusal(dataclasses.replace(run, mesh=mesh), tmp_path / "run")
    assert line.startswith(f"config: mesh is data {mesh[0]}, fsdp {mesh[1]}, tensor {mesh[2]}, which 8 devices")
    assert "(1, 8, 1)" in line


def test_a_mesh_that_does_not_divide_the_model(run, tmp_path):
    """The nano model has two key and value heads."""
    line = get_refusal(dataclasses.replace(run, mesh=(1, 2, 4)), tmp_path / "run")
    assert line.startswith("config: mesh (1, 2, 4) (data, fsdp, tensor) does not divide ") and "attention/k" in line


@pytest.mark.parametrize(("rows", "accumulate", "right"), [(4, 1, 8), (12, 1, 16), (8, 2, 16)])
def test_a_batch_that_does_not_divide(run, tmp_path, rows, accumulate, right):
    line = get_refusal(dataclasses.replace(run, rows=rows, accumulate=accumulate), tmp_path / "run")
    assert line == (
        f"config: rows is {rows}, expected a multiple of accumulate * data * fsdp = {8 * accumulate}; "
        f"set rows to {right}"
    )


def test_budgets_below_the_longest_trajectory(run, tmp_path):
    line = get_refusal(dataclasses.replace(run, budgets=Budgets(512, 128, 96)), tmp_path / "run")
    assert "a pack holds text 512, vit 128, vae 96" in line and "budgets of text" in line and "hold every one" in line


def test_data_without_latents(run, tmp_path):
    bare = {"latent_mean": None, "latent_logvar": None, "latent_shape": None}
    made = change_records(lambda s: msgspec.structs.replace(s, **bare) if isinstance(s, Image) else s)
    write_dataset(tmp_path / "data", made, Origin(seed=0))
    line = get_refusal(dataclasses.replace(run, data=str(tmp_path / "data")), tmp_path / "run")
    assert line.startswith(f"{tmp_path}/data/part-00000.array_record: record 0")
    assert line.endswith("(launch/build_data.py encode)")


def test_data_of_another_tokenizer(run, data, tmp_path):
    other = copy_with_origin(data, tmp_path / "data", tokenizer="0" * 64)
    line = get_refusal(dataclasses.replace(run, data=other), tmp_path / "run")
    assert line.startswith(f"config: data {other} was built for another tokenizer") and line.endswith("build it again")


def test_latents_of_another_autoencoder(run, data, tmp_path):
    other = copy_with_origin(data, tmp_path / "data", autoencoder="0" * 64)
    line = get_refusal(dataclasses.replace(run, data=other), tmp_path / "run")
    assert line.startswith(f"config: data {other} has another autoencoder's latents")
    assert line.endswith("(launch/build_data.py encode)")


def test_a_tokenizer_beyond_the_vocabulary(run, tmp_path):
    small = dataclasses.replace(NANO, language=dataclasses.replace(NANO.language, vocab_size=400))
    init = write_zeros(tmp_path / "init", small)
    line = get_refusal(dataclasses.replace(run, init=init, model=""), tmp_path / "run")
    ids = load_tokenizer(shapes_folder()).vocab_size
    assert line.startswith(f"config: the tokenizer of {init} has {ids} ids, the model's vocabulary 400;")


def test_a_checkpoint_of_another_model(run, tmp_path):
    init = write_zeros(tmp_path / "init")
    line = get_refusal(dataclasses.replace(run, init=init, model="tiny"), tmp_path / "run")
    assert line.startswith(f"config: init {init} holds another model than 'tiny' (language, vision, max_latent_size")
    for model in ("nano", ""):
        assert check(dataclasses.replace(run, init=init, model=model), tmp_path / f"run{model}").base.config == NANO


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixture", "line"),
    [
        ({"a": 1.0, "c": 1.0}, "mixture: the data set has no subset 'c', only 'a', 'b'"),
        ({"a": 1.0}, "mixture: subset 'b' has no weight; 0 leaves it out (subsets: 'a', 'b')"),
        ({"a": 1.0, "b": 0.5}, "mixture: subset 'b' has weight 0.5 but no document; set it to 0"),
    ],
)
def test_a_mixture_that_does_not_suit_the_subsets(run, tmp_path, mixture, line):
    """All records of subset b are broken: they have no latents."""
    folder = tmp_path / "data"
    folder.mkdir()
    bare = {"latent_mean": None, "latent_logvar": None, "latent_shape": None}
    broken = change_records(lambda s: msgspec.structs.replace(s, **bare) if isinstance(s, Image) else s)
    files = write_files(folder, records(6), subset="a") + write_files(folder, broken, subset="b")
    write_index(folder, Dataset(files=files, origin=Origin(seed=0)))
    run = dataclasses.replace(run, data=str(folder), mixture=mixture, broken="skip")
    assert get_refusal(run, tmp_path / "run") == line
    check(dataclasses.replace(run, mixture={"a": 1.0, "b": 0.0}), tmp_path / "run")


@pytest.fixture
def halves(tmp_path):
    """Subset "read" has texts as targets and images as context; subset "draw" the reverse."""
    folder = tmp_path / "halves"
    folder.mkdir()

    def only(kind):
        return change_records(lambda s: msgspec.structs.replace(s, target=s.target and isinstance(s, kind)))

    files = write_files(folder, only(Text), subset="read") + write_files(folder, only(Image), subset="draw")
    write_index(folder, Dataset(files=files, origin=Origin(seed=0)))
    return str(folder)


@pytest.mark.parametrize(
    ("mixture", "lacks", "remedy"),
    [
        ({"read": 1.0, "draw": 0.0}, "'read' draws an image", "give a subset that does a weight"),
        ({"read": 0.0, "draw": 1.0}, "'draw' has a text", "or set ce_weight to 0"),
    ],
)
def test_a_mixture_without_a_target_of_one_kind(run, halves, tmp_path, mixture, lacks, remedy):
    line = get_refusal(dataclasses.replace(run, data=halves, mixture=mixture), tmp_path / "run")
    assert line.startswith(f"config: mixture: no document of {lacks}") and line.endswith(remedy)


def test_a_mixture_with_both_kinds_or_without_a_text_loss(run, halves, tmp_path):
    check(dataclasses.replace(run, data=halves), tmp_path / "both")
    drawing = dataclasses.replace(run, data=halves, mixture={"read": 0.0, "draw": 1.0}, ce_weight=0.0)
    check(drawing, tmp_path / "drawing")


def test_the_folder_of_another_run(run, tmp_path):
    workdir = tmp_path / "run"
    check(run, workdir)
    before = (workdir / "config.json").read_text()
    with pytest.raises(ValueError, match=r"holds a run with other values of ce_weight \(1.0, now 0.5\); name another"):
        check(dataclasses.replace(run, ce_weight=0.5), workdir)
    assert (workdir / "config.json").read_text() == before


def test_a_run_continues_with_another_mesh_and_accumulation(run, tmp_path):
    check(run, tmp_path / "run")
    numbers = {key: getattr(run, key) + 1 for key in CHANGEABLE_KEYS if type(getattr(run, key)) is int}
    assert {"accumulate", "save_every", "keep", "log_every", "workers"} <= set(numbers)
    changed = dataclasses.replace(run, mesh=(2, 2, 2), prompts=("a circle",), **numbers)
    assert check(changed, tmp_path / "run").mesh.shape["tensor"] == 2
    assert read_run_config(json.loads((tmp_path / "run" / "config.json").read_text())) == changed


def test_two_runs_in_a_folder(run, tmp_path):
    """The second is refused while the first runs; a killed run leaves only an unlocked file."""
    check(run, tmp_path / "run")
    script = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(); time.sleep(99)"
    command = [sys.executable, "-uc", script, str(tmp_path / "run" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()  # it holds the lock
        with pytest.raises(RunError, match=r"run: another run is training here; wait for its end, or name another"):
            check(run, tmp_path / "run")
        other.kill()
    check(run, tmp_path / "run")


def test_a_folder_that_cannot_be_locked(run, tmp_path, monkeypatch, capsys):
    """Some network file systems have no locks: the run continues and reports it."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    check(run, tmp_path / "run")
    assert "cannot be locked (No locks available)" in capsys.readouterr().out


@pytest.mark.parametrize("held_out", [20, 21])
def test_nothing_left_to_train_on(run, tmp_path, held_out):
    line = get_refusal(dataclasses.replace(run, held_out=held_out), tmp_path / "run")
    assert line.startswith(f"config: held_out is {held_out}, but the subsets in the mixture hold 20 records; set it to")


def test_held_out_records_that_teach_nothing(run, tmp_path):
    """The last record is broken: it has no latents."""
    bare = {"latent_mean": None, "latent_logvar": None, "latent_shape": None}
    made = records(6)
    broken = [msgspec.structs.replace(s, **bare) if isinstance(s, Image) else s for s in made[-1].segments]
    write_dataset(tmp_path / "data", [*made[:-1], msgspec.structs.replace(made[-1], segments=broken)], Origin(seed=0))
    run = dataclasses.replace(run, data=str(tmp_path / "data"), broken="skip", held_out=1)
    line = get_refusal(run, tmp_path / "run")
    assert line == "config: held_out is 1, but the last records are broken or teach nothing; hold out more"
    assert check(dataclasses.replace(run, held_out=2), tmp_path / "run")


def test_a_damaged_config_of_the_folder(run, tmp_path):
    for text, what in (("{", "not valid json .*"), ("[1]", "holds no config of a run; ")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config.json: {what}name another --workdir"):
            check(run, tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"optimizer": OptimizerConfig(warmup_steps=12)}, "optimizer.warmup_steps=12 must be below num_steps=12"),
        ({"optimizer": OptimizerConfig(schedule="linear")}, "optimizer.schedule='linear' is unknown"),
        ({"optimizer": OptimizerConfig(factors=(("vision/.*", 0.0),))}, "optimizer.factors must match every parameter"),
        ({"lora": LoraConfig(rank=2, kernels="nothing")}, "lora.kernels 'nothing' matches no linear kernel"),
    ],
)
def test_an_optimiser_that_cannot_be_made(run, tmp_path, changes, line):
    assert get_refusal(dataclasses.replace(run, **changes), tmp_path / "run").startswith(line)


def test_a_folder_that_may_not_be_written(run, tmp_path):
    (tmp_path / "shared").mkdir()
    for workdir in (tmp_path / "shared", tmp_path / "shared" / "deep" / "run"):
        with forbid_writing(tmp_path / "shared"), pytest.raises(RunError) as caught:
            check(run, workdir)
        where = "" if workdir == tmp_path / "shared" else f" in {tmp_path}/shared"
        line = f"{workdir}: cannot be written{where} (Permission denied); change the permissions, or choose another"
        assert str(caught.value) == f"{line} folder"
    assert list((tmp_path / "shared").iterdir()) == []


@pytest.mark.parametrize(
    ("schedule", "decay_steps", "line"),
    [
        ("cosine", 12, "those after step 12 have the cosine schedule's last learning rate"),
        ("constant", 0, "the constant learning rate continues"),
    ],
)
def test_a_run_may_be_extended(run, tmp_path, schedule, decay_steps, line):
    """The learning rates of finished steps stay, even if the run is extended twice."""
    run = dataclasses.replace(run, optimizer=OptimizerConfig(schedule=schedule))
    check(run, tmp_path)
    before = 12
    for steps in (16, 20):
        longer = dataclasses.replace(run, num_steps=steps)
        continued = continue_schedule(longer, tmp_path, (lines := []).append)
        assert lines == [f"{tmp_path}: num_steps is raised from {before} to {steps}; {line}"]
        assert continue_schedule(longer, tmp_path / "another", pytest.fail) == longer
        assert continued.optimizer.decay_steps == decay_steps
        check(continued, tmp_path)
        assert continue_schedule(longer, tmp_path, pytest.fail) == continued  # as after a kill
        before = steps
    with pytest.raises(RunError, match=r"config: num_steps is 12, but the run in .* was begun with 20; they can only"):
        continue_schedule(run, tmp_path, print)


def test_a_changed_schedule_is_refused(run, tmp_path):
    check(run, tmp_path)
    other = dataclasses.replace(run, num_steps=20, optimizer=OptimizerConfig(decay_steps=20))
    with pytest.raises(RunError, match=r"other values of optimizer.decay_steps \(12, now 20\); name another --workdir"):
        check(continue_schedule(other, tmp_path, print), tmp_path)


def test_many_changed_values_are_counted(run, tmp_path):
    check(run, tmp_path)
    changes = {"ce_weight": 0.5, "seed": 7, "data": "d" * 500, "turns": "single", "draws": 2}
    with pytest.raises(RunError) as caught:
        check_workdir(dataclasses.replace(run, **changes), tmp_path)
    line = str(caught.value)
    assert line.endswith(" and 2 more; name another --workdir") and "seed (0, now 7)" in line
    assert len(line) - len(str(tmp_path)) < 300


def test_a_config_of_an_earlier_version_lacks_newer_keys(run, tmp_path):
    check(run, tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["optimizer"]["decay_steps"], values["spike_factor"], values["fresh"]
    path.write_text(json.dumps(values))
    check(run, tmp_path)


def test_a_large_model_without_a_checkpoint_is_refused(run, tmp_path):
    line = get_refusal(dataclasses.replace(run, model="bagel_7b"), tmp_path / "run")
    assert line.startswith("config: init is empty, so bagel_7b would start from fresh parameters")
    assert "--config.init=CHECKPOINT" in line and len(line) < 400


@pytest.mark.parametrize(
    ("changes", "words"), [({}, "init is empty"), ({"init": "x", "lora": LoraConfig(rank=2)}, "lora.rank is 2")]
)
def test_fresh_parameters_need_an_autoencoder_and_no_adapters(run, changes, words):
    with pytest.raises(ValueError, match=f"fresh is true, but {words}"):
        dataclasses.replace(run, fresh=True, **changes)
