"""Tables of the miniature: the evaluations behind them, and their numbers from hand-made evaluations."""

import json
import pathlib

import msgspec
import pytest

from benchmarks.miniature import tables as miniature_tables
from benchmarks.miniature.plots import PLOTS
from benchmarks.miniature.results import Row, collect, group_by_objects, read_row_evaluation
from benchmarks.miniature.run import LIMITS, make_evaluations, make_rows, measure
from pdgen.evaluate import shapes
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.generator import parse_assignments, read_recipe
from pdgen.evaluate.process.measures import Inspection, ProcessFacts, Refinement
from pdgen.evaluate.tables import format_markdown

COUNTS = {"single_object": 2, "position": 2, "composition": 2}
PROMPTS = shapes.make_benchmark(COUNTS)
SINGLE = Row("single_pass", "base, single pass", "base", "single_pass", paper=0.77)
PROCESS = Row("process", "process-driven", "process", "process", ("text.max_tokens=80",), 0.83)
OWN = Row("process_single_pass", "process model, single pass", "process", "single_pass")


def evaluated(folder, right, model="a", images=1, evaluations=90.0, inspections=(), refinements=()):
    """What ``launch/evaluate.py`` writes of two images of each prompt, of which ``right[task][prompt]`` are right."""
    folder.mkdir(parents=True)
    results, facts, number = [], [], dict.fromkeys(COUNTS, -1)
    for place, prompt in enumerate(PROMPTS):
        task, text = prompt.metadata.tag, prompt.metadata.prompt
        number[task] += 1
        for sample in range(2):
            results.append(
                {
                    "filename": f"{place:05d}/samples/{sample:05d}.png",
                    "tag": task,
                    "prompt": text,
                    "correct": sample < right[task][number[task]],
                    "reason": "",
                    "metadata": json.dumps(prompt.raw),
                    "details": "{}",
                }
            )
            facts.append(
                ProcessFacts(
                    prompt=text,
                    seed=2 * place + sample,
                    steps=[],
                    inspections=list(inspections),
                    finished=True,
                    refinements=list(refinements),
                    first=0.5,
                    final=0.5,
                    lost_at=None,
                    images=images + (task != "position"),
                    entities=len(prompt.metadata.include),
                    costs={"network_evaluations": evaluations, "text_tokens": 10.0 * images},
                )
            )
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in results))
    (folder / "process.jsonl").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in facts))
    (folder / "summary.json").write_text(json.dumps({"made_by": {"manifest": model}}))
    return read_row_evaluation(folder)


def scores(single_object, position, composition):
    return {"single_object": single_object, "position": position, "composition": composition}


@pytest.fixture
def runs(tmp_path):
    """The base is right in 1/2, 1/4 and 0 of the tasks' images; two process models in more."""
    single = [evaluated(tmp_path / "base", scores([1, 1], [1, 0], [0, 0]), "base")]
    own = [
        evaluated(tmp_path / f"own{n}", right, f"model {n}")
        for n, right in enumerate((scores([2, 2], [1, 0], [0, 0]), scores([2, 2], [2, 1], [0, 0])))
    ]
    more = {"inspections": [Inspection(2, True, True, False)], "refinements": [Refinement(3, "mends")]}
    process = [
        evaluated(tmp_path / f"process{n}", right, f"model {n}", 2, 200.0, **more)
        for n, right in enumerate((scores([2, 2], [2, 1], [1, 0]), scores([2, 2], [2, 1], [1, 2])))
    ]
    return {"single_pass": single, "process_single_pass": own, "process": process}


