"""The evaluation's command line: folders and checkpoints are scored and resumed; every fault is one line."""

import json
import pathlib
import re
import shutil
import threading

import pytest

from pdgen.checkpoints.conversion import to_pdgen
from pdgen.evaluate import folder as folders
from pdgen.evaluate.geneval.scoring import read_results
from pdgen.evaluate.shapes import COUNTS, make_benchmark
from pdgen.evaluate.wise import CATEGORIES
from pdgen.sequence.trajectory_folder import load_trajectory
from tests.evaluate.painted import generate
from tests.evaluate.test_comparison import JUDGE, geneval_run, summary, wise_run
from tests.evaluate.test_wise import judges, record
from tests.support.chat_server import ChatServer, refuses, says
from tests.support.command_line import run_command
from tests.support.own_lines import own_lines

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = make_benchmark({"single_object": 2, "colors": 2, "position": 2})
# Little to compile: no guidance, one image, one Euler step.
SETTINGS = {"image.text_scale": 1, "image.num_timesteps": 2, "max_images": 1, "text.max_tokens": 8}
QUICK = [f"--setting={name}={value}" for name, value in SETTINGS.items()]


def run(*arguments, **environment):
    return run_command("evaluate", *arguments, **environment)


def fault(done):
    """Return the last line of stderr, after any progress."""
    assert done.returncode == 2, done.stderr
    return own_lines(done.stderr, "evaluate").splitlines()[-1]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A list of prompts and their right images, except one that shows another prompt's image."""
    path = tmp_path_factory.mktemp("given")
    folders.write_prompts(path / "list.jsonl", PROMPTS)
    jobs = folders.make_geneval_jobs(PROMPTS, 2, 0)
    folders.generate_images(path / "images", path / "t", jobs, generate, 12)
    folders.write_metadata(path / "images", PROMPTS)
    for name in ("00000.png", "00001.png"):
        shutil.copy(path / "images" / "00000" / "samples" / name, path / "images" / "00001" / "samples" / name)
    return path


def flags(given, output):
    return (
        "--benchmark=geneval",
        f"--metadata={given / 'list.jsonl'}",
        f"--images={given / 'images'}",
        "--detector=shapes",
        "--samples=2",
        f"--output={output}",
    )


def test_a_folder_is_scored(given, tmp_path):
    leak = tmp_path / "training.txt"
    leak.write_text(PROMPTS[2].metadata.prompt + "\n")
    done = run(*flags(given, tmp_path / "out"), f"--training_data={leak}")
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert [r.correct for r in results] == [True] * 2 + [False] * 2 + [True] * 8
    assert done.stdout.startswith("Leaks: of the 6 prompts, 1 are in ")
    assert "single_object    = 50.00% (2 / 4)" in done.stdout
    assert "Overall score (avg. over tasks): 0.83333" in (tmp_path / "out" / "summary.txt").read_text()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["leaks"]["exact"] == [PROMPTS[2].metadata.prompt]
    (table,) = [t for t in summary["tables"] if t["title"] == "geneval"]
    assert ["overall", pytest.approx(5 / 6)] in [row[:2] for row in table["rows"]]
    assert (tmp_path / "out" / "geneval.csv").read_text().startswith("score,value,low,high,prompts\n")
    assert "Leaks: of the 6 prompts" in (tmp_path / "out" / "index.html").read_text()


