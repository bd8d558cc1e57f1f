"""Building in shards: with any runner, and after kills at any moment, the bytes are the same."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest

from pdgen.data.records import SUFFIX, Origin, RecordSource, write_index
from pdgen.data.records import Dataset as Index
from pdgen.synthesis import build, runners
from pdgen.synthesis.page import merge_summaries
from tests.data import shards

ROOT = pathlib.Path(__file__).parents[2]
COMMON = {"seed": 0}


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start(folder, runner):
    command = [sys.executable, "-m", "tests.data.shards", str(folder), runner]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted build in this process."""
    folder = tmp_path_factory.mktemp("whole") / "data"
    shards.main(folder, "here")
    return folder


def test_samples_are_cut_into_shards():
    assert [s.name for s in shards.SHARDS] == [f"one-{n:05d}" for n in range(6)] + ["two-00000", "two-00001"]
    assert [(s.start, s.stop) for s in build.cut_shards("one", 10, 4)] == [(0, 4), (4, 8), (8, 10)]
    assert build.cut_shards("one", 0, 4) == []


def test_every_sample_is_in_its_file_and_in_the_facts(whole):
    facts = build.build_shards(whole, shards.SHARDS, shards.fail, map)  # nothing is missing, so nothing is made
    files = build.list_data_files(facts)
    write_index(whole, Index(files=files, origin=Origin(seed=0)))
    source = RecordSource(whole)
    assert [source[i].id for i in range(27)] == [f"one-{n}" for n in range(22)] + [f"two-{n}" for n in range(5)]
    assert {f.subset for f in files} == {"one", "two"}
    for file in files:
        assert hashlib.sha256((whole / file.name).read_bytes()).hexdigest() == file.sha256
    assert build.count_rejected(facts) == {"ugly": 6}
    summary = merge_summaries([one.summary for one in facts])
    assert (summary.records, summary.verdicts) == (27, {"negative": 13, "positive": 14})
    (whole / "dataset.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["here", "processes"])
def test_repeated_kills_do_not_change_the_result(tmp_path, whole, runner):
    folder, kills = tmp_path / "data", 0
    rng = np.random.default_rng(3)
    while True:
        process = start(folder, runner)
        done = len(list(folder.glob(f"{build.STATE}/*-*.json")))
        while kills < 4 and process.poll() is None and len(list(folder.glob(f"{build.STATE}/*-*.json"))) == done:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))  # anywhere in the next shard
        if kills == 4:
            process.wait()
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert process.returncode == 0, process.stderr.read()
    assert kills >= 2
    assert content(folder) == content(whole)


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    process = start(tmp_path / "data", "processes")
    tasks = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = []
    while len(workers) < 3:  # two workers and multiprocessing's resource tracker
        assert process.poll() is None
        workers = tasks.read_text().split()
        time.sleep(0.02)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while alive := [pid for pid in workers if pathlib.Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def test_a_damaged_or_missing_file_is_made_again(tmp_path, whole):
    folder = tmp_path / "data"
    shards.main(folder, "here")
    (folder / f"one-00001{SUFFIX}").write_bytes(b"")
    (folder / build.REPORT / "one-00002.js").unlink()
    (folder / build.STATE / "two-00000.json").write_text("{}")
    made = []

    def make(shard):
        made.append(shard.name)
        return shards.make(shard)

    build.build_shards(folder, shards.SHARDS, make, map)
    assert made == ["one-00001", "one-00002", "two-00000"]
    assert content(folder) == content(whole)


def test_facts_that_are_known_and_made_come_in_order(tmp_path):
    told = []
    with build.open_build(tmp_path, COMMON, {"one": {}}, overwrite=False):
        build.build_shards(tmp_path, build.cut_shards("one", 8, 4)[1:], shards.make, map)
        facts = build.build_shards(
            tmp_path, build.cut_shards("one", 8, 4), shards.make, map, lambda f: told.append(f.name)
        )
    assert [f.name for f in facts] == ["one-00000", "one-00001"]
    assert told == ["one-00001", "one-00000"]


def test_a_subset_can_be_added_and_remade(tmp_path, whole):
    with build.open_build(tmp_path, COMMON, {"one": shards.SETTINGS["one"]}, overwrite=False):
        build.build_shards(tmp_path, shards.SHARDS[:6], shards.make, map)
    first = content(tmp_path)
    with build.open_build(tmp_path, COMMON, {"two": shards.SETTINGS["two"]}, overwrite=False):
        build.build_shards(tmp_path, shards.SHARDS[6:], shards.make, map)
    assert content(tmp_path) == content(whole)
    (tmp_path / "dataset.json").write_text("{}")
    with build.open_build(tmp_path, COMMON, {"two": {"count": 3}}, overwrite=True):
        left = content(tmp_path)
    assert left.keys() == first.keys()
    assert all(left[name] == first[name] for name in first if "settings" not in name)


def test_the_folder_of_another_build_is_named(tmp_path):
    def reopen(common, stages, overwrite=False):
        with build.open_build(tmp_path / "data", common, stages, overwrite):
            pass

    reopen({"seed": 0, "rates": (1, 2)}, {"one": {"count": 3}, "two": {"count": 4}})
    reopen({"seed": 0, "rates": (1, 2)}, {"one": {"count": 3}})
    before = content(tmp_path)
    with pytest.raises(build.BuildError, match="was begun with seed=0, now it is 1; pass --overwrite"):
        reopen({"seed": 1, "rates": (1, 2)}, {"one": {"count": 3}})
    with pytest.raises(build.BuildError, match="was begun with count=3, now it is 5"):
        reopen({"seed": 0, "rates": (1, 2)}, {"one": {"count": 5}})
    with pytest.raises(build.BuildError, match="seed=0, now it is 1; build all its stages again"):
        reopen({"seed": 1, "rates": (1, 2)}, {"one": {"count": 3}}, overwrite=True)
    assert content(tmp_path) == before
    reopen({"seed": 1}, {"one": {"count": 9}, "two": {"count": 4}}, overwrite=True)
    begun = msgspec.json.decode((tmp_path / "data" / build.STATE / "settings.json").read_bytes())
    assert begun["common"] == {"seed": 1}


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    with build.open_build(tmp_path, {}, {}, False):
        pass
    before = content(tmp_path)
    for leftover in (f".one-00000{SUFFIX}.partial", "report/.one-00000.js.partial", "build/.one-00000.json.partial"):
        (tmp_path / leftover).write_text("half")
    with build.open_build(tmp_path, {}, {}, False):
        assert content(tmp_path) == before


def test_foreign_folders_and_folders_in_use_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(build.BuildError, match="was not begun by build_data"), build.open_build(tmp_path, {}, {}, True):
        pass
    assert content(tmp_path) == {"notes.txt": b"mine"}
    folder = tmp_path / "data"
    with (
        build.open_build(folder, {}, {}, False),
        pytest.raises(build.BuildError, match="another process is building in it"),
        build.open_build(folder, {}, {}, False),
    ):
        pass


@pytest.mark.parametrize("runner", ["here", "processes"])
def test_a_fault_in_a_shard_ends_the_build(tmp_path, runner):
    with build.open_build(tmp_path, {}, {}, False), pytest.raises(build.BuildError, match=r"one-0000\d: no luck"):
        build.build_shards(tmp_path, shards.SHARDS[:3], shards.fail, shards.RUNNERS[runner])
    with build.open_build(tmp_path, {}, {}, False), pytest.raises(build.BuildError, match="0 records made, 4 expected"):
        build.build_shards(tmp_path, shards.SHARDS[:1], lambda shard: build.ShardContent([], {}), map)
    assert not list(tmp_path.glob(f"*{SUFFIX}"))


def test_a_lost_worker_is_reported(tmp_path):
    with pytest.raises(runners.RunnerError, match="a worker process was lost"):
        list(runners.run_in_processes(1, os._exit, [3]))


def test_a_terminated_build_stops_at_once_and_keeps_its_work(tmp_path, whole):
    folder = tmp_path / "data"
    process = start(folder, "processes")
    while process.poll() is None and not list(folder.glob(f"{build.STATE}/one-*.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.wait()
    assert time.monotonic() - began < 5
    done = {name: data for name, data in content(folder).items() if name.endswith(".js")}
    assert done and all(content(whole)[name] == data for name, data in done.items())
