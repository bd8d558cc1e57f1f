"""Runs on several hosts: the Slurm script under a fake Slurm, the JobSet's fields, and their settings."""

import json
import os
import pathlib
import re
import shlex
import stat
import subprocess
import sys

import pytest
import yaml

from pdgen.checkpoints.load import load
from pdgen.data.records import Origin, write_dataset
from pdgen.train.planning.topology import USABLE_FRACTION
from tests.data.small_records import records

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm" / "train.sh"
ENV_FILE = ROOT / "launch" / "gpu.env"
JOBSET = ROOT / "launch" / "k8s" / "train.yaml"

# Starts two processes on one host as srun does; like srun, it ends the others when one fails.
SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift || exit 99
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
status=0
wait $first || status=$?
wait $second || status=$?
exit $status
"""
# In place of the processes: prints how it was started and exits with a given status.
FAILING = """#!/usr/bin/env bash
echo "$@" "$JAX_LOCAL_DEVICE_IDS" "$NCCL_DEBUG"
exit {status}
"""


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path):
    """The environment of a batch job with a fake srun and scontrol; scontrol records its requests."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin" / "srun", SRUN)
    executable(tmp_path / "bin" / "scontrol", f'#!/usr/bin/env bash\necho "$@" >> {tmp_path}/scontrol.log\n')
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_GPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(ROOT)}
    kept = {k: v for k, v in os.environ.items() if k != "NCCL_DEBUG"}
    kept["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiles faster
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PDGEN_PYTHON": sys.executable}
    return kept | job | path | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


def submit(environment, *arguments):
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)


@pytest.mark.slow
def test_two_processes_train_one_model(slurm, tmp_path):
    write_dataset(tmp_path / "data", records(20), Origin(seed=0))
    workdir = tmp_path / "run"
    done = submit(
        slurm,
        "configs/shapes_process.py",
        workdir,
        f"--config.data={tmp_path / 'data'}",
        "--config.num_steps=2",
        "--config.init=",
        "--config.rows=2",
        "--config.optimizer.warmup_steps=1",
        "--config.log_every=1",
        "--config.held_out=0",
        "--config.pictures_every=0",
        "--config.budgets.text=512",
        "--config.budgets.vit=128",
        "--config.budgets.vae=896",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "scontrol.log").exists()
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["rows"] == 2 and saved["num_steps"] == 2
    assert done.stdout.count("exported") == 1  # one process prints
    assert load(workdir).config.language.vocab_size == 512


@pytest.mark.parametrize(
    ("status", "restarts", "left", "again"),
    [(0, 0, 0, False), (2, 0, 2, False), (75, 0, 0, True), (137, 3, 0, True), (137, 20, 137, False)],
)
def test_what_follows_an_exit_status(slurm, tmp_path, status, restarts, left, again):
    """Success and wrong input end the job; a signal to save and a crash queue it again, a limited number of times."""
    executable(tmp_path / "python", FAILING.format(status=status))
    changed = {"PDGEN_PYTHON": str(tmp_path / "python"), "SLURM_RESTART_COUNT": str(restarts)}
    done = submit(slurm | changed, "configs/x.py", "out/run", "--config.rows=16")
    assert done.returncode == left
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == (f"requeue {os.getpid()}\n" if again else "")
    started = "launch/train.py --distributed --config=configs/x.py --workdir=out/run --config.rows=16 0,1,2,3 WARN"
    assert done.stdout.splitlines() == [started] * 2


def test_a_forgotten_argument(slurm):
    done = submit(slurm, "configs/shapes_process.py")
    assert (done.returncode, done.stderr.startswith("usage: sbatch")) == (2, True)


def test_the_script_s_syntax_and_directives():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE))
    assert directives["ntasks-per-node"] == "1" and directives["gpus-per-node"] == "8"
    assert directives["signal"] == "TERM@600"  # to the processes, not to the script
    assert "requeue" in directives and directives["open-mode"] == "append"
    first_command = SCRIPT.read_text().index("set -euo pipefail")
    assert all(m.start() < first_command for m in re.finditer("^#SBATCH", SCRIPT.read_text(), re.MULTILINE))


def test_the_settings_suit_this_jax_and_keep_the_user_s():
    """XLA ends the process on an unknown flag."""
    python = "import os, jax; print(len(jax.devices()), os.environ['NCCL_DEBUG'])"
    command = ["bash", "-c", 'set -a; . "$0"; set +a; "$1" -c "$2"', str(ENV_FILE), sys.executable, python]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3", "NCCL_DEBUG": "INFO"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "3 INFO\n", done.stderr[-2000:]
    shown = subprocess.run(
        ["bash", "-c", f"unset XLA_FLAGS; . {ENV_FILE}; echo $XLA_PYTHON_CLIENT_MEM_FRACTION $XLA_FLAGS"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert shown[0] == "0.92" and all(flag.startswith("--xla_gpu_") for flag in shown[1:])


def test_the_share_of_memory_is_the_plan_s():
    assert f"MEM_FRACTION:-{USABLE_FRACTION}}}" in ENV_FILE.read_text()


@pytest.fixture(scope="module")
def jobset():
    documents = {d["kind"]: d for d in yaml.safe_load_all(JOBSET.read_text())}
    assert list(documents) == ["ServiceAccount", "Role", "RoleBinding", "JobSet"]
    return documents


def test_the_jobset(jobset):
    spec = jobset["JobSet"]["spec"]
    assert jobset["JobSet"]["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert spec["network"]["enableDNSHostnames"] is True
    (job,) = spec["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] == 8
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    words = shlex.split(container["args"][0])
    assert "--distributed" in words and "exec" in words  # exec: signals reach Python
    for word in words:
        if word.startswith("--config="):
            assert (ROOT / word.removeprefix("--config=")).is_file()
    assert (ROOT / words[words.index("python") + 1]).is_file()
    assert (ROOT / words[words.index(".") + 1]).samefile(ENV_FILE)


def test_the_jobset_restarts_except_on_wrong_input(jobset):
    spec = jobset["JobSet"]["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_the_pods_have_permission_to_find_each_other(jobset):
    """JAX's cluster detection sends these requests to the API server."""
    allowed = {
        (group, resource, verb)
        for rule in jobset["Role"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {("", "pods", "list"), ("batch", "jobs", "get"), ("", "services", "list")} <= allowed
    account = jobset["ServiceAccount"]["metadata"]["name"]
    assert jobset["RoleBinding"]["subjects"][0]["name"] == account
    pod = jobset["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account
