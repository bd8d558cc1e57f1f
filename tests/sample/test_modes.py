"""The modes: contexts while an image is drawn or an answer written, and the base model's defaults."""

import collections
import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

from pdgen.flow.denoise import ImageSettings
from pdgen.sample.settings import SampleError, SampleSettings, make_base_settings, unflatten_settings
from pdgen.sample.text import TextSettings
from tests.sample.conftest import SETTINGS, recording

pytestmark = pytest.mark.slow

SYSTEM = "Think."
STAND = {
    "single_pass": ("prompt", "image"),
    "edit": ("given", "given", "prompt", "image"),
    "think": ("given", "prompt", "thought", "image"),
    "understand": ("given", "prompt", "answer"),
    "process": ("given", "prompt", "plan", "image"),
}
SEED = {mode: number for number, mode in enumerate(STAND, 40)}


def picture(value):
    return PIL.Image.fromarray(np.full((32, 32, 3), value, np.uint8))


@pytest.fixture(scope="module")
def mixed(sampler):
    """A trajectory of every mode, all in one batch, and every compiled call."""
    starts = []
    for mode, kinds in STAND.items():
        given = [picture(60 * n) for n in range(kinds.count("given"))]
        settings = dataclasses.replace(SETTINGS, mode=mode)
        starts += sampler.make_starts([f"a {mode}"], [SEED[mode]], settings, [given])
    with recording(sampler) as recorder:
        drawn = sampler.resume_all(starts, dataclasses.replace(SETTINGS, system=SYSTEM))
    return dict(zip(STAND, drawn)), recorder


def size(sampler, trajectory, *what):
    """Count (tokens, rotary positions) of parts of a trajectory by hand: an image has 64 VAE and 25 ViT tokens."""
    lengths = collections.Counter()
    for part in what:
        if part in ("image", "look"):
            copies = [64 + 2, 25 + 2] if part == "image" else [25 + 2]
            lengths += collections.Counter(tokens=sum(copies), rotary=len(copies))
        else:
            texts = {"system": SYSTEM, "prompt": trajectory.prompt}
            stages = {stage.stage: stage for stage in reversed(trajectory.stages)}
            ids = sampler.model.tokenizer.encode(texts[part]) if part in texts else stages[part].ids
            lengths += collections.Counter(tokens=len(ids) + 2, rotary=len(ids) + 2)
    return lengths["tokens"], lengths["rotary"]


def states(recorder, name, mode):
    """List (state, slot, static arguments) of each call that worked on the mode's trajectory."""
    found = []
    for call in recorder.named(name):
        rows = call.given[1]
        found += [(call.state, slot, call.static) for place, slot in call.rows if rows.seed[place] == SEED[mode]]
    return found


@pytest.mark.parametrize("mode", STAND)
def test_kinds_of_segments(mixed, mode):
    trajectory = mixed[0][mode]
    kinds = tuple(trajectory.kinds)
    assert kinds[: len(STAND[mode])] == STAND[mode] and trajectory.mode == mode
    if mode != "process":  # in which the model chooses
        assert kinds == STAND[mode] and trajectory.stop_reason == "finished"
    assert trajectory.settings["mode"] == mode


@pytest.mark.parametrize(
    ("mode", "full", "view", "texts"),
    [
        ("single_pass", ["system", "prompt"], ["system"], None),
        ("edit", ["system", "image", "image", "prompt"], ["system", "image", "image"], ["system", "prompt"]),
        # The thought is in the context, but image guidance ends before it.
        ("think", ["system", "image", "prompt", "thought"], ["system", "image"], ["system", "prompt"]),
        ("process", ["system", "image", "prompt", "plan"], ["system", "image"], ["system", "prompt", "plan"]),
    ],
)
def test_contexts_of_the_first_image(sampler, mixed, mode, full, view, texts):
    drawn, recorder = mixed
    state, slot, static = states(recorder, "draw", mode)[0]
    assert (state.full.length[slot], state.full.rotary[slot]) == size(sampler, drawn[mode], *full)
    assert (state.view_length[slot], state.view_rotary[slot]) == size(sampler, drawn[mode], *view)
    assert static[3] == (texts is not None)  # image guidance
    if texts is not None:
        assert (state.texts.length[slot], state.texts.rotary[slot]) == size(sampler, drawn[mode], *texts)


def test_understanding_reads_no_vae_copy_of_an_image(sampler, mixed):
    drawn, recorder = mixed
    ((state, slot, _),) = states(recorder, "write_text", "understand")
    assert (state.full.length[slot], state.full.rotary[slot]) == size(
        sampler, drawn["understand"], "system", "look", "prompt"
    )
    assert drawn["understand"].stages[-1].stage == "answer" and len(drawn["understand"].images) == 1


def test_every_token_of_every_mode_is_read_once_and_the_last_image_never(sampler, mixed):
    drawn, _ = mixed
    parts = {
        "single_pass": ["system", "prompt"],
        "edit": ["system", "image", "image", "prompt"],
        "think": ["system", "image", "prompt", "thought"],
        "understand": ["system", "look", "prompt", "answer"],
    }
    for mode, what in parts.items():
        assert drawn[mode].costs["prefilled_tokens"] == size(sampler, drawn[mode], *what)[0]