def test_every_row_is_a_recipe():
    every = make_rows([2, 4], 3, 20)
    assert len({row.name for row in every}) == len({row.says for row in every}) == len(every) == 10
    recipes = {}
    for row in every:
        checkpoint = {"base": "shapes_base", "process": "shapes"}[row.model]
        recipes[row.name] = read_recipe(checkpoint, row.strategy, parse_assignments([*LIMITS, *row.settings])).facts()
    assert recipes["best_of_2"]["mode"] == recipes["best_of_4"]["mode"] == "single_pass"
    drawn = {name: recipe["strategy.n"] for name, recipe in recipes.items() if "strategy.n" in recipe}
    assert drawn == {"best_of_2": 2, "best_of_4": 4, "parm_20": 20, "stepwise_3": 3}
    assert recipes["inspector"]["strategy.rounds"] == 1
    assert len({recipe["manifest"] for recipe in recipes.values()}) == 2
    papers = {row.name: row.paper for row in every if row.paper is not None}
    assert papers == {"single_pass": 0.77, "planner": 0.6, "inspector": 0.8, "parm_20": 0.67, "process": 0.83}
    assert all(row.paper is None for row in make_rows([2], 3, 4) if row.strategy == "parm")


def test_a_row_has_an_evaluation_for_each_of_its_models():
    common = ("--samples=2", "--setting=text.max_tokens=256")
    (one,) = make_evaluations(SINGLE, "base", ["a", "b"], pathlib.Path("out"), common)
    assert one.folder == pathlib.Path("out/single_pass/0") and "--checkpoint=base" in one.arguments
    made = make_evaluations(PROCESS, "base", ["a", "b"], pathlib.Path("out"), common)
    assert [stage.arguments[1] for stage in made] == ["--checkpoint=a", "--checkpoint=b"]
    assert "--output=out/process/1/scores" in made[1].arguments
    # Its own setting comes last, so it wins.
    assert made[0].arguments[-2:] == ("--setting=text.max_tokens=256", "--setting=text.max_tokens=80")


def test_numbers_of_the_rows(runs):
    found = collect([SINGLE, OWN, PROCESS], runs)
    single, own, process = found.values()
    assert single["scores"]["overall"]["value"] == pytest.approx((1 / 2 + 1 / 4 + 0) / 3)
    assert single["scores"]["single_object"] == {"value": 0.5, "low": 0.5, "high": 0.5, "prompts": 2}
    assert own["by_seed"] == pytest.approx([(1 + 1 / 4) / 3, (1 + 3 / 4) / 3])
    assert process["scores"]["position"]["value"] == 0.75
    # Composition: with the seeds 1/2 and 0, 1/2 and 1; one seed and the second prompt twice: 0 and 1.
    assert process["scores"]["composition"] == {"value": 0.5, "low": 0.0, "high": 1.0, "prompts": 2}
    assert "than_first" not in single and "than_own" not in single and "than_own" not in own
    assert process["than_first"]["single_object"] == {"value": 0.5, "low": 0.5, "high": 0.5, "prompts": 2}
    # Position, seed by seed: 1/2 and 1/2 more with the first, the same with the second.
    assert process["than_own"]["position"] == {"value": 0.25, "low": 0.0, "high": 0.5, "prompts": 2}
    assert process["right"][1] == {"single_object": "2 2", "position": "2 1", "composition": "1 2"}
    assert process["models"] == ["model 0", "model 1"] and single["models"] == ["base"]
    measures = process["measures"]
    assert measures["network evaluations"]["value"] == 200 and measures["tokens written"]["value"] == 20
    # Three images of a prompt, two of a position: 24 trajectories of which 8 are.
    assert measures["images"]["value"] == pytest.approx(8 / 3) and measures["images"]["values"] == 24
    assert measures["inspection precision"]["value"] == measures["refinements that mend"]["value"] == 1
    assert "inspection precision" not in single["measures"]


