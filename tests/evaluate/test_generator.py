"""Image generators: settings by name, and a strategy on a fake sampler."""

import json
import pathlib
import shutil
import types

import PIL.Image
import pytest

from pdgen.checkpoints.conversion import to_pdgen
from pdgen.evaluate import generator
from pdgen.evaluate.errors import EvaluationError
from pdgen.sample.compiled import Compiler
from pdgen.sample.sampler import Sampler
from pdgen.sample.strategies.table import StrategyError
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory
from pdgen.teachers.advisers import make_exact_advisers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bagel-nano"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "nano"
    to_pdgen(GOLDEN, folder, log=lambda line: None)
    return folder


def test_values_are_json_or_else_text():
    pairs = ["image.num_timesteps=50", "image.interval=[0, 1]", "mode=edit", "image.taylorseer=true", "system=a=b"]
    assert generator.parse_assignments(pairs) == {
        "image.num_timesteps": 50,
        "image.interval": [0, 1],
        "mode": "edit",
        "image.taylorseer": True,
        "system": "a=b",
    }
    with pytest.raises(EvaluationError, match="--setting=steps: write NAME=VALUE"):
        generator.parse_assignments(["steps"])


def test_settings_reach_the_sampler_and_the_strategy(checkpoint):
    values = {"image.num_timesteps": 7, "image.interval": [0, 0.5], "max_images": 3, "strategy.n": 2}
    recipe = generator.read_recipe(str(checkpoint), "best_of_n", values)
    assert (recipe.settings.image.num_timesteps, recipe.settings.image.interval) == (7, (0.0, 0.5))
    assert (recipe.settings.max_images, recipe.settings.image.text_scale, recipe.strategy.n) == (3, 4.0, 2)
    facts = recipe.facts()
    assert facts == json.loads(json.dumps(facts))
    assert (facts["strategy"], facts["strategy.n"], len(facts["manifest"])) == ("best_of_n", 2, 64)
    assert facts["image.num_timesteps"] == 7
    assert generator.read_recipe(str(checkpoint), "best_of_n", {**values, "max_images": 4}).facts() != facts


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image.steps", 3, "--setting=image.steps: unknown; choose one of num_timesteps, "),
        ("images.num_timesteps", 3, "--setting=images.num_timesteps: unknown"),
        ("max_images.x", 3, "--setting=max_images.x: max_images has no settings of its own"),
        ("image.num_timesteps", 1, "num_timesteps must be at least 2"),
        ("image.num_timesteps", "many", "--setting=image.num_timesteps: Expected `int`, got `str`"),
        ("mode", "draw", "--setting=mode: "),
        ("max_images", 0, "--setting=max_images=0: a benchmark needs images"),
    ],
)
def test_impossible_settings_are_named(key, value, words):
    with pytest.raises(EvaluationError) as caught:
        generator.read_recipe("nowhere", "process", {key: value})
    assert words in str(caught.value)


def test_facts_hold_only_what_decides_the_images(checkpoint, tmp_path):
    """Not the checkpoint's location, nor the batch size: a run may resume with a smaller one."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, moved)
    facts = [
        generator.read_recipe(str(folder), "process", {"batch_size": together}).facts()
        for folder, together in ((checkpoint, 8), (moved, 2))
    ]
    assert facts[0] == facts[1] and facts[0]["strategy"] == "process"


def test_an_unknown_strategy_or_setting_is_named():
    with pytest.raises(StrategyError, match="strategy 'luck' is none of process"):
        generator.read_recipe("nowhere", "luck", {})
    with pytest.raises(StrategyError, match="strategy process has no setting 'n'"):
        generator.read_recipe("nowhere", "process", {"strategy.n": 2})


class Scripted(Sampler):
    """A sampler whose last image has the seed as its colour; prompts that begin with "nothing" give no image."""

    def __init__(self):
        self.model = types.SimpleNamespace(compiler=Compiler())

    def __call__(self, prompts, seeds, settings, **_):
        self.settings = settings
        return [self.one(prompt, seed) for prompt, seed in zip(prompts, seeds)]

    def one(self, prompt, seed):
        plan = TextStage("plan", "<ins>a</ins> <des>b</des>")
        stages = [plan, *(ImageStage("sketch", f"0{n}_sketch.png", 4, 4) for n in (1, 2))]
        images = [PIL.Image.new("RGB", (4, 4), color) for color in ("black", (seed, 0, 0))]
        if prompt.startswith("nothing"):
            stages, images = stages[:1], []
        return Trajectory(
            prompt=prompt, stages=stages, stop_reason="token limit", seed=seed, checkpoint="x", images=images
        )


def test_the_last_image_and_its_trajectory_are_returned(checkpoint, monkeypatch):
    loaded, sampler = [], Scripted()
    monkeypatch.setattr(generator.Sampler, "from_checkpoint", lambda path: loaded.append(path) or sampler)
    recipe = generator.read_recipe(str(checkpoint), "process", {"max_images": 3, "image.num_timesteps": 7})
    generate = generator.make_generator(recipe, make_exact_advisers())
    assert loaded == []
    drawn = [*generate(["a", "b"], [3, 4]), *generate(["c"], [5])]
    assert loaded == [checkpoint] and (sampler.settings.max_images, sampler.settings.image.num_timesteps) == (3, 7)
    assert [one.images[-1].getpixel((0, 0))[0] for one in drawn] == [one.seed for one in drawn] == [3, 4, 5]
    assert drawn[0].settings["strategy"] == "process"
    with pytest.raises(EvaluationError, match=r"seed 9: 'nothing' ended without an image \(token limit\)"):
        generate(["nothing"], [9])