def test_given_images_are_kept_unchanged(mixed):
    edit = mixed[0]["edit"]
    assert [np.asarray(image).max() for image in edit.images[:2]] == [0, 60]
    assert [(s.stage, s.origin) for s in edit.stages] == [("given", "outside")] * 2 + [("sketch", "model")]


def test_the_base_models_defaults():
    """Text guidance 4, image guidance 1.5 above t = 0.4; when editing 2.0 everywhere, norms held back per token."""
    assert make_base_settings("single_pass") == SampleSettings(mode="single_pass")
    assert make_base_settings("process").image == ImageSettings(
        num_timesteps=50, timestep_shift=3.0, text_scale=4.0, image_scale=1.5, interval=(0.4, 1.0), renorm="global"
    )
    edit = make_base_settings("edit", max_prompt_tokens=7)
    assert edit.image == ImageSettings(
        num_timesteps=50,
        timestep_shift=3.0,
        text_scale=4.0,
        image_scale=2.0,
        interval=(0.0, 1.0),
        renorm="text_channel",
        renorm_min=0.0,
    )
    assert edit.max_prompt_tokens == 7
    think = make_base_settings("think")
    assert think.text == TextSettings(max_tokens=1000, temperature=0.0)


def test_refinements_may_have_their_own_settings():
    other = ImageSettings(num_timesteps=3, text_scale=2.0)
    settings = SampleSettings(refine=other)
    assert (
        settings.select_image_settings("refine") == other and settings.select_image_settings("sketch") == settings.image
    )
    assert settings.flatten()["refine.text_scale"] == 2.0 and settings.flatten()["refine.interval_from"] == 0.4
    assert (
        "refine" not in SampleSettings().flatten()
        and SampleSettings().select_image_settings("refine") == ImageSettings()
    )


@pytest.mark.parametrize(
    "settings",
    [
        SampleSettings(),
        make_base_settings("edit", height=32, width=64, max_steps=3, batch_size=4, keep_latents=True),
        make_base_settings("think", refine=ImageSettings(interval=(0.25, 0.5), renorm="channel", taylorseer=True)),
        SampleSettings(text=TextSettings(max_tokens=9, temperature=0.0, top_p=0.5, top_k=3), max_prompt_tokens=7),
    ],
)
def test_settings_are_read_back_from_a_trajectory(settings):
    values = json.loads(json.dumps(settings.flatten() | {"dtype": "float32", "strategy": "parm", "strategy.n": 4}))
    assert unflatten_settings(values) == settings
    assert unflatten_settings({}) == SampleSettings()


def test_the_batch_size_is_read_from_files_of_version_0_3():
    assert unflatten_settings({"together": 4}) == SampleSettings(batch_size=4)


@pytest.mark.parametrize("values", [{"image.text_scale": 0.5}, {"image.interval_from": 0.2}, {"text.top_k": "all"}])
def test_impossible_settings_are_not_read_back(values):
    with pytest.raises(ValueError, match=r"text_scale and image_scale|Expected `(float|int)`, got `(null|str)`"):
        unflatten_settings(values)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="Invalid enum value 'draw'"):
        unflatten_settings({"mode": "draw"})
    settings = SampleSettings()
    object.__setattr__(settings, "mode", "draw")  # bypasses the constructor, whose types the tests check
    with pytest.raises(ValueError, match="mode 'draw' is unknown; choose one of process, single_pass, "):
        settings.__post_init__()


def test_every_image_is_denoised_with_its_stage_s_settings(sampler):
    """In one batch: a sketch after another plan, and refinements after a fault, one with its plan rewritten."""
    refine = dataclasses.replace(SETTINGS.image, num_timesteps=3, text_scale=2.0, image_scale=1.0)
    settings = dataclasses.replace(SETTINGS, refine=refine)
    plan, fault = "<ins>Add a dog.</ins> <des>A dog.</des>", "No dog. <refine>Add it.</refine>"
    (start,) = sampler.make_starts(["a dog"], [1], settings)
    draft = start.branch(0, plan=plan).branch(1, image=picture(0))
    faulty = draft.branch(2, critique=fault)
    batch = sampler.make_batch([draft.branch(2, plan=plan), faulty, faulty.branch(3, plan=plan)], settings)
    with recording(sampler) as recorder:
        batch.draw_images(range(3))
    drawn = {slot: call.static for call in recorder.named("draw") for _, slot in call.rows}
    assert [batch.rows[slot].stages[-1].stage for slot in drawn] == ["sketch", "refine", "refine"]
    assert [drawn[slot][0].settings for slot in range(3)] == [SETTINGS.image, refine, refine]
    assert [drawn[slot][3] for slot in range(3)] == [True, False, False]  # image guidance
    # Three steps of three branches; two of two.
    assert [row.costs["network_evaluations"] for row in batch.rows.values()] == [9, 4, 4]


def test_absurdly_large_images_are_refused(sampler):
    huge = PIL.Image.new("L", (8192, 8193))
    with pytest.raises(SampleError, match=r"prompt 1 of 1: a given image has 8192 x 8193 pixels, at most 67,108,864"):
        sampler(["a"], settings=make_base_settings("edit"), given=[[huge]])