def test_numbers_by_what_is_asked_for(runs):
    found = collect([SINGLE, OWN, PROCESS], runs)["process"]
    counts = [sum(one["count"] for one in prompt.raw["include"]) for prompt in PROMPTS]
    assert counts[:4] == [1, 1, 2, 2] and min(counts[4:]) >= 3
    assert found["objects"]["1"]["value"] == 1 and found["objects"]["2"]["value"] == 0.75
    assert list(found["objects"]) == sorted({str(count) for count in counts}, key=int)
    by_count = group_by_objects(runs["process"][1].results)
    assert {count: own.shape for count, own in by_count.items()} == {
        str(count): (counts.count(count), 2) for count in sorted(set(counts))
    }
    assert found["than_own_objects"]["2"]["value"] == 0.25
    kinds = [len(prompt.raw["include"]) for prompt in PROMPTS]
    assert {name: one["prompts"] for name, one in found["length"].items()} == {
        str(n): kinds.count(n) for n in sorted(set(kinds))
    }
    assert found["length"]["1"]["value"] == 3 and found["length"]["2"]["value"] == 2


def test_rows_are_of_the_same_models(runs):
    with pytest.raises(EvaluationError, match="process: was drawn by other models than process_single_pass"):
        collect([SINGLE, OWN, PROCESS], runs | {"process": runs["process"][::-1]})
    twice = {"process_single_pass": runs["process_single_pass"][:1] * 2, "process": runs["process"]}
    with pytest.raises(EvaluationError, match="process_single_pass: two of its models are the same"):
        collect([SINGLE, OWN, PROCESS], runs | twice)


def test_tables_and_plots(runs):
    found = collect([SINGLE, OWN, PROCESS], runs)
    lines = format_markdown(miniature_tables.make_strategy_table(found)).splitlines()
    header, first, _, last = (line.strip("| ").split(" | ") for line in (lines[0], *lines[2:]))
    assert header[:5] == ["way", "network evaluations", "tokens written", "images", "score"]
    assert first[:4] == ["base, single pass", "90", "10", "1.67"] and first[-1] == "0.77"
    assert last[5] == "0.67, 0.83" and last[-1] == "0.83"
    (tasks,) = [row for row in miniature_tables.make_task_table(found).rows if row[0] == "paper, GenEval: BAGEL-7B"]
    named = dict(zip(miniature_tables.make_task_table(found).columns, tasks))
    assert (named["overall"], named["position"], named["composition"]) == (0.77, 0.51, None)
    text = miniature_tables.format_tables(found)
    assert text.count("## ") == 6 and "| inspection precision | 1.00 [1.00, 1.00] |" in text
    figures = {name: plot(found) for name, plot in PLOTS.items()}
    assert [one.lines[0].get_xdata()[0] for one in figures["cost"].axes[0].containers] == [90, 90, 200]
    (length,) = figures["length"].axes[0].containers
    assert length.lines[0].get_ydata().tolist()[:2] == [3, 2]
    assert len(figures["objects"].axes[0].containers) == 3


def test_finished_evaluations_are_not_repeated(runs, tmp_path):
    """A fake evaluation finds its results by strategy and checkpoint."""
    (tmp_path / "evaluate.py").write_text(
        "import pathlib, shutil, sys\n"
        "flags = dict(text[2:].split('=', 1) for text in sys.argv[1:])\n"
        f"root = pathlib.Path({str(tmp_path)!r})\n"
        "shutil.copytree(root / flags['checkpoint'], flags['output'])\n"
        "print('once', file=(root / 'calls').open('a'))\n"
    )
    every, models = [SINGLE, PROCESS], ["process0", "process1"]
    stages = {row.name: make_evaluations(row, "base", models, tmp_path / "out", ["--samples=2"]) for row in every}
    for _ in range(2):
        found = measure(every, stages, tmp_path)
        assert (tmp_path / "calls").read_text() == "once\n" * 3
    assert found["process"]["models"] == ["model 0", "model 1"]
    assert found["process"]["commands"][1].startswith(
        "python launch/evaluate.py --benchmark=shapes --checkpoint=process1 --strategy=process "
    )
    (tmp_path / "out" / "process" / "1" / "scores" / "summary.json").unlink()
    with pytest.raises(EvaluationError, match=r"summary.json is not of an evaluation .*; remove .*process/1 "):
        measure(every, stages, tmp_path)
