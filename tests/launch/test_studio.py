"""launch/studio.py refuses wrong flags with one line, and finds its trajectories again after a kill."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.sample.conftest import checkpoint  # noqa: F401  a fixture

pytest.importorskip("starlette", reason="the extra studio is not installed")
import httpx2

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("--num_timesteps=2", "--max_images=1", "--max_tokens=6", "--slots=2", "--port=0")


def run_refused(*flags):
    command = [sys.executable, str(ROOT / "launch" / "studio.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    return done.returncode, done.stderr


def test_wrong_flags(tmp_path):
    status, line = run_refused("--token=short", f"--folder={tmp_path / 'out'}")
    assert status == 2 and line == "studio: --token: needs at least 16 characters; leave it out to have one drawn\n"
    assert not (tmp_path / "out").exists()


def start(folder, model):
    command = [
        sys.executable,
        str(ROOT / "launch" / "studio.py"),
        f"--checkpoint={model}",
        f"--folder={folder}",
        *SMALL,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ)
    address = re.search(r"http://\S+", process.stdout.readline())
    assert address, process.wait()
    return process, httpx2.Client(base_url=address.group(), timeout=60)


@pytest.mark.slow
def test_killed_and_started_again(tmp_path, checkpoint):  # noqa: F811
    process, http = start(tmp_path / "out", checkpoint)
    try:
        request = {"prompt": "a red circle", "seed": 1, "stages": 1}
        name = http.post("/api/trajectories", json=request).json()["trajectories"][0]["id"]
        path = f"/api/trajectories/{name}"
        end = time.monotonic() + 600
        while not http.get(path).json()["stages"] and time.monotonic() < end:
            time.sleep(0.3)
        stages = http.get(path).json()["stages"]
        http.post(f"{path}/run", json={})
    finally:
        process.kill()
        process.wait()
    process, http = start(tmp_path / "out", checkpoint)
    try:
        assert http.get(path).json()["stages"][0] == stages[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0
        assert not list((tmp_path / "out").rglob("*.partial*"))
    finally:
        process.kill()
