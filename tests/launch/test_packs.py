"""pack_report and explain_batch as command lines."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pdgen.data.records import Origin, write_dataset
from pdgen.sequence.trajectory import Image
from tests.data.small_records import records

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'shapes_process.py'}"
BUDGETS = {"text": 512, "vit": 128, "vae": 256}
SIZES = ["--config.held_out=0", "--config.init=", *(f"--config.budgets.{k}={v}" for k, v in BUDGETS.items())]


def run(name, *arguments):
    command = [sys.executable, str(ROOT / "launch" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, records(60), Origin(seed=0))
    return folder


def test_the_report_as_json(data):
    done = run("pack_report", CONFIG, *SIZES, f"--data={data}", "--packs=120", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["records"] == facts["documents"][""] == 60
    images = [[s for s in r.segments if isinstance(s, Image)] for r in records(60)]
    vae = [16 * sum(1 + s.target for s in own) for own in images]
    assert facts["lengths"]["vae"]["mean"] == pytest.approx(np.mean(vae))
    assert facts["lengths"]["vit"]["most"] == max(16 * len(own) for own in images)
    assert facts["budgets"] == BUDGETS and facts["packs"] == 120
    assert max(facts["fill"].values()) > 0.95
    for proposal in facts["proposals"]:
        sizes = proposal["budgets"].values()
        assert all(size % 128 == 0 for size in sizes) and sum(sizes) <= 896
    used = [proposal["used"] for proposal in facts["proposals"]]
    assert used == sorted(used, reverse=True) and used[0] > facts["used"]


def test_the_report_as_a_table_says_what_is_refused(data):
    done = run("pack_report", CONFIG, *SIZES, f"--data={data}", "--config.budgets.text=256", "--config.budgets.vae=128")
    assert done.returncode == 0
    assert "refused: record r-0-0000" in done.stdout
    assert "do not hold every document" in done.stdout


def test_a_pack_is_printed_and_written(data, tmp_path):
    output = tmp_path / "pack"
    done = run("explain_batch", CONFIG, *SIZES, f"--data={data}", "--pack=2", f"--output={output}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[1].startswith("document 0: record r-0-0000")
    first = next(line.split() for line in lines if "<|im_start|>" in line)
    assert first == ["0", "<|im_start|>", "text", "und", "0", "0", *first[6:]]
    assert any("16 noised VAE tokens" in line and "velocity (weight 1)" in line for line in lines)
    assert lines[-1] == f"wrote {output / 'index.html'}" and ": padding" in lines[-3]
    documents = sum(line.startswith("document ") for line in lines)
    names = sorted(path.name for path in output.iterdir())
    assert names == [*(f"document-{n:03d}.html" for n in range(documents)), "index.html"]
    again = run("explain_batch", CONFIG, *SIZES, f"--data={data}", f"--output={output}")
    assert again.returncode == 2 and "--overwrite" in again.stderr and again.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("pack_report", ["--data=missing"], "missing/dataset.json"),
        ("explain_batch", ["--data={data}", "--config.turns=halves"], "`$.turns`"),
        ("pack_report", ["--data={data}", "--config.trains=single"], "no key"),
        ("explain_batch", ["--data={data}", "stray"], "stray is no flag"),
    ],
)
def test_wrong_arguments_end_in_one_line(data, name, arguments, words):
    done = run(name, CONFIG, *SIZES, *(argument.format(data=data) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.startswith(f"{name}: ") and done.stderr.count("\n") == 1
