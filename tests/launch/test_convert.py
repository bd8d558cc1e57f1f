"""The converter's command line: every fault is one line and status 2, and leaves nothing behind."""

import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys

import pytest

from pdgen.checkpoints.manifest import read_manifest
from tests.checkpoints.folders import WEIGHTS, all_bytes, copy_of_golden, edit_json, step_folder
from tests.support.command_line import run_command
from tests.support.own_lines import own_lines

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments, limit=None):
    """Run the command; ``limit`` bounds the bytes of a file that it may write."""
    if not limit:
        return run_command("convert", *arguments)

    def bound():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, str(ROOT / "launch" / "convert.py"), *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, preexec_fn=bound)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_of_golden(tmp_path_factory.mktemp("source") / "bagel")


@pytest.fixture(scope="module")
def converted(folder):
    target = folder.parent / "pdgen"
    done = run(f"--source={folder}", f"--target={target}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    # values of the golden folder's two files, counted with the safetensors library
    assert done.stderr.endswith(f"{target}: 259 tensors, 1,003,723 values, 4,014,892 bytes\n")
    assert re.search(r"writing: 100%.*B/s", done.stderr)
    return target


def test_a_round_trip(folder, converted, tmp_path):
    done = run(f"--source={converted}", f"--target={tmp_path / 'back'}", "--reverse")
    assert done.returncode == 0, done.stderr
    assert all_bytes(tmp_path / "back") == all_bytes(folder)


def test_check_prints_the_manifest(folder, converted):
    of_checkpoint, of_folder = run(f"--source={converted}", "--check"), run(f"--source={folder}", "--check")
    assert (of_checkpoint.returncode, of_folder.returncode) == (0, 0)
    assert of_checkpoint.stdout == (converted / "manifest.json").read_text()
    printed = json.loads(of_folder.stdout)
    assert printed["tensors"] == json.loads(of_checkpoint.stdout)["tensors"]


@pytest.mark.slow
def test_a_step_folder(folder, tmp_path):
    step = tmp_path / "step"
    step_folder(step, without=("vit_model", "connector", "vit_pos_embed"))
    given = [f"--source={step}", f"--base={folder}", "--weights=raw"]
    done = run(*given, f"--target={tmp_path / 'pdgen'}")
    assert done.returncode == 0, done.stderr
    assert f"{step}: model.safetensors is converted, ema.safetensors is not" in done.stderr
    assert len(re.findall(rf"{step}: module \w+ \(\d+ tensors?\) is taken from {folder}\n", done.stderr)) == 4
    assert re.search(r"ema and raw weights differ by \d\.\de[-+]\d\d \(", done.stderr)
    checked = run(*given, "--check")
    assert checked.returncode == 0, checked.stderr
    assert (
        json.loads(checked.stdout)["tensors"]
        == json.loads((tmp_path / "pdgen" / "manifest.json").read_text())["tensors"]
    )
    refused(
        run(f"--source={step}", f"--target={tmp_path / 'x'}"), r".*step: holds weights without json files.*--base=.*"
    )


def refused(done, line):
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    said = own_lines(done.stderr, "convert")
    assert "Traceback" not in said
    assert re.fullmatch(f"convert: {line}", said.splitlines()[-1]), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, line",
    [
        ([], ".*--source.*must have a value other than None.*"),
        (["--source={folder}"], "--target is missing; name the folder to write"),
        (["--source={folder}", "--target=x", "--dtype=int8"], ".*--dtype=int8.*<float32.bfloat16>.*"),
        (["--source={folder}", "--target=x", "--quantize=int4"], ".*--quantize=int4.*<int8>.*"),
        (["--source={folder}", "--target=x", "--quantize=int8", "--reverse"], "--quantize: does nothing with this .*"),
        (["--source={folder}", "--check", "--quantize=int8"], "--quantize: does nothing with this --source .*"),
        (["--source={folder}", "--target=x", "--unknown"], ".*Unknown command line flag 'unknown'.*"),
        (["--source={folder}", "x"], "x is no flag; write --flag=value"),
        (["--source={folder}", "--check", "--target=x"], "--target: does nothing with this --source .*"),
        (["--source={folder}/none", "--target=x"], ".*/none: no such folder"),
        (["--source={folder}", "--target=x", "--reverse", "--base=y"], "--base: does nothing with this --source .*"),
        (["--source={folder}", "--target=x", "--weights=raw"], ".*holds ema.safetensors and no model.safetensors; .*"),
        (["--source={folder}", "--target={folder}"], ".*bagel: exists; choose another target or add --overwrite"),
        (["--source={folder}", "--target={folder}", "--overwrite"], ".*bagel: exists and is no checkpoint, so .*"),
        (["--source={folder}", "--target={folder}/config.json/x"], r".*config.json: cannot be written \(Not a.*"),
    ],
)
def test_wrong_arguments(folder, arguments, line):
    before = all_bytes(folder)
    refused(run(*(argument.format(folder=folder) for argument in arguments)), line)
    assert all_bytes(folder) == before