def test_geneval_and_shapes_score_a_folder_alike(tmp_path):
    prompts = make_benchmark(dict.fromkeys(COUNTS, 2))
    jobs = folders.make_geneval_jobs(prompts, 1, 0)
    folders.generate_images(tmp_path / "images", tmp_path / "t", jobs, generate, 14)
    folders.write_metadata(tmp_path / "images", prompts)
    for number in (1, 4, 13):  # these show what other prompts ask for
        path = tmp_path / "images" / f"{number:05d}" / "samples" / "00000.png"
        shutil.copy(tmp_path / "images" / "00002" / "samples" / "00000.png", path)
    common = (f"--images={tmp_path / 'images'}", "--samples=1")
    first = run("--benchmark=shapes", "--count=2", *common, f"--output={tmp_path / 'a'}")
    listed = f"--metadata={tmp_path / 'a' / 'metadata.jsonl'}"
    second = run("--benchmark=geneval", listed, "--detector=shapes", *common, f"--output={tmp_path / 'b'}")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    results = [read_results(tmp_path / name / "results.jsonl") for name in "ab"]
    assert results[0] == results[1] and [r.correct for r in results[0]].count(False) == 3
    assert (tmp_path / "a" / "shapes.csv").read_text() == (tmp_path / "b" / "geneval.csv").read_text()
    assert (tmp_path / "a" / "summary.txt").read_text() == (tmp_path / "b" / "summary.txt").read_text()


