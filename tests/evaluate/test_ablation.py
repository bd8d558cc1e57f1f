"""The sweep's order, stages and tables; other tests run its commands."""

import importlib.util
import json
import pathlib
import runpy
import sys

import msgspec
import pytest
from absl import flags
from ml_collections import config_flags

from pdgen.evaluate import ablation
from pdgen.evaluate.ablation import Sweep, SweepCell, make_stages, make_table, order_cells
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.tables import format_text

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "ablation_shapes.py"
ROWS = {"scene graph": "a", "self-sampled": "b", "none": "c"}


def sweep(**changed):
    cells = {"b": SweepCell(plans_from="a"), "a": SweepCell({"conflict": {"positive": 0}}), "c": SweepCell()}
    values = {"data": "d.py", "train": "t.py", "cells": cells, "tables": {"critiques": ROWS}, "seeds": (0, 1)}
    return Sweep(**values | changed)


def test_the_shipped_sweep_covers_the_papers_rows():
    spec = importlib.util.spec_from_file_location("config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = msgspec.convert(module.get_config().to_dict(), Sweep)
    for name, rows in shipped.tables.items():
        assert set(ablation.TABLES[name].rows) <= set(rows)
    without = [
        stage for stage in make_stages(shipped, ["rewritten"], pathlib.Path("out")) if stage.name == "build_data"
    ]
    assert {"--config.conflict.positive=0", "--config.alignment.negative=0"} <= set(without[0].arguments)


def test_the_shipped_sweeps_flags_are_keys_of_its_training_config(monkeypatch):
    shipped = msgspec.convert(runpy.run_path(str(CONFIG))["get_config"]().to_dict(), Sweep)
    monkeypatch.chdir(CONFIG.parents[1])
    mixtures = {}
    for stage in make_stages(shipped, list(shipped.cells), pathlib.Path("out")):
        if stage.name != "train":
            continue
        values = flags.FlagValues()
        monkeypatch.setattr(sys, "argv", ["train", *stage.arguments])  # where the config's keys are looked up
        config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        values(sys.argv)
        assert values["config"].value.num_steps == shipped.train_keys["num_steps"]
        mixtures[stage.folder.parent.name] = values["config"].value.mixture.to_dict()
    assert mixtures["rewritten"] == {} and mixtures["rewritten_alignment"]["conflict"] == 0
    assert mixtures["rewritten_critique"] == {"multi_turn": 0.42, "conflict": 0.2, "alignment": 0.38}


def test_a_cell_follows_the_one_that_writes_its_plans():
    assert order_cells(sweep(), ["b", "c"]) == ["a", "b", "c"]
    made = list(make_stages(sweep(), ["b"], pathlib.Path("out")))
    built = [stage for stage in made if stage.name == "build_data"]
    assert [stage.folder.name for stage in built] == ["a", "b"]
    assert "--config.conflict.checkpoint=out/a/0/run" in built[1].arguments
    scored = [stage for stage in made if stage.name == "evaluate"]
    assert "--training_data=out/a/data" in scored[0].arguments and "--training_data=out/b/data" in scored[-1].arguments
    assert made.index(built[1]) > next(i for i, stage in enumerate(made) if stage.name == "train")
    assert [stage.name for stage in made] == ["build_data", *["train", "evaluate"] * 2] * 2


def test_a_cell_continues_anothers_run_of_the_same_seed_with_its_own_keys():
    keys = {"num_steps": 9, "optimizer": {"learning_rate": 1.0, "warmup_steps": 3}}
    cells = {"b": SweepCell(train={"optimizer": {"learning_rate": 2.0}}, init_from="a"), "a": SweepCell()}
    made = make_stages(sweep(cells=cells, train_keys=keys, tables={}), ["b"], pathlib.Path("out"))
    first, second = [stage for stage in made if stage.name == "train"][1::2]
    assert first.folder == pathlib.Path("out/a/1") and not [a for a in first.arguments if "config.init" in a]
    assert "--config.init=out/a/1/run" in second.arguments and "--config.num_steps=9" in second.arguments
    assert [a for a in second.arguments if "config.optimizer" in a] == [
        "--config.optimizer.learning_rate=2.0",
        "--config.optimizer.warmup_steps=3",
    ]


def test_a_cell_uses_anothers_data():
    cells = {"b": SweepCell(data_from="a", train={"mixture": {"conflict": 0.0}}), "a": SweepCell()}
    made = list(make_stages(sweep(cells=cells, tables={}), ["b"], pathlib.Path("out")))
    assert [stage.folder.name for stage in made if stage.name == "build_data"] == ["a"]
    for stage in made[-2:]:
        (flag,) = [argument for argument in stage.arguments if "data=" in argument]
        assert flag.endswith("data=out/a/data") and stage.folder == pathlib.Path("out/b/1")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"cells": {"a": SweepCell(data_from="b"), "b": SweepCell(data_from="c"), "c": SweepCell()}},
            "cells.a.data_from: 'b' must have its own data",
        ),
        (
            {"cells": {"a": SweepCell({"seed": 1}, data_from="b"), "b": SweepCell(), "c": SweepCell()}},
            "cells.a.data_from: 'b' must have its own data, and 'a' none",
        ),
        (
            {"cells": {"a": SweepCell(plans_from="b"), "b": SweepCell(plans_from="a"), "c": SweepCell()}},
            "a needs b needs a",
        ),
        (
            {"cells": {"a": SweepCell(plans_from="x"), "b": SweepCell(), "c": SweepCell()}},
            "cells.a.plans_from: 'x' is not a cell",
        ),
        (
            {"cells": {"a": SweepCell(init_from="b"), "b": SweepCell(plans_from="a"), "c": SweepCell()}},
            "a needs b needs a",
        ),
        ({"tables": {"colours": ROWS}}, "tables: 'colours' is not one of"),
        ({"tables": {"critiques": {"none": "z"}}}, "tables.critiques: 'z' is not a cell"),
        ({"seeds": ()}, "seeds is empty"),
    ],
)
def test_impossible_sweeps(changed, words):
    with pytest.raises(ValueError, match=words):
        sweep(**changed)


