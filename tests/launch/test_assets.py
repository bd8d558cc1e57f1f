"""The command line of assets: each mode makes its files, end to end at small sizes, and refuses bad input."""

import json
import os
import pathlib
import runpy
import shlex
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from pdgen.assets import shapes_folder
from pdgen.checkpoints.conversion import to_bagel
from pdgen.checkpoints.shipped import BASE
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER
from pdgen.data.records import read_dataset, write_index
from pdgen.evaluate.ablation import Sweep, make_stages
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.train.export import open_weights
from pdgen.train.release import shipping
from pdgen.train.run_config import RunError
from tests.checkpoints.folders import all_bytes, read_bagel_folder
from tests.support.command_line import run_command
from tests.support.own_lines import own_lines

ROOT = pathlib.Path(__file__).parents[2]
# The command line of argv[2:], which replaces the models of the folder argv[1].
DRIVER = """
import pathlib, runpy, sys
from pdgen.train.release import shipping
models = pathlib.Path(sys.argv[1])
shipping.shapes_folder = lambda name: models / name
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SIZE = (
    "--scale=0.0002",
    "--train_key=num_steps=2",
    "--train_key=held_out=0",
    "--train_key=rows=1",
    "--train_key=draws=1",
    # The stages with texts among their targets then compile the same step.
    *(f"--train_key=budgets.{stream}={tokens}" for stream, tokens in (("text", 896), ("vit", 256), ("vae", 896))),
    "--train_key=optimizer.learning_rate=3e-3",
)
QUICK = (*SIZE, "--train_key=optimizer.warmup_steps=1")


def ship(models, *arguments):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    command = [sys.executable, "-c", DRIVER, str(models), "launch/assets.py", "ship", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A copy of the shipped base, the output of a command that failed and was started again, and both results."""
    models, output = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("ship")
    shutil.copytree(shapes_folder(BASE), models / BASE)
    arguments = (f"--model={BASE}", f"--output={output}")
    failed = ship(models, *arguments, *SIZE)  # the config's warm-up is longer than two steps
    return models / BASE, output, failed, ship(models, *arguments, *QUICK)


@pytest.fixture
def target(shipped, tmp_path, monkeypatch):
    """A copy of the replaced model, for ``replace_shipped`` to replace again."""
    folder = shutil.copytree(shipped[0], tmp_path / BASE)
    monkeypatch.setattr(shipping, "shapes_folder", lambda name: tmp_path / name)
    return folder


@pytest.fixture
def workdir(shipped, tmp_path):
    """A copy of the run."""
    return shutil.copytree(shipped[1] / "reading" / "run", tmp_path / "run")


@pytest.mark.slow
def test_a_model_is_replaced_but_for_autoencoder_and_tokenizer(shipped):
    folder, output, _, done = shipped
    assert done.returncode == 0, done.stderr[-3000:]
    workdir = output / "reading" / "run"
    assert done.stdout.splitlines()[-1] == f"{folder}: has the ema weights of {workdir}"
    before, after = all_bytes(shapes_folder(BASE)), all_bytes(folder)
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"ema.safetensors", "training_layout.json"}  # the layout has the data's number of records
    assert {str(tensor.dtype) for tensor in load_file(folder / "ema.safetensors").values()} == {"bfloat16"}
    config = json.loads((workdir / "config.json").read_text())
    assert config["num_steps"] == 2 and config["data"] == str(output / "base" / "data")
    assert pathlib.Path(config["init"]).parent == output / "base" / "run"