def test_faults_of_a_folder_end_in_one_line_and_leave_nothing(given, tmp_path):
    images = shutil.copytree(given / "images", tmp_path / "images")
    (images / "00004" / "samples" / "00001.png").unlink()
    arguments = [*flags(given, tmp_path / "out"), f"--images={images}"]
    assert "1 of 6 prompts do not hold samples 0 to 1: 00004" in fault(run(*arguments))
    assert "class 'heart'" not in fault(run(*arguments, "--samples=1"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmark=geneval", "--images=x"], "--metadata: name GenEval's evaluation_metadata.jsonl"),
        (["--benchmark=shapes", "--images=x", "--checkpoint=y"], "either --images, a folder to score, or --checkpoint"),
        (["--benchmark=shapes", "--checkpoint=no_such"], "no_such: no such folder; name a pdgen checkpoint"),
        (["--benchmark=abilities", "--images=x"], "--images: does nothing with --benchmark=abilities"),
        (["--benchmark=abilities", "--strategy=process"], "--strategy: does nothing with --benchmark=abilities"),
        (["--benchmark=abilities", "--setting=mode=edit"], "--setting=mode: every row of abilities has its own"),
        (["--benchmark=wise", "--images=x", "--metadata=y"], "--judge_url"),
        (
            ["--benchmark=shapes", "--checkpoint=x", "--setting=image.steps=3"],
            "--setting=image.steps: unknown; choose one of ",
        ),
        (["--benchmark=geneval", "--images=x", "--count=3"], "--count: is only for shapes and abilities"),
        (["--benchmark=shapes", "--checkpoint=x", "stray"], "stray is no flag"),
        (["--benchmark=shapes", "--images=x", "--seed=3"], "--seed: does nothing with --images"),
        (["--benchmark=shapes", "--checkpoint=x", "--dry_run"], "--dry_run: does nothing with --benchmark=shapes"),
        (
            ["--benchmark=wise", "--images=x", "--metadata=y", "--judge_url=u", "--samples=2"],
            "--samples: does nothing with --benchmark=wise",
        ),
        (
            ["--benchmark=wise", "--checkpoint=x", "--metadata=y", "--judge_url=u", "--dry_run"],
            "--dry_run: needs existing images",
        ),
    ],
)
def test_faults_of_the_flags(tmp_path, arguments, words):
    assert words in fault(run(*arguments, f"--output={tmp_path / 'out'}"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "nano"
    to_pdgen(ROOT / "tests" / "golden" / "bagel-nano", folder, log=lambda line: None)
    return folder


@pytest.mark.slow
def test_a_checkpoint_draws_and_resumes(checkpoint, given, tmp_path):
    output = tmp_path / "out"
    arguments = (
        "--benchmark=geneval",
        f"--metadata={given / 'list.jsonl'}",
        f"--checkpoint={checkpoint}",
        *QUICK,
        "--detector=shapes",
        "--samples=1",
        "--seed=5",
        f"--output={output}",
    )
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    files = folders.find_samples(output / "images", PROMPTS, 1)
    record = json.loads((output / "images" / "generation.json").read_text())
    assert record["jobs"]["00003/samples/00000"] == [PROMPTS[3].metadata.prompt, 8]
    assert record["made_by"]["image.interval"] == [0.0, 1.0]
    summary = json.loads((output / "summary.json").read_text())
    assert record["made_by"] == {"benchmark": "geneval", **summary["made_by"]}
    assert (summary["seed"], summary["samples"], summary["checkpoint"]) == (5, 1, str(checkpoint))
    costs = (output / "costs.csv").read_text()
    assert "network_evaluations" in costs and "prefilled_tokens" in costs
    trajectory = load_trajectory(output / "trajectories" / "00003" / "samples" / "00000")
    assert (trajectory.prompt, trajectory.seed) == (PROMPTS[3].metadata.prompt, 8)
    assert trajectory.settings["strategy"] == "process"
    assert folders.read_image(files[3][0]).tobytes() == trajectory.images[-1].tobytes()
    page, there = ((output / name).read_text() for name in ("index.html", "trajectories.html"))
    links = set(re.findall(r'href="trajectories.html#([^"]+)"', page))
    assert links == set(re.findall(r'<article class="family" id="([^"]+)"', there)) and "00003/samples/00000" in links
    for source in set(re.findall(r'<img src="([^"]+)"', there)):
        assert (output / source).is_file()
    before = [path.stat().st_mtime_ns for (path,) in files]
    pixels = files[3][0].read_bytes()
    files[3][0].unlink()
    run(*arguments)
    after = [path.stat().st_mtime_ns for (path,) in files]
    assert [a == b for a, b in zip(after, before)] == [True] * 3 + [False] + [True] * 2
    assert files[3][0].read_bytes() == pixels  # of the same seed
    refused = fault(run(*arguments, "--strategy=single_pass"))
    assert "was begun with strategy='process', now it is 'single_pass'" in refused and len(refused) < 300
    # Another folder of images: earlier drawings have no part in it.
    other = run(*arguments[:2], f"--images={output / 'images'}", "--detector=shapes", "--samples=1", arguments[-1])
    assert other.returncode == 0 and not (output / "costs.csv").exists()
    assert not (output / "trajectories.html").exists()
    assert "trajectories.html" not in (output / "index.html").read_text()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    chat = ChatServer(judges)
    threading.Thread(target=chat.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield chat
    chat.shutdown()
    chat.server_close()


@pytest.mark.slow
def test_wise_is_judged_priced_and_resumed(server, given, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([record(n) for n in (1, 2, 3)]))
    for number in (1, 2, 3):
        shutil.copy(given / "images" / "00000" / "samples" / "00000.png", tmp_path / f"{number}.png")
    arguments = (
        "--benchmark=wise",
        f"--metadata={tmp_path / 'list.json'}",
        f"--images={tmp_path}",
        f"--output={tmp_path / 'out'}",
        f"--judge_url={server.url}",
        "--judge_model=judge",
        "--judge_prices=1000,0",
    )
    dry = run(*arguments, "--dry_run")
    assert (dry.returncode, server.bodies, (tmp_path / "out").exists()) == (0, [], False)
    assert "wise graded" in dry.stdout and "to send" in dry.stdout
    server.script.extend([judges, judges, refuses(400, "gone")])
    assert "HTTP 400: gone" in fault(run(*arguments))
    server.script.clear()
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    # The price is printed before the answers. Answers that preceded the fault are not requested again.
    assert done.stdout.index("(estimates)") < done.stdout.index("category")
    assert len({json.dumps(body["messages"]) for body in server.bodies}) == 6
    assert "A: original" in done.stdout and "No total: 997 ids have no score: 4-1000." in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [line["consistency"] for line in lines] == [1, 2, 0]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["judge"]["model"] == "judge" and summary["judge"]["parameters"]["temperature"] == 0.0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "judge&#39;s model" in page and "judge&#39;s rules" in page
    assert "c: 3 images, mean graded score 0.600" in page and 'src="../2.png"' in page
    (tmp_path / "rules.txt").write_text("Other words.")
    server.script.extend([says("no grades at all")] * 9)  # three images, three times each
    other = run(*arguments, "--judgements=graded", f"--judge_rules=graded={tmp_path / 'rules.txt'}")
    assert other.returncode == 1 and "No valid graded answer for 3 images (1-3)" in other.stderr
    assert "No valid graded answer for 3 images (1-3)" in (tmp_path / "out" / "index.html").read_text()
    assert server.bodies[-1]["messages"][0]["content"].startswith("Other words.\n")
    for text in ("graded", f"binary={tmp_path / 'rules.txt'}"):
        assert f"--judge_rules={text}: write" in fault(run(*arguments, "--judgements=graded", f"--judge_rules={text}"))


def compare_runs(*arguments):
    return run("compare", *arguments)


def test_runs_are_compared(tmp_path):
    geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0]}, costs=98)
    geneval_run(tmp_path / "two", {"colors": [1, 1, 1, 0]}, costs=131)
    done = compare_runs(tmp_path / "one", tmp_path / "two", f"--output={tmp_path / 'both'}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "both" / "index.html").read_text()
    assert "1. one: 0.250 at 98" in page and "2. two: 0.750 at 131" in page and "Published" in page
    [scores, apart] = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert scores["rows"][0][:2] == ["colors", 0.25]
    assert (tmp_path / "both" / "scores.csv").read_text().startswith("score,one,one low,one high,two,")
    assert apart["rows"][-1][:2] == ["overall", 0.5]
    assert re.search(r"^overall +0\.5000 \[", done.stdout[done.stdout.index("Differences") :], re.MULTILINE)


def test_runs_of_one_name_and_other_detectors(tmp_path):
    """Runs of an ablation share a name; differences in the judging are stated first."""
    one = geneval_run(tmp_path / "plain" / "scores", {"colors": [1, 0, 0, 0]}, costs=98)
    two = geneval_run(tmp_path / "rewritten" / "scores", {"colors": [1, 1, 1, 0]}, costs=131, detector="mask2former")
    done = compare_runs(one, two, f"--output={tmp_path / 'both'}")
    assert done.returncode == 0, done.stderr
    [_, apart] = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert apart["columns"][1] == "rewritten/scores"
    assert done.stdout.startswith("Judged differently: plain/scores by shapes; rewritten/scores by mask2former.")
    page = (tmp_path / "both" / "index.html").read_text()
    assert page.index("Judged differently") < page.index("<h2>") and "rewritten/scores: 0.750 at 131" in page


def test_wise_plots_a_total_that_all_runs_have(tmp_path):
    table = {"title": "Costs", "columns": ["cost", "value"], "rows": [["network_evaluations", 98]], "note": ""}
    runs = [wise_run(tmp_path / name, dict.fromkeys(CATEGORIES, 1)) for name in ("one", "two")]
    for folder in runs:
        summary(folder, benchmark="wise", judge=JUDGE, prompts="d1", tables=[table])
    done = compare_runs(*runs, f"--output={tmp_path / 'both'}")
    assert done.returncode == 0, done.stderr
    assert "one, C overall: 0.650 at 98" in (tmp_path / "both" / "index.html").read_text()


@pytest.mark.slow
def test_faults_of_a_comparison_are_one_line(tmp_path):
    geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0]})
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "summary.json").write_text('{"benchmark": "geneval"}')
    cases = {"one": "at least two", "one no": "summary.json", "one old": "missing required field", "one one": "twice"}
    for names, words in cases.items():
        runs = [tmp_path / name for name in names.split()]
        done = compare_runs(*runs, f"--output={tmp_path / 'out'}")
        assert done.returncode == 2 and words in done.stderr and own_lines(done.stderr, "evaluate").count("\n") == 1
        assert not (tmp_path / "out").exists()
