"""Pictures during a run: sampling with the run's parameters, and failures."""

import functools
import shutil

import jax
import numpy as np
import pytest

from pdgen.checkpoints.runs.base import load_base
from pdgen.flow.denoise import ImageSettings
from pdgen.models import bagel
from pdgen.sample.settings import SampleSettings
from pdgen.sample.text import TextSettings
from pdgen.sequence.layout import Budgets
from pdgen.sequence.trajectory_folder import load_trajectory
from pdgen.sharding import make_mesh, parameter_shardings
from pdgen.train.monitor.pictures import PictureSampler
from pdgen.train.monitor.run_log import pictures_folder
from pdgen.train.monitor.watchers import Watchers
from pdgen.train.run_config import RunConfig, RunError

pytestmark = pytest.mark.slow

SETTINGS = SampleSettings(
    max_images=1, max_prompt_tokens=16, text=TextSettings(max_tokens=8), image=ImageSettings(num_timesteps=3)
)
MESH = make_mesh((1, 2, 1), jax.devices()[:2])
PROMPTS = ("a red circle", "two blue squares")


@pytest.fixture(scope="module")
def run():
    return RunConfig(data="", num_steps=4, rows=1, budgets=Budgets(64, 16, 64), pictures_every=2, prompts=PROMPTS)


@pytest.fixture(scope="module")
def base(run):
    return load_base(run.init, run.model)


@pytest.fixture(scope="module")
def fresh(base):
    """Initial parameters plus noise, so that no head is 0, sharded over two devices."""
    params = jax.jit(functools.partial(bagel.init_params, base.config))(jax.random.key(0))
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda leaf: leaf + 0.02 * rng.normal(size=leaf.shape).astype(np.float32), params)
    return jax.device_put(shaken, parameter_shardings(bagel.abstract_params(base.config), MESH))


@pytest.fixture(scope="module")
def drawn(run, base, fresh, tmp_path_factory):
    """(workdir, picture sampler, lines it logged) after two steps of a run on two devices."""
    workdir, lines = tmp_path_factory.mktemp("run"), []
    pictures = PictureSampler(run, workdir, lines.append, base, SETTINGS)
    with jax.set_mesh(MESH):
        pictures(2, fresh)
        pictures(4, jax.tree.map(lambda leaf: 1.1 * leaf, fresh))
    return workdir, pictures, lines


def test_every_step_and_prompt_has_a_trajectory(drawn):
    workdir, _, lines = drawn
    assert not lines
    folders = sorted(path.relative_to(workdir / "pictures") for path in (workdir / "pictures").glob("*/*"))
    assert [str(path) for path in folders] == ["00000002/000", "00000002/001", "00000004/000", "00000004/001"]
    for step in (2, 4):
        for number, prompt in enumerate(PROMPTS):
            trajectory = load_trajectory(pictures_folder(workdir, step) / f"{number:03d}")
            assert (trajectory.prompt, trajectory.seed) == (prompt, number)
            assert trajectory.checkpoint == f"{workdir}, step {step}"
            assert trajectory.stop_reason is not None and len(trajectory.images) == 1


def test_other_parameters_draw_other_pictures(drawn):
    workdir = drawn[0]
    first, second = (load_trajectory(pictures_folder(workdir, step) / "000").images[0] for step in (2, 4))
    assert np.abs(np.asarray(first, float) - np.asarray(second, float)).mean() > 0.1


def test_later_steps_compile_nothing_and_replace_older_pictures(drawn, fresh, monkeypatch):
    workdir, pictures, _ = drawn
    before = {path: path.read_bytes() for path in pictures_folder(workdir, 2).rglob("*.png")}
    stale = pictures_folder(workdir, 2) / "002"
    shutil.copytree(pictures_folder(workdir, 2) / "000", stale)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("compiled again"))
    with jax.set_mesh(MESH):
        pictures(2, fresh)
    assert not stale.exists() and len(before) == 2
    assert {path: path.read_bytes() for path in before} == before


def test_a_failure_to_write_costs_the_run_one_line(run, base, fresh, drawn, tmp_path):
    (tmp_path / "pictures").write_text("no folder")
    lines = []
    pictures, watchers = PictureSampler(run, tmp_path, lines.append, base, SETTINGS), Watchers(lines.append)
    pictures._model = drawn[1]._model  # already compiled
    with jax.set_mesh(MESH):
        for step in (2, 4):
            watchers.call(str(tmp_path / "pictures"), pictures, step, fresh)
    (line,) = lines
    assert line.startswith(f"{tmp_path}/pictures: cannot be written (") and "the run continues without it" in line
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (("a", " "), r"prompts\[1\] is empty"),
        (("red " * 40,), r"prompts\[0\] has \d+ tokens, expected at most 16"),
    ],
)
def test_prompts_are_checked_before_anything_is_drawn(run, base, tmp_path, prompts, words):
    changed = RunConfig(**{**vars(run), "prompts": prompts})
    with pytest.raises(RunError, match=words):
        PictureSampler(changed, tmp_path, print, base, SETTINGS)


def test_pictures_need_prompts(run):
    with pytest.raises(ValueError, match="pictures_every is 2, but there are no prompts"):
        RunConfig(**{**vars(run), "prompts": ()})