def results(folder, tag_scores):
    folder.mkdir(parents=True)
    lines = []
    for tag, prompts in tag_scores.items():
        for number, scores in enumerate(prompts):
            for sample, correct in enumerate(scores):
                prompt = f"{tag} {number}"
                lines.append(
                    {
                        "filename": f"{tag}{number:05d}/samples/{sample:05d}.png",
                        "tag": tag,
                        "prompt": prompt,
                        "correct": bool(correct),
                        "reason": "",
                        "metadata": json.dumps({"prompt": prompt}),
                        "details": "{}",
                    }
                )
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"findings": [f"Leaks: {folder.parent.parent.name}."]}))


def test_the_table_averages_images_and_seeds(tmp_path):
    one = {"colors": [[1, 1], [0, 0]], "position": [[1, 0], [0, 0]], "color_attr": [[0, 0], [0, 0]]}
    two = {"colors": [[1, 1], [1, 1]], "position": [[1, 0], [0, 0]], "color_attr": [[0, 0], [0, 0]]}
    none = {"colors": [[1, 1], [1, 0]], "position": [[0, 0], [0, 0]], "color_attr": [[0, 0], [0, 0]]}
    for cell, runs in {"a": (one, two), "b": (one, two), "c": (none, none)}.items():
        for seed, scores in enumerate(runs):
            results(tmp_path / cell / str(seed) / "scores", scores)
    made = make_table(sweep(), "critiques", tmp_path)
    assert [row[0] for row in made.rows[::3]] == ["none", "scene graph", "self-sampled"]
    row = dict(zip(made.columns, made.rows[3]))
    # Colours: 0.5 with the first seed, 1 with the second.
    assert row["task"] == "colors" and row["score"] == 0.75 and row["prompts"] == 2 and row["published"] == 0.83
    assert row["over seeds"] == pytest.approx((0.125) ** 0.5)
    assert dict(zip(made.columns, made.rows[4]))["score"] == 0.25
    first = dict(zip(made.columns, made.rows[0]))
    assert first["published"] is None and first["difference"] is None and first["score"] == 0.75
    # The second prompt: 0 in place of 0.5 with the first seed, 1 in place of 0.5 with the second. The means over seeds
    # are alike, the seeds are not: one of eight draws holds the second prompt twice and the first seed.
    assert (row["difference"], row["difference low"], row["difference high"]) == (0, -0.5, 0.5)
    # Position: the first prompt 0.5 in place of 0.
    position = dict(zip(made.columns, made.rows[4]))
    assert (position["difference"], position["difference low"], position["difference high"]) == (0.25, 0, 0.5)
    assert "bootstrap by prompt and training seed" in format_text(made)
    assert "bootstrap by prompt)" in format_text(make_table(sweep(seeds=(0,)), "critiques", tmp_path))
    assert all(f"Leaks: {cell}." in made.note for cell in "abc") and "to 'none'" in made.note
    (tmp_path / "b" / "1" / "scores" / "summary.json").unlink()
    with pytest.raises(EvaluationError, match=r"summary.json: no summary of an evaluation"):
        make_table(sweep(), "critiques", tmp_path)