@pytest.mark.slow
def test_a_restart_continues(shipped):
    folder, output, failed, done = shipped
    assert failed.returncode == 2 and "warmup_steps" in failed.stderr.splitlines()[-1]
    assert "start again to resume" in failed.stderr.splitlines()[-1]
    ran = [
        [(pathlib.Path(line.split(":")[0]).name, pathlib.Path(line.split()[1]).stem) for line in out.splitlines()]
        for out in (failed.stdout, done.stdout.rpartition(f"{folder}: has")[0])
    ]
    assert ran[0] == [("places", "build_data"), ("places", "train")]
    assert ran[1] == [("places", "train"), ("base", "build_data"), ("base", "train"), ("reading", "train")]
    before = all_bytes(folder)
    again = ship(folder.parent, f"--model={BASE}", f"--output={output}", *QUICK)
    assert again.returncode == 0 and len(again.stdout.splitlines()) == 1
    assert all_bytes(folder) == before
    other = ship(folder.parent, f"--model={BASE}", f"--output={output}", "--scale=0.1")
    assert other.returncode == 2 and "build_data.done: was made with other arguments" in other.stderr
    assert all_bytes(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_chosen_weights_are_shipped(target, workdir, tmp_path, weights):
    (target / "config.json").unlink()
    kept = [target / name for name in ("ae.safetensors", "tokenizer.model")]
    before = [file.stat().st_ino for file in kept]
    assert shipping.replace_shipped(BASE, workdir, weights, lambda line: None) == target
    assert [file.stat().st_ino for file in kept] == before
    with open_weights(workdir, weights, lambda line: None) as source:
        to_bagel(source, tmp_path / "wanted", log=lambda line: None)
    params, stored = (read_bagel_folder(path)[1]["model"] for path in (tmp_path / "wanted", target))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(ml_dtypes.bfloat16), b), params, stored)


def refused(workdir, target, words):
    before = all_bytes(target)
    with pytest.raises(RunError, match=words) as fault:
        shipping.replace_shipped(BASE, workdir, "raw", lambda line: None)
    assert str(fault.value).startswith(f"{workdir}: ") and "\n" not in str(fault.value)
    assert all_bytes(target) == before


@pytest.mark.slow
@pytest.mark.parametrize("part", ["autoencoder", "tokenizer"])
def test_a_run_on_other_latents_or_tokens_is_refused(target, workdir, tmp_path, part):
    config = json.loads((workdir / "config.json").read_text())
    dataset = read_dataset(config["data"])
    (tmp_path / "data").mkdir()
    other = msgspec.structs.replace(dataset, origin=msgspec.structs.replace(dataset.origin, **{part: "0" * 64}))
    write_index(tmp_path / "data", other)
    (workdir / "config.json").write_text(json.dumps(config | {"data": str(tmp_path / "data")}))
    refused(workdir, target, f"its data was built with another {part} than {target} holds; train again")


def test_a_run_from_a_base_that_was_replaced_is_refused(target, workdir, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    old = tmp_path / "shapes_base-0123456789ab"
    (workdir / "config.json").write_text(json.dumps(config | {"init": str(old)}))
    refused(workdir, target, f"started from {old}, which is no longer shipped")


def test_the_process_model_is_the_ablations_full_cell(tmp_path):
    """Its commands are those of the sweep's first seed, in order, with more steps and without evaluations."""
    done = ship(tmp_path, "--model=shapes", "--output=out/x", "--dry_run")
    assert done.returncode == 0, done.stderr
    words = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    assert [pathlib.Path(line[0]).name for line in words] == ["build_data.py", "train.py"] * 2
    config = runpy.run_path(str(ROOT / "configs" / "ablation_shapes.py"))["get_config"]()
    sweep = msgspec.convert(config.to_dict(), Sweep)
    stages = make_stages(sweep, ["rewritten_critique"], pathlib.Path("out/x"))
    steps = f"--config.num_steps={config.train_keys.num_steps}"
    of_sweep = [[argument for argument in stage.arguments if argument != steps] for stage in stages]
    assert all(line[1:] in of_sweep for line in words)
    assert all("--config.seed=0" in line for line in words[1::2])
    assert "--config.conflict.checkpoint=out/x/rewritten/0/run" in words[2]
    assert "--config.init=out/x/rewritten/0/run" in words[3]
    assert not (ROOT / "out" / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model"),
        (["--model=shapes_large"], "--model=shapes_large"),
        (["--train_key=num_steps:2"], "--train_key=num_steps:2: write KEY=VALUE"),
        (["stray"], "stray is no flag"),
    ],
)
def test_wrong_flags_of_ship_end_in_one_line(tmp_path, arguments, words):
    model = [] if words == "--model" else ["--model=shapes_base"]
    done = ship(tmp_path, *model, f"--output={tmp_path / 'out'}", "--dry_run", *arguments)
    assert (done.returncode, done.stdout) == (2, "") and list(tmp_path.iterdir()) == []
    assert own_lines(done.stderr, "assets").count("\n") == 1 and words in done.stderr


