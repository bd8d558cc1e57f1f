"""The command line of show: its modes, their output, and one line for every fault."""

import importlib.metadata
import json
import pathlib

import numpy as np
import pytest

from pdgen.data.records import Origin, write_dataset
from pdgen.sequence.trajectory import Image
from pdgen.train.planning.topology import CHIPS
from tests.data.small_records import records
from tests.support.command_line import run_command
from tests.support.own_lines import keep_own_lines
from tests.train.monitor.test_page import write_run

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'shapes_process.py'}"
BUDGETS = {"text": 512, "vit": 128, "vae": 256}
SIZES = ["--config.held_out=0", "--config.init=", *(f"--config.budgets.{k}={v}" for k, v in BUDGETS.items())]


def run(*arguments):
    return keep_own_lines(run_command("show", *arguments), "show")


def test_help_is_that_of_the_mode():
    done = run("plan", "--help")
    assert "launch/show.py plan --config=" in done.stdout and done.stderr == ""
    listed = [line.split(":")[0].strip() for line in done.stdout.splitlines() if line.startswith("  --")]
    assert listed == ["--config", "--[no]json", "--mfu", "--sample_length", "--topology"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a mode first, one of fill, pack, plan, run, prompts"),
        (["fills"], "fills is no mode; choose one of fill, pack, plan, run, prompts"),
        (["fill", CONFIG, "--pack=2"], "--pack: does nothing in mode fill; leave it out"),
        (["run", "--config.rows=2"], "--config.rows: does nothing in mode run; leave it out"),
    ],
)
def test_flags_belong_to_their_modes(arguments, words):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"show: {words}\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, records(60), Origin(seed=0))
    return folder


def test_the_report_as_json(data):
    done = run("fill", CONFIG, *SIZES, f"--data={data}", "--packs=120", "--json")
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


def test_the_report_as_a_table_counts_refusals(data):
    done = run("fill", CONFIG, *SIZES, f"--data={data}", "--config.budgets.text=256", "--config.budgets.vae=128")
    assert done.returncode == 0
    assert "refused: record r-0-0000" in done.stdout
    assert "do not hold every document" in done.stdout


@pytest.mark.slow
def test_a_pack_is_printed_and_written(data, tmp_path):
    output = tmp_path / "pack"
    done = run("pack", CONFIG, *SIZES, f"--data={data}", "--pack=2", f"--output={output}")
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
    again = run("pack", CONFIG, *SIZES, f"--data={data}", f"--output={output}")
    assert again.returncode == 2 and "--overwrite" in again.stderr and again.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("fill", ["--data=missing"], "missing/dataset.json"),
        ("pack", ["--data={data}", "--config.turns=halves"], "`$.turns`"),
        ("fill", ["--data={data}", "--config.trains=single"], "no key"),
        ("pack", ["--data={data}", "stray"], "stray is no flag"),
    ],
)
def test_wrong_packs_end_in_one_line(data, name, arguments, words):
    done = run(name, CONFIG, *SIZES, *(argument.format(data=data) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.startswith("show: ") and done.stderr.count("\n") == 1


def installed(packages):
    found = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return all(package in found for package in packages)


def test_a_plan_compiles_or_names_the_missing_package():
    done = run("plan", "--config=configs/shapes_process.py", "--config.rows=8", "--topology=h100:8", "--json")
    if installed(CHIPS["h100"].packages):
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        facts = json.loads(line)
        assert facts["fits"] and facts["devices"] == 8
        assert facts["peak_bytes_per_device"] < 1e9 and facts["flops_per_step"] > 1e10
    else:
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("show: --topology=h100:8: jax-cuda12-plugin")
        assert line.endswith('pip install "pdgen[plan]"')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=h100:9"], "show: --topology=h100:9: give a number of GPUs"),
        (["--topology=h100:8", "--config.rowz=8"], "show: --config: the config has no key"),
        (["--topology=h100:8", "--mfu=2"], "show: flag --mfu=2"),
        (["--topology=h100:8", "more"], "show: more is no flag"),
    ],
)
def test_a_wrong_plan_is_one_line(arguments, words):
    done = run("plan", "--config=configs/shapes_process.py", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(words)


def test_a_page_appears_in_the_workdir_and_is_replaced(tmp_path):
    workdir = write_run(tmp_path / "red")
    page = workdir / "report.html"
    page.write_text("<!DOCTYPE html>old")
    done = run("run", workdir)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{page}: red at step 60\n"
    assert page.read_text().startswith("<!DOCTYPE html>\n") and "Run red" in page.read_text()


def test_several_runs_share_a_page_at_a_given_path(tmp_path):
    workdirs = [write_run(tmp_path / name) for name in ("red", "blue")]
    target = tmp_path / "new" / "both.html"
    done = run("run", *workdirs, f"--output={target}")
    assert (done.returncode, done.stdout) == (0, f"{target}: red at step 60, blue at step 60\n")
    assert "Runs red, blue" in target.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the workdir of a training run"),
        (["{root}/none"], "none: no training run (config.json is missing); name the --workdir of launch/train.py"),
        (["{root}/red", "{root}/red"], "2 workdirs make one page; name it: --output=FILE"),
        (["{root}/red", "--output={root}"], "is a folder; name a file"),
        (["{root}/red", "--output={root}/red/config.json"], "exists and is not a page, so it is not replaced"),
        (["{root}/red", "--file=x"], "Unknown command line flag 'file'"),
    ],
)
def test_a_wrong_run_is_one_line(tmp_path, arguments, words):
    workdir = write_run(tmp_path / "red")
    before = sorted(tmp_path.rglob("*"))
    done = run("run", *(argument.format(root=tmp_path) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.startswith("show: ") and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before and "num_steps" in (workdir / "config.json").read_text()


BENCH = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
ABOVE = {
    "tag": "position",
    "include": [{"class": "cow", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}],
    "prompt": "a photo of a tie above a cow",
}


def write_list(folder, *lines):
    path = folder / "metadata.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_prompts_that_agree_with_their_metadata(tmp_path):
    done = run("prompts", f"--metadata={write_list(tmp_path, BENCH, ABOVE)}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 of 2 prompts agree with their metadata\n", "")


def test_prompts_that_fail_or_disagree_are_named(tmp_path):
    unknown = BENCH | {"prompt": "a photo of a unicorn"}
    turned = ABOVE | {"prompt": "a photo of a cow above a tie"}
    done = run("prompts", f"--metadata={write_list(tmp_path, unknown, BENCH, turned)}")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "line 1: 'a photo of a unicorn': 'unicorn' is not understood where a noun is expected",
        "line 3: 'a photo of a cow above a tie': 'tie' is not above 'cow' in the graph",
        "1 of 3 prompts agree with their metadata",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "words"),
    [([BENCH, "{"], "metadata.jsonl: line 2: "), ([], "holds no prompt"), (None, "--metadata is missing")],
)
def test_a_wrong_list_of_prompts_is_one_line(tmp_path, lines, words):
    done = run("prompts", *([] if lines is None else [f"--metadata={write_list(tmp_path, *lines)}"]))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("show: ") and words in done.stderr