def test_bad_input(folder, tmp_path):
    bad = copy_of_golden(tmp_path / "bad")
    (bad / WEIGHTS).write_bytes((bad / WEIGHTS).read_bytes()[:-1])
    refused(run(f"--source={bad}", f"--target={tmp_path / 'x'}"), r".*ema\.safetensors: truncated, 1 bytes .*")
    edit_json(bad / "config.json", connector_act="relu")
    refused(run(f"--source={bad}", "--check"), '.*connector_act is "relu".*')
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_disk_full(folder, converted, tmp_path, direction):
    """A limit on the size of files stands in for a full disk."""
    source, extra = (folder, []) if direction == "forward" else (converted, ["--reverse"])
    done = run(f"--source={source}", f"--target={tmp_path / 'x'}", *extra, limit=60_000)
    refused(done, r".*/x: cannot be written, the disk or its quota is full \(4,014,892 bytes are needed\); make.*")
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_run_cleans_up(folder, tmp_path):
    """The run sends itself SIGTERM at its 50th tensor, so the signal always comes in the middle."""
    script = f"""
import os, runpy, signal, sys
from pdgen.checkpoints import arrays
write, count = arrays.Arrays.write, []
def terminate(*arguments):
    count.append(1)
    if len(count) == 50:
        os.kill(os.getpid(), signal.SIGTERM)
    return write(*arguments)
arrays.Arrays.write = terminate
sys.argv = ["convert.py", "--source={folder}", "--target={tmp_path / "x"}"]
runpy.run_path({str(ROOT / "launch" / "convert.py")!r}, run_name="__main__")
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=environment)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_int8(folder, converted, tmp_path):
    target = tmp_path / "int8"
    done = run(f"--source={converted}", f"--target={target}", "--quantize=int8")
    assert done.returncode == 0, done.stderr
    # 295,936 values of kernels and embeddings in a byte each instead of four, and 4,352 scales of four bytes
    assert done.stderr.endswith("315 tensors, 1,008,075 values, 3,144,492 bytes\n")
    assert run(f"--source={target}", "--check").returncode == 0
    line = ".*/int8: is an int8 checkpoint; BAGEL's code reads floats, .*; take the one that it was made from"
    refused(run(f"--source={target}", f"--target={tmp_path / 'back'}", "--reverse"), line)
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_cast_and_overwrite(folder, tmp_path):
    target = tmp_path / "pdgen"
    assert run(f"--source={folder}", f"--target={target}").returncode == 0
    done = run(f"--source={folder}", f"--target={target}", "--dtype=bfloat16", "--overwrite")
    assert done.returncode == 0, done.stderr
    dtypes = {(tensor.file, tensor.dtype) for tensor in read_manifest(target).tensors}
    assert dtypes == {(WEIGHTS, "bfloat16"), ("ae.safetensors", "float32")}
    assert [path.name for path in tmp_path.iterdir()] == ["pdgen"]


ADAPTER = ROOT / "tests" / "checkpoints" / "peft" / "patterns"


def test_an_adapter_is_measured_and_merged(converted, tmp_path):
    checked = run(f"--source={ADAPTER}", f"--base={converted}", "--check")
    done = run(f"--source={ADAPTER}", f"--base={converted}", f"--target={tmp_path / 'merged'}")
    assert (checked.returncode, done.returncode, checked.stdout, done.stdout) == (0, 0, "", ""), done.stderr
    changed, summary = done.stderr.splitlines()[-2:]
    assert re.fullmatch(rf"{ADAPTER}: 6 of 6 adapted kernels changed, by 0\.\d+ of their norm \(.*\)", changed)
    assert checked.stderr.splitlines()[-1] == changed
    assert summary == f"{tmp_path / 'merged'}: 259 tensors, 1,003,723 values, 4,014,892 bytes"
    before, after = (
        {t.name: t.sha256 for t in read_manifest(folder).tensors} for folder in (converted, tmp_path / "merged")
    )
    assert sum(before[name] != after[name] for name in before) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--source={adapter}"], ".*patterns: is a PEFT adapter; name the checkpoint that it adapts with --base"),
        (["--source={adapter}", "--base={base}"], "--target is missing; name the folder to write"),
        (["--source={adapter}", "--base={base}", "--check", "--target=x"], "--target: does nothing with this .*"),
        (["--source={adapter}", "--base={adapter}", "--target=x"], ".*patterns: is a PEFT adapter; merge it first: .*"),
        (
            ["--source={adapter}", "--base=shapes", "--target=x"],
            ".*adapter_model.safetensors: .*; it is damaged or .*",
        ),
        (["--source={base}", "--adapters", "--target=x"], ".*pdgen: is no workdir of a training run; --adapters .*"),
    ],
)
def test_wrong_arguments_of_adapters(converted, tmp_path, arguments, line):
    arguments = [argument.format(adapter=ADAPTER, base=converted) for argument in arguments]
    refused(run(*(argument.replace("=x", f"={tmp_path / 'x'}") for argument in arguments)), line)
    assert list(tmp_path.iterdir()) == []
