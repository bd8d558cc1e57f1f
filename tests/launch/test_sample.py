"""The sampler's command line: resumed runs, branches, strategies and processes."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import PIL.Image
import pytest

from pdgen.checkpoints.conversion import to_pdgen
from pdgen.sample.runs.folder import list_trajectories, read_run
from pdgen.sequence.trajectory import ImageStage
from pdgen.sequence.trajectory_folder import load_trajectory
from tests.support.own_lines import keep_own_lines, own_lines

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = ("--prompt=a red circle left of a blue square", "--prompt=two cats")
# Little to compile: no guidance, one image, one Euler step.
QUICK = ("--text_scale=1", "--max_images=1", "--num_timesteps=2", "--max_tokens=8", "--max_prompt_tokens=40")
SIZE = ("--height=16", "--width=24")


def start(*arguments, **environment):
    # The next test run finds what this one compiles.
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, str(ROOT / "launch" / "sample.py"), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | cache | environment)


def run(*arguments, **environment):
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=300)
    return keep_own_lines(subprocess.CompletedProcess(arguments, process.returncode, out, err), "sample")


# Runs the command line for every list of arguments on stdin, in one process, since its imports take seconds.
DRIVER = """
import contextlib, io, json, sys
from absl import flags
sys.argv = ["sample"]
from launch import sample
from pdgen import cli
def interrupted(*arguments, **keywords):
    raise KeyboardInterrupt
results, resume_all = [], sample.Sampler.resume_all
for arguments in json.load(sys.stdin):
    sample.Sampler.resume_all = interrupted if "interrupted" in arguments else resume_all
    arguments = [argument for argument in arguments if argument != "interrupted"]
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli._run_mode(cli.Mode(sample.main), cli.parse(["sample", *arguments]))
        except SystemExit as end:
            status = end.code
    results.append((status, out.getvalue(), err.getvalue()))