AUTOENCODER_CONFIG = "--config=configs/shapes_autoencoder.py"


def run(*arguments):
    return run_command("assets", *arguments)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    done = run("tokenizer", f"--output={path}", "--count=200", "--seed=4")
    assert (done.returncode, own_lines(done.stderr, "assets")) == (0, "")
    pieces = load_tokenizer(path.parent).vocab_size
    assert done.stdout.startswith(f"{path}: {pieces} pieces, ")
    assert pieces <= 512
    return path


def test_the_file_is_a_tokenizer_with_a_piece_for_each_word_and_tag(tokenizer_path):
    tokenizer = load_tokenizer(tokenizer_path.parent)
    text = "<ins>Add a red circle.</ins> <des>The picture shows a red unit."
    pieces = [tokenizer.token_bytes(i).decode() for i in tokenizer.encode(text)]
    assert pieces == [
        *("<ins>", "Add", " a", " red", " circle", ".", "</ins>", " <des>", "The", " picture", " shows", " a", " red"),
        *(" ", "u", "n", "i", "t", "."),
    ]


def test_training_again_gives_the_same_bytes_and_needs_permission(tokenizer_path):
    path = tokenizer_path
    before = path.read_bytes()
    refused = run("tokenizer", f"--output={path}", "--count=200", "--seed=4")
    assert refused.returncode == 2
    assert own_lines(refused.stderr, "assets") == f"assets: {path}: exists already; pass --overwrite to replace it\n"
    assert run("tokenizer", f"--output={path}", "--count=200", "--seed=4", "--overwrite").returncode == 0
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output=words.txt"], "name a file ending in .model"),
        (["--output=a.model", "--count=3"], "--count=3"),
        (["--output=a.model", "stray"], "stray is no flag"),
        ([], "--output"),
    ],
)
def test_wrong_flags_of_the_tokenizer_end_in_one_line(arguments, words):
    done = run("tokenizer", *arguments)
    said = own_lines(done.stderr, "assets")
    assert (done.returncode, done.stdout, said.count("\n")) == (2, "", 1) and words in said


@pytest.fixture(scope="module")
def autoencoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "autoencoder"
    small = ("--config.image_size=16", "--config.pictures=4", "--config.held_out=2", "--config.train.batch_size=2")
    done = run("autoencoder", AUTOENCODER_CONFIG, f"--workdir={folder}", "--steps=2", *small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder / 'ae.safetensors'}: 2,0")
    assert "PSNR on held-out scenes" in done.stdout and "decoder: 100%" in done.stderr
    return folder


@pytest.mark.slow
def test_the_file_holds_the_autoencoder_and_nothing_else_is_left(autoencoder_folder):
    folder = autoencoder_folder
    assert read_autoencoder(folder, SHAPES_AUTOENCODER).keys() == {"encoder", "decoder"}
    assert [path.name for path in folder.iterdir()] == ["ae.safetensors"]


@pytest.mark.slow
def test_an_existing_autoencoder_is_replaced_only_with_permission(autoencoder_folder):
    folder = autoencoder_folder
    before = (folder / "ae.safetensors").read_bytes()
    refused = run("autoencoder", AUTOENCODER_CONFIG, f"--workdir={folder}")
    assert (refused.returncode, refused.stdout) == (2, "")
    path = folder / "ae.safetensors"
    assert own_lines(refused.stderr, "assets") == f"assets: {path}: exists already; pass --overwrite to replace it\n"
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing"),
        ([AUTOENCODER_CONFIG, "--steps=1"], "steps=1: give 2 or more"),
        ([AUTOENCODER_CONFIG, "--config.model=huge"], "model preset 'huge' does not exist"),
        ([AUTOENCODER_CONFIG, "--config.train.colour=3"], "the config has no key colour"),
        ([AUTOENCODER_CONFIG, "stray"], "stray is no flag"),
    ],
)
def test_wrong_flags_of_the_autoencoder_end_in_one_line(arguments, words, tmp_path):
    done = run("autoencoder", f"--workdir={tmp_path / 'new'}", *arguments)
    said = own_lines(done.stderr, "assets")
    assert (done.returncode, done.stdout, said.count("\n")) == (2, "", 1) and words in said
    assert not (tmp_path / "new").exists()
