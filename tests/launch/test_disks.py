"""Command lines with an unwritable folder, which is reported before any work, or a full disk."""

import os
import pathlib
import subprocess
import sys

import pytest

from pdgen.data.records import find_broken_records
from pdgen.sample.runs.folder import list_trajectories
from tests.support.disks import as_user, forbid_writing

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
BUILD = (
    "build_data.py",
    "--config=configs/data_shapes.py",
    "--count=12",
    "--stages=multi_turn",
    "--config.shard_size=4",
)
# Neither sources nor checkpoints exist, and no prompt fits: the line about the folder comes first.
COMMANDS = {
    "sample": ("sample.py", "--prompt=a red circle", "--checkpoint=none", "--output={folder}"),
    "evaluate": ("evaluate.py", "--benchmark=shapes", "--checkpoint=none", "--output={folder}"),
    "compare": ("evaluate.py", "compare", "none", "other", "--output={folder}"),
    "build": (*BUILD, "--output={folder}"),
    "import": ("build_data.py", "import", "--format=folder", "--source=none", "--output={folder}"),
    "encode": ("build_data.py", "encode", "--data=none", "--model=nano", "--output={folder}"),
    "convert": ("convert.py", "--source=none", "--target={folder}"),
    "train": ("train.py", "--config=configs/shapes_tiny.py", "--config.data=none", "--workdir={folder}"),
    "ablate": ("ablate.py", "--config=configs/ablation_shapes.py", "--output={folder}"),
}


def run(*arguments, before=()):
    # A truncated cache would harm later tests.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0", "JAX_NUM_CPU_DEVICES": "1"}
    command = [*before, sys.executable, str(ROOT / "launch" / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unwritable_folder_is_reported_first(name, tmp_path):
    folder = tmp_path / "shared" / "out"
    folder.parent.mkdir()
    with forbid_writing(folder.parent):
        done = run(*(word.format(folder=folder) for word in COMMANDS[name]), before=as_user([]))
    program = COMMANDS[name][0].removesuffix(".py")
    where = (
        f"{folder.parent}: cannot be written"
        if name in ("import", "encode", "convert")
        else (f"{folder}: cannot be written in {folder.parent}")
    )
    line = f"{program}: {where} (Permission denied); change the permissions, or choose another folder\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_a_branch_into_an_unwritable_run_samples_nothing(tmp_path):
    run_folder = tmp_path / "run"
    (run_folder / "000").mkdir(parents=True)
    arguments = ("sample.py", f"--branch={run_folder / '000'}", "--step=0", "--plan=x")
    with forbid_writing(run_folder):
        done = run(*arguments, before=as_user([]))
    line = f"sample: {run_folder}: cannot be written (Permission denied); change the permissions, or choose another fo"
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(line)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_on_a_full_disk_is_one_line_and_resumes(workers, tmp_path):
    arguments = (*BUILD, f"--workers={workers}", f"--output={tmp_path / 'data'}")
    done = run(*arguments, before=["prlimit", "--fsize=8000"])
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.split("\r")[-1].splitlines()[-1]
    assert line.startswith(f"build_data: {tmp_path}/data/") and len(line) < 400
    assert line.endswith(": File too large; make room and run again, the same command continues where it can")
    assert not list(tmp_path.rglob("*.partial"))
    assert run(*arguments).returncode == 0
    assert list(find_broken_records(tmp_path / "data")) == []


@pytest.mark.parametrize(("nbytes", "file"), [(100, "run.json"), (4000, "index.html")])
def test_sampling_on_a_full_disk_names_the_file(nbytes, file, tmp_path):
    words = ("--text_scale=1", "--max_images=1", "--num_timesteps=2", "--max_tokens=8", "--keep_compiled=false")
    done = run(
        "sample.py",
        "--prompt=a red circle",
        *words,
        f"--output={tmp_path / 'out'}",
        before=["prlimit", f"--fsize={nbytes}"],
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.split("\r")[-1].splitlines()[-1]
    assert line.startswith(f"sample: {tmp_path}/out/{file}: File too large; make room and run again")
    assert list_trajectories(tmp_path / "out") == ([] if file == "run.json" else ["000"])  # the finished one is kept