json.dump(results, sys.stdout)
"""


def run_all(commands):
    """Return (status, stdout, stderr) of each list of arguments; "interrupted" in it is a Ctrl-C while it samples."""
    command, environment = [sys.executable, "-c", DRIVER], {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    options = {"cwd": ROOT, "env": os.environ | environment, "text": True, "stdout": subprocess.PIPE, "check": True}
    lines = json.dumps([[*map(str, arguments)] for arguments in commands])
    results = json.loads(subprocess.run(command, input=lines, timeout=300, **options).stdout)
    return [(status, out, own_lines(err, "sample")) for status, out, err in results]


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one, other):
    """Return whether two trajectories have the same texts and images; their costs may differ."""
    texts = [[getattr(stage, "text", stage.stage) for stage in each.stages] for each in (one, other)]
    images = [[np.asarray(image) for image in each.images] for each in (one, other)]
    return texts[0] == texts[1] and all(np.array_equal(a, b) for a, b in zip(*images, strict=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "nano"
    to_pdgen(ROOT / "tests" / "golden" / "bagel-nano", folder, log=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def flags(checkpoint):
    return (f"--checkpoint={checkpoint}", *PROMPTS, *QUICK, *SIZE, "--seed=3")


@pytest.fixture(scope="module")
def output(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled") / "two"
    done = run(*flags, f"--output={folder}", "--animate")
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout.splitlines()


@pytest.mark.slow
def test_each_trajectory_has_a_folder_and_a_page_shows_all(output):
    folder, lines = output
    assert list(folder.parent.iterdir()) == [folder]  # no partial folder beside it
    assert {path.name for path in folder.iterdir()} == {"000", "001", "run.json", "index.html"}
    page = (folder / "index.html").read_text()
    for number, name in enumerate(("000", "001")):
        trajectory = load_trajectory(folder / name)
        assert trajectory.prompt == PROMPTS[number].removeprefix("--prompt=") and trajectory.seed == 3 + number
        assert trajectory.settings["max_images"] == 1 and trajectory.settings["image.num_timesteps"] == 2
        assert [image.size for image in trajectory.images] == [(24, 16)]
        files = [stage.file for stage in trajectory.stages if isinstance(stage, ImageStage)]
        made = {*files, "trajectory.json", "strip.png", "strokes.webp"}
        assert {path.name for path in (folder / name).iterdir()} == made
        assert all(f'src="{name}/{file}"' in page for file in files)
        logged = [line for line in lines if line.startswith(f"seed {3 + number}: ")]
        assert len(logged) == len(trajectory.stages)
    assert lines[-1].startswith(f"{folder}/index.html: trajectories 2, images 2, sampling ")


@pytest.mark.slow
def test_a_resumed_run_gives_the_same(output, flags, tmp_path):
    first, _ = output
    folder = tmp_path / "run"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red circle left of a blue square"}\n{"prompt": "two cats", "seed": 4}\n')
    flags = [*(f for f in flags if f not in PROMPTS), f"--prompts={prompts}", f"--output={folder}"]
    process = start(*flags)
    while not (folder / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (75, "sample: stopped, 2 of 2 are missing; the same command resumes\n")
    assert not folder.exists()
    assert run(*flags).returncode == 0
    before = content(folder / "000")
    for file in (folder / "001").iterdir():
        file.unlink()
    (folder / "001").rmdir()
    done = run(*flags)
    assert done.returncode == 0 and "trajectories 1, images 1, " in done.stdout and "; 1 existed" in done.stdout
    assert content(folder / "000") == before
    for name in ("000", "001"):
        assert same(load_trajectory(folder / name), load_trajectory(first / name))
    assert "trajectories 0, images 0" in run(*flags).stdout


def test_other_settings_and_other_folders_are_refused(output, flags, tmp_path):
    """Nothing is lost, even with --overwrite, at whichever point the fault shows."""
    folder, _ = output
    before = content(folder)
    (tmp_path / "precious").write_text("x")
    keyless = {"url": "http://localhost:1/v1", "model": "m", "cache": str(tmp_path / "cache"), "key_variable": "NO_KEY"}
    (tmp_path / "advisers.json").write_text(json.dumps(keyless))
    anew, vast = [*flags, f"--output={folder}", "--overwrite"], "--max_images=1000000000"
    other, foreign, room, later, key = run_all(
        [
            [*flags, f"--output={folder}", "--temperature=0.5"],
            [*flags, f"--output={tmp_path}", "--overwrite"],
            [*anew, vast],
            [*anew, vast, "--strategy=best_of_n", "--height=32", "--width=32"],
            [*anew, "--strategy=planner", f"--advisers={tmp_path / 'advisers.json'}"],
        ]
    )
    assert [status for status, _, _ in (other, foreign, room, later, key)] == [2] * 5
    assert other[2] == (
        f"sample: {folder}: was begun with text.temperature=0.3, now it is 0.5; pass --overwrite to begin anew, or "
        "name another folder\n"
    )
    assert "is no sampled run (run.json is missing)" in foreign[2]
    assert "sample: no room: " in room[2] and "sample: no room: " in later[2]
    assert "environment variable NO_KEY holds no key" in key[2]
    assert {path.name for path in tmp_path.iterdir()} >= {"precious", "advisers.json"}
    assert content(folder) == before


def test_a_run_is_overwritten_once_the_new_one_has_a_trajectory(output, flags, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(output[0], folder)
    before = content(folder)
    anew = [*flags, f"--output={folder}", "--overwrite", "--temperature=0"]
    stopped, done = run_all([[*anew, "interrupted"], [*anew, "--noanimate"]])
    assert list(stopped) == [75, "", "sample: stopped, 2 of 2 are missing; the same command resumes\n"]
    assert done[0] == 0 and "trajectories 2, images 2, " in done[1]
    after = content(folder)
    assert {name for name in before if name not in after} == {"000/strokes.webp", "001/strokes.webp"}
    assert load_trajectory(folder / "000").settings["text.temperature"] == 0


def test_a_damaged_trajectory_is_named_before_anything_is_drawn(output, flags, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(output[0], folder)
    path = folder / "000" / "trajectory.json"
    path.write_text(path.read_text().replace("<ins>", ""))
    shutil.rmtree(folder / "001")
    before = content(folder)
    for status, out, err in run_all([[*flags, f"--output={folder}"], [f"--branch={folder / '000'}", "--step=0"]]):
        assert (status, out, err.count("\n")) == (2, "", 1) and f"{folder / '000'}: " in err and "not a plan" in err
    assert content(folder) == before


@pytest.mark.slow
def test_a_branch_is_saved_beside_its_parent(checkpoint, output, tmp_path):
    folder, _ = output
    before = content(folder / "000")
    plan = "<ins>Draw a star.</ins> <des>A star.</des>"
    done = run(f"--branch={folder / '000'}", "--step=0", f"--plan={plan}", "--seed=8")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{folder}/index.html: 000-1 branches off 000 at stage 0" in done.stdout
    parent, branch = (load_trajectory(folder / name) for name in ("000", "000-1"))
    assert branch.stages[0].text == plan and branch.stages[0].origin == "outside" and branch.seed == 8
    assert branch.parent.fingerprint == parent.fingerprint and branch.settings["image.num_timesteps"] == 2
    assert content(folder / "000") == before
    page = (folder / "index.html").read_text()
    assert "branch of 000 from stage 0" in page and 'src="000-1/01_sketch.png"' in page
    nonsense = {
        "--plan=a star": "branch at stage 0: not a plan",
        "--critique=It fits.": "inspect after prompt, expected plan",
        f"--draft={tmp_path / 'none.png'}": "none.png: No such file",
        "--step=9": "branch at stage 9: choose one from 0 to",
        "--branch=nowhere/000": "nowhere: No such file or directory; expected the folder of a sampled run",
    }
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    with (other / "manifest.json").open("a") as manifest:
        manifest.write("\n")
    nonsense |= {
        f"--checkpoint={other}": f"{other}: is another model than {folder} was sampled from",
        "--mode=edit": "--mode: a --branch uses its run's; leave it out",
        "--prompt=a": "--prompt: a --branch uses its run's",
    }
    results = run_all([[f"--branch={folder / '000'}", "--step=0", flag] for flag in [*nonsense, "interrupted"]])
    for words, (status, out, err) in zip(nonsense.values(), results):
        assert (status, out, err.count("\n")) == (2, "", 1) and words in err
    words = "sample: stopped; nothing of the branch is kept, the same command starts it again\n"
    assert list(results[-1]) == [75, "", words]
    assert list_trajectories(folder) == ["000", "000-1", "001"]


@pytest.mark.slow
def test_a_given_image_is_edited(checkpoint, tmp_path):
    PIL.Image.new("RGB", (24, 16), "red").save(tmp_path / "red.png")
    arguments = (f"--checkpoint={checkpoint}", "--mode=edit", f"--image={tmp_path / 'red.png'}", *QUICK, PROMPTS[1])
    done = run(*arguments, f"--output={tmp_path / 'out'}", "--keep_latents", "--refine=text_scale=2")
    assert (done.returncode, done.stderr) == (0, "")
    trajectory = load_trajectory(tmp_path / "out" / "000")
    assert [stage.stage for stage in trajectory.stages] == ["given", "sketch"]
    assert [image.size for image in trajectory.images] == [(24, 16), (24, 16)]
    assert trajectory.settings["refine.text_scale"] == 2 and list(trajectory.latents) == ["02_sketch.png"]


def test_a_strategy_selects_one_of_its_candidates(checkpoint, tmp_path):
    arguments = (f"--checkpoint={checkpoint}", PROMPTS[0], *QUICK, f"--output={tmp_path / 'out'}")
    arguments = (*arguments, "--mode=single_pass", "--strategy=best_of_n")
    done, refused = run_all([[*arguments, "--option=n=2"], [*arguments, "--option=n=3"]])
    assert (done[0], done[2]) == (0, "")
    trajectory = load_trajectory(tmp_path / "out" / "000")
    assert trajectory.settings["strategy"] == "best_of_n" and trajectory.settings["strategy.n"] == 2
    assert refused[0] == 2 and "was begun with best_of_n.n=2, now it is 3" in refused[2]


# For each way to a picture its flags, and the expected stages and settings; None: whatever the model writes.
WAYS = {
    "think": (["--mode=think"], ["thought", "sketch"], {}),
    "understand": (["--mode=understand", "--image=red.png"], ["given", "answer"], {}),
    "planner": (["--strategy=planner"], ["plan", "sketch"], {"strategy": "planner"}),
    "inspector": (["--strategy=inspector", "--option=rounds=1"], None, {"strategy": "inspector", "strategy.rounds": 1}),
    "stepwise_best_of_n": (["--strategy=stepwise_best_of_n", "--option=n=2"], None, {"strategy.n": 2}),
    "parm": (
        ["--strategy=parm", "--option=n=2", "--option=judged=0.5", "--num_timesteps=3"],
        ["sketch"],
        {"strategy": "parm", "strategy.judged": "0.5", "strategy.n": 2},
    ),
}


@pytest.fixture(scope="module")
def ways(checkpoint, tmp_path_factory):
    """The result of each way, and the folder of their outputs."""
    folder = tmp_path_factory.mktemp("ways")
    PIL.Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    own = [[argument.replace("red.png", str(folder / "red.png")) for argument in way[0]] for way in WAYS.values()]
    # The exact teachers read pictures of 32 pixels.
    fixed = (f"--checkpoint={checkpoint}", PROMPTS[0], *QUICK, "--height=32", "--width=32")
    commands = [[*fixed, f"--output={folder / name}", *arguments] for name, arguments in zip(WAYS, own)]
    return dict(zip([*WAYS, "again"], run_all([*commands, commands[-1]]), strict=True)), folder


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_picture(ways, way):
    results, folder = ways
    assert (results[way][0], results[way][2]) == (0, "")
    _, stages, settings = WAYS[way]
    trajectory = load_trajectory(folder / way / "000")
    kinds = [stage.stage for stage in trajectory.stages]
    assert kinds == stages if stages else "sketch" in kinds
    assert settings.items() <= trajectory.settings.items()


@pytest.mark.slow
def test_a_strategy_resumes_a_list_of_prompts(ways):
    status, out, _ = ways[0]["again"]
    assert status == 0 and "trajectories 0, images 0, " in out and "; 1 existed" in out


def start_two(*flags):
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    return [start(*flags, "--distributed", **job, SLURM_PROCID=str(n), SLURM_LOCALID=str(n)) for n in range(2)]


def ends(processes):
    """Return (status, stdout, pdgen's lines on stderr) of each; JAX and Gloo log there too."""
    texts = [process.communicate(timeout=120) for process in processes]
    return [
        (process.returncode, out, own_lines(err, "sample").splitlines())
        for process, (out, err) in zip(processes, texts)
    ]


@pytest.mark.slow
def test_processes_share_the_prompts(flags, tmp_path):
    first, second = ends(start_two(*flags, f"--output={tmp_path / 'out'}", "--samples=2"))
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "trajectories 2, images 2" in first[1] and "trajectories" not in second[1]
    assert list_trajectories(tmp_path / "out") == ["000", "001", "002", "003"]
    assert read_run(tmp_path / "out").settings.batch_size == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert "trajectories: 4" in page and all(f'src="{n:03d}/01_sketch.png"' in page for n in range(4))


def test_a_fault_of_one_process_ends_all(flags, tmp_path):
    """The fault is the folder, which only the first process checks."""
    (tmp_path / "precious").write_text("x")
    words = [f"sample: {tmp_path}: exists and is no sampled run (run.json is missing); name another folder"]
    assert [(status, lines) for status, _, lines in ends(start_two(*flags, f"--output={tmp_path}"))] == [(2, words)] * 2


# Computes the second share of two without starting processes; prints names, batch size and decoded images.
SHARE = """
import json, pathlib, sys
from launch import sample
from pdgen.cli import parse
from pdgen.sample.runs import share as shares
parse(["sample", *sys.argv[1:]])
decoded, read, sampler = [], shares.read_picture, sample.load_sampler(sample.CHECKPOINT.value, 1)
sample.load_sampler = lambda *_: sampler
shares.read_picture = lambda path: decoded.append(pathlib.Path(path).name) or read(path)
sample.jax.process_index, sample.jax.process_count = lambda: 1, lambda: 2
share = sample.prepare()
print(json.dumps([list(share.starts), share.run.settings.batch_size, len(share.run.jobs), decoded]))
"""


def test_a_process_reads_only_its_own_images(checkpoint, tmp_path):
    lines = []
    for name in ("red", "green", "blue"):
        PIL.Image.new("RGB", (24, 16), name).save(tmp_path / f"{name}.png")
        lines.append(json.dumps({"prompt": "a cat", "images": [f"{name}.png"]}))
    (tmp_path / "prompts").write_text("\n".join(lines))
    flags = (f"--checkpoint={checkpoint}", f"--prompts={tmp_path / 'prompts'}", f"--output={tmp_path / 'out'}", *QUICK)
    done = subprocess.run(
        [sys.executable, "-c", SHARE, *flags, "--mode=edit"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert json.loads(done.stdout) == [["001"], 2, 3, ["green.png"]]


@pytest.mark.slow
def test_sigterm_ends_all_processes(flags, tmp_path):
    folder = tmp_path / "out"
    both = start_two(*flags, f"--output={folder}", "--samples=40", "--batch=1")
    while not list_trajectories(folder):
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.05)
    for process in both:
        process.send_signal(signal.SIGTERM)
    for status, _, (line,) in ends(both):
        assert status == 75 and re.fullmatch(r"sample: stopped, \d+ of 80 are missing; the same command resumes", line)
    assert (folder / "index.html").is_file()


@pytest.mark.slow
def test_a_model_split_over_two_devices_draws_the_same(flags, output, tmp_path):
    done = run(*flags, "--mesh=1,2,1", f"--output={tmp_path / 'out'}", JAX_NUM_CPU_DEVICES="2")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("000", "001"):
        one, other = load_trajectory(output[0] / name), load_trajectory(tmp_path / "out" / name)
        assert [getattr(s, "text", s.stage) for s in one.stages] == [getattr(s, "text", s.stage) for s in other.stages]
        for a, b in zip(one.images, other.images, strict=True):
            np.testing.assert_allclose(np.asarray(a, int), np.asarray(b, int), atol=1)
