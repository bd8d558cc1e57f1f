"""The command line of build_data: the bytes do not depend on kills and workers; every fault is one line."""

import collections
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pdgen.assets import shapes_folder
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER
from pdgen.data.latents import fingerprint_autoencoder
from pdgen.data.records import Origin, RecordSource, find_broken_records, write_dataset
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image
from tests.data import handmade
from tests.support.own_lines import own_lines

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = (
    "--config=configs/data_shapes.py",
    "--count=600",
    "--scale=0.05",
    "--config.shard_size=4",
    "--config.seed=5",
    "--config.alignment.negative=10000",
)


def start(*arguments):
    command = [sys.executable, str(ROOT / "launch" / "build_data.py"), *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments):
    process = start(*arguments)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    done = run(*CONFIG, f"--output={folder}", "--workers=2")
    assert done.returncode == 0, done.stderr
    size = sum(p.stat().st_size for p in folder.glob("*.array_record")) / 1e6
    assert done.stdout == (
        f"{folder}: multi_turn 15, conflict 7, alignment 7 records in 8 files, {size:.1f} MB; "
        f"see {folder / 'index.html'}\n"
    )
    return folder


@pytest.mark.slow
def test_the_records_are_sound_and_the_index_describes_them(folder):
    assert list(find_broken_records(folder)) == []
    source = RecordSource(folder)
    records = [source[i] for i in range(len(source))]
    assert [r.source for r in records] == ["multi_turn"] * 15 + ["conflict"] * 7 + ["alignment"] * 7
    images = [s for r in records for s in r.segments if isinstance(s, Image)]
    assert {s.latent_shape for s in images} == {(8, 8, 16)}
    first = np.frombuffer(images[0].latent_mean, np.float16)
    assert np.isfinite(first).all() and first.std() > 0
    told = source.dataset
    assert told.origin.seed == 5 and told.origin.settings["multi_turn"]["count"] == 15
    assert told.origin.tokenizer == load_tokenizer(shapes_folder()).fingerprint
    assert told.origin.autoencoder == fingerprint_autoencoder(read_autoencoder(shapes_folder(), SHAPES_AUTOENCODER))
    for file in told.files:
        assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
        assert file.name.startswith(file.subset)
    verdicts = collections.Counter((r.source, r.scene.get("positive")) for r in records)
    assert verdicts == {
        ("multi_turn", None): 15,
        ("conflict", True): 3,
        ("conflict", False): 4,
        ("alignment", True): 2,
        ("alignment", False): 5,
    }
    assert told.facts["subsets"]["conflict"] | {"positive": 3, "negative": 4} == told.facts["subsets"]["conflict"]
    assert told.facts["rejected"].keys() == {"multi_turn", "conflict", "alignment"}
    leaks = told.facts["leaks"]
    assert (leaks["prompts"], leaks["exact"], leaks["normalised"], leaks["records"]) == (29, 0, 0, [])


def test_the_page_shows_all_samples(folder):
    index = (folder / "report" / "index.js").read_text()
    listed = json.loads(re.fullmatch(r"pdgen_index\((.*)\);\n", index, re.DOTALL)[1])
    assert sum(n for _, _, n in listed["shards"]) == len(listed["task"]) == 29
    for name, _, count in listed["shards"]:
        chunk = (folder / "report" / f"{name}.js").read_text()
        samples = json.loads(re.fullmatch(rf'pdgen_chunk\("{name}",(.*)\);\n', chunk, re.DOTALL)[1])
        assert len(samples) == count and all(s["id"].startswith(name[:-6]) for s in samples)
    page = (folder / "index.html").read_text()
    assert "32,012" in page and "report/index.js" in page


@pytest.mark.slow
def test_bytes_do_not_depend_on_stages_kills_and_workers(tmp_path, folder):
    other = tmp_path / "shapes"
    process = start(*CONFIG, f"--output={other}", "--stages=multi_turn", "--workers=1")
    while process.poll() is None and not list(other.glob("build/multi_turn-*.json")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (other / "dataset.json").exists()
    assert run(*CONFIG, f"--output={other}", "--stages=multi_turn", "--workers=1").returncode == 0
    assert len(RecordSource(other)) == 15  # a finished stage is a data set
    assert run(*CONFIG, f"--output={other}", "--workers=1").returncode == 0
    assert content(other) == content(folder)


def test_a_folder_of_other_settings_is_replaced_only_on_request(folder, tmp_path):
    before = content(folder)
    refused = run(*CONFIG, "--config.seed=6", f"--output={folder}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert own_lines(refused.stderr, "build_data") == (
        f"build_data: {folder}: was begun with seed=5, now it is 6; "
        "pass --overwrite to replace it, or name another folder\n"
    )
    assert content(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=none.py"], "none.py"),
        (["--config.falt_rate=0"], "falt_rate"),
        (["--stages=multiturn"], "--stages: 'multiturn' is none of multi_turn, conflict, alignment"),
        (["--config.conflict.variant=self"], "conflict: variant 'self' needs a checkpoint"),
        (["--format=folder"], "--format: does nothing in mode build; leave it out"),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, arguments, words):
    config = [] if arguments[0].startswith("--config=") else ["--config=configs/data_shapes.py"]
    done = run(*config, f"--output={tmp_path / 'data'}", *arguments)
    said = own_lines(done.stderr, "build_data")
    assert (done.returncode, done.stdout, said.count("\n")) == (2, "", 1) and words in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_encoding_killed_and_started_again_gives_the_same_bytes(tmp_path):
    source = tmp_path / "data"
    write_dataset(source, handmade.records(9), Origin(seed=0), records_per_file=3)
    flags = [f"--data={source}", "--model=nano", "--batch_size=8"]
    whole = run("encode", *flags, f"--output={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    assert re.fullmatch(rf"{tmp_path}/whole: 9 records in 3 files, \d+\.\d MB\n", whole.stdout)
    assert "encoding: 100%" in whole.stderr
    process = start("encode", *flags, f"--output={tmp_path / 'out'}")
    unfinished = tmp_path / ".out.encoding"
    while not list(unfinished.glob("*.array_record")) and process.poll() is None:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # unless it finished at once, which shows nothing
    again = run("encode", *flags, f"--output={tmp_path / 'out'}")
    assert again.returncode == 0, again.stderr
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=nano", "--checkpoint=x"], "give either --checkpoint or --model"),
        (["--checkpoint=x", "--autoencoder=y"], "leave --autoencoder out"),
        (["--model=bagel_7b"], "--model=bagel_7b needs --autoencoder"),
        (["--model=nano"], "dataset.json: No such file"),
    ],
)
def test_wrong_flags_of_encode_end_in_one_line(tmp_path, arguments, words):
    done = run("encode", f"--data={tmp_path}", f"--output={tmp_path / 'out'}", *arguments)
    said = own_lines(done.stderr, "build_data")
    assert (done.returncode, done.stdout, said.count("\n")) == (2, "", 1) and words in said, done.stderr
    assert list(tmp_path.iterdir()) == []
