"""The next segment of a trajectory, stop reasons, and the room it may need. No network is evaluated."""

import dataclasses
from typing import NamedTuple

import jax
import pytest
from jax.sharding import Mesh

from pdgen.assets import shapes_folder
from pdgen.checkpoints.shipped import SHIPPED
from pdgen.config import PRESETS, ModelConfig, read_config
from pdgen.sample import capacity as capacities
from pdgen.sample import settings as settings_module
from pdgen.sample.pending import PIECE_TOKENS, split_text
from pdgen.sample.rows import BatchRow
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import THINK, SampleError, SampleSettings, make_base_settings
from pdgen.sequence.grammar import SWITCHES
from pdgen.sequence.modes import END, MODES
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory, image_file
from pdgen.sharding import make_mesh
from tests.sample.conftest import SETTINGS
from tests.sample.test_modes import picture

TEXTS = {
    "plan": ("plan", "<ins>a</ins> <des>b</des>"),
    "inspect": ("inspect", "Fine."),
    "refine": ("inspect", "No. <refine>Turn it.</refine>"),
    "thought": ("thought", "A cat."),
    "answer": ("answer", "Two."),
}


def grown(mode, *parts):
    """Return a row that holds these parts after its prompt."""
    given = parts.count("given")
    images = [picture(n) for n in range(given)]
    stages = [ImageStage("given", image_file(n, "given"), 32, 32) for n in range(1, given + 1)]
    start = Trajectory(prompt="a", stages=stages, images=images, stop_reason=None, seed=1, checkpoint="", mode=mode)
    row = BatchRow(0, start, start.kinds, [*stages], [*images], {}, start.seed)
    for part in parts[given:]:
        if part == "image":
            row.add_image(row.make_image_stage(picture(0)), picture(0))
        else:
            row.add_text(TextStage(*TEXTS[part]))
    return row


@pytest.mark.parametrize(
    ("mode", "parts", "expected"),
    [
        ("process", [], ["text"]),
        ("process", ["plan"], ["image"]),
        ("process", ["plan", "image"], ["text", "end"]),
        ("process", ["plan", "image", "inspect"], ["text", "end"]),
        ("process", ["plan", "image", "refine"], ["image", "text"]),
        ("single_pass", [], ["image"]),
        ("single_pass", ["image"], ["end"]),
        ("single_pass", ["image", "refine"], ["image"]),  # a critique from outside
        ("edit", ["given"], ["image"]),
        ("edit", ["given", "image", "refine", "image"], ["end"]),
        ("think", [], ["text"]),
        ("think", ["thought"], ["image"]),
        ("think", ["given", "thought", "image"], ["end"]),
        ("understand", ["given"], ["text"]),
        ("understand", ["answer"], ["end"]),
    ],
)
def test_the_next_segment(sampler, whole_grammar, mode, parts, expected):
    row = grown(mode, *parts)
    allowed = (
        [END] if row.must_end else [s for s, may in zip(SWITCHES, row.find_allowed_switches(whole_grammar)) if may]
    )
    assert allowed == expected


@pytest.mark.parametrize(
    ("parts", "switch", "limits", "stop"),
    [
        (["plan", "image"], "end", {}, "finished"),
        (["plan", "image"], "text", {}, None),
        (["plan", "image"], "text", {"max_images": 1}, None),  # the last image may still be inspected
        (["plan", "image", "inspect"], "text", {"max_images": 1}, "step limit"),
        (["plan", "image", "inspect"], "end", {"max_images": 1}, "finished"),
        (["plan", "image", "refine"], "image", {"max_images": 1}, "step limit"),
        (["plan", "image", "refine"], "image", {"max_images": 2}, None),
        (["plan"], "image", {"max_images": 0}, "step limit"),
        ([], "text", {"max_images": 0}, None),
        # Corrections do not count as steps.
        (["plan", "image", "refine"], "image", {"max_steps": 1}, None),
        (["plan", "image", "refine"], "text", {"max_steps": 1}, None),
        (["plan", "image", "refine", "plan"], "image", {"max_steps": 1}, None),
        (["plan", "image", "inspect"], "text", {"max_steps": 1}, "step limit"),
        (["plan", "image", "inspect"], "text", {"max_steps": 2}, None),
        (["plan", "image", "refine", "image", "inspect"], "text", {"max_steps": 2}, None),
        (["plan", "image", "refine", "image", "inspect"], "text", {"max_steps": 1}, "step limit"),
        (["plan", "image", "plan"], "image", {"max_steps": 1}, "step limit"),
    ],
)
def test_limits(parts, switch, limits, stop):
    row = grown("process", *parts)
    row.follow_switch(switch, SampleSettings(**limits))
    assert (row.stop_reason, row.due) == (stop, switch)


@pytest.mark.parametrize(
    ("mode", "parts", "switch", "stop"),
    [
        ("process", ["plan"], "image", None),  # its tags were closed, so it can be drawn
        ("process", ["plan", "image", "inspect"], "text", "token limit"),
        ("think", ["thought"], "image", None),
        ("understand", ["answer"], "end", "token limit"),
    ],
)
def test_a_truncated_text(mode, parts, switch, stop):
    row = grown(mode, *parts)
    row.text_cut = True
    row.follow_switch(switch, SampleSettings())
    assert row.stop_reason == stop and not row.text_cut


# The number of texts that may follow.

PARTS = {kind: kind for kind in ("image", "plan", "inspect", "thought", "answer")} | {"inspect+refine": "refine"}


def histories(mode, parts, last="prompt"):
    """Yield the parts after the prompt of every prefix of a sequence of the mode with up to three images."""
    yield parts
    for kind in MODES[mode][last]:
        if kind != END and (kind != "image" or parts.count("image") < 3):
            yield from histories(mode, [*parts, PARTS[kind]], kind)


def most_texts(row, automaton, settings):
    """Count the texts on the longest continuation, by trying all."""
    most = 0
    for switch in (
        [END] if row.must_end else [s for s, may in zip(SWITCHES, row.find_allowed_switches(automaton)) if may]
    ):
        now = row.copy(row.seed)
        now.follow_switch(switch, settings)
        for kind in MODES[row.mode][row.kinds[-1]] if now.stop_reason is None else ():
            longer = now.copy(now.seed)
            if switch == kind == "image":
                longer.add_image(longer.make_image_stage(picture(0)), picture(0))
                most = max(most, most_texts(longer, automaton, settings))
            elif switch == "text" and kind not in ("image", END):
                longer.add_text(TextStage(*TEXTS[PARTS[kind]]))
                most = max(most, 1 + most_texts(longer, automaton, settings))
    return most


@pytest.mark.parametrize("max_images", range(4))
@pytest.mark.parametrize("mode", list(MODES))
def test_room_is_kept_for_the_greatest_number_of_texts(whole_grammar, mode, max_images):
    """After every history of up to three images."""
    settings, checked = SampleSettings(max_images=max_images), {}
    for parts in histories(mode, []):
        row = grown(mode, *["given"] * (mode == "edit"), *parts)
        left = settings.count_images_left(mode, row.kinds.count("image"))
        kept = capacities.count_texts_left(mode, row.kinds[-1], left)
        checked[tuple(row.kinds)] = kept, most_texts(row, whole_grammar, settings)
    assert len(checked) >= (90 if mode == "process" else 2)
    assert {kinds: pair for kinds, pair in checked.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("length", [0, PIECE_TOKENS - 2, PIECE_TOKENS - 1, 3 * PIECE_TOKENS - 2])
def test_pieces_of_a_text(sampler, length):
    tokens = sampler.model.tokenizer
    cut = split_text(sampler.model, list(range(length)), ("full",), ends_view=True)
    assert [i for piece in cut for i in piece.ids] == [tokens.im_start, *range(length), tokens.im_end]
    assert all(0 < len(piece.ids) <= PIECE_TOKENS for piece in cut)
    assert [piece.ends_view for piece in cut] == [False] * (len(cut) - 1) + [True]


def test_a_refusal_for_lack_of_memory_states_what_fits(sampler, monkeypatch):
    """The stated number fits, and one more does not."""
    settings = dataclasses.replace(SETTINGS, max_images=200, batch_size=2)
    starts = sampler.make_starts(["a"], settings=settings)
    monkeypatch.setattr(capacities, "measure_free_bytes", lambda model: 100_000_000)
    with pytest.raises(SampleError, match=r"no room: the contexts of 2 trajectories .* max_images=\d+ would fit") as no:
        capacities.check_memory(sampler.model, settings, starts, 2)
    fitting = int(str(no.value).split("max_images=")[1].split(" ")[0])
    fits = dataclasses.replace(settings, max_images=fitting)
    assert 0 < fitting < 200 and sum(capacities.check_memory(sampler.model, fits, starts, 2)) > 0
    # Room comes in whole tiles, so a few images more may fit too.
    with pytest.raises(SampleError):
        capacities.check_memory(sampler.model, dataclasses.replace(settings, max_images=fitting + 1), starts, 2)


class Accelerator(NamedTuple):
    """A device that reports its memory in use."""

    taken: int

    def memory_stats(self):
        return {"bytes_limit": 1000, "bytes_in_use": self.taken}


def test_free_memory_is_that_of_the_fullest_device(sampler, monkeypatch):
    devices = [Accelerator(10), Accelerator(300)]
    monkeypatch.setattr(Mesh, "local_devices", devices)
    split = dataclasses.replace(sampler.model, mesh=make_mesh((2, 1, 1), jax.devices()[:2]))
    assert capacities.measure_free_bytes(split) == 700
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert capacities.measure_free_bytes(sampler.model) == 990  # the first alone is used


def test_cpus_of_one_machine_share_its_memory(sampler, monkeypatch):
    monkeypatch.setattr(capacities, "read_available_bytes", lambda: 1001)
    mesh = make_mesh((2, 1, 2), jax.devices()[:4])
    models = [dataclasses.replace(sampler.model, mesh=mesh) for mesh in (None, mesh)]
    assert [capacities.measure_free_bytes(model) for model in models] == [1001, 250]


@pytest.mark.parametrize(
    "bagel, mode, given, expected",
    [
        (True, "think", "", THINK),
        (True, "think", "Think twice.", "Think twice."),
        (True, "single_pass", "", ""),
        (False, "think", "", ""),
        (False, "think", "Think twice.", "Think twice."),
    ],
)
def test_bagel_thinks_with_its_system_text_and_others_without(sampler, monkeypatch, bagel, mode, given, expected):
    """In the contexts, in the room for them and in the record of the trajectory."""
    monkeypatch.setattr(ModelConfig, "is_bagel", bagel)
    settings = dataclasses.replace(make_base_settings(mode), system=given, max_prompt_tokens=40, max_images=1)
    starts, tokenizer = sampler.make_starts(["a red circle"], settings=settings), sampler.model.tokenizer
    batch = by_the_token(sampler).make_batch(starts, settings)
    room = capacities.compute_capacity(batch.model, settings, starts)[0]
    texts = [tokenizer.encode(text) for text in (expected, "a red circle") if text]
    opening, closing = sampler.model.text_switches
    read = [token for piece in batch.rows[0].pending for token in piece.ids]
    assert read == [token for ids in texts for token in (opening, *ids, closing)]
    assert batch.make_trajectory(0).settings["system"] == expected
    monkeypatch.setattr(settings_module, "THINK", "")
    bare = capacities.compute_capacity(batch.model, dataclasses.replace(settings, system=""), starts)[0]
    assert room == bare + (len(texts[0]) + 2 if expected else 0)


def test_only_bagels_patches_are_bagels():
    shipped = [read_config(shapes_folder(name)) for name in SHIPPED]
    found = {name: config.is_bagel for name, config in PRESETS.items()}
    assert [name for name, is_bagel in found.items() if is_bagel] == ["bagel_7b"]
    assert not any(config.is_bagel for config in shipped)


def by_the_token(sampler):
    """The sampler with tiles of one token."""
    return Sampler(dataclasses.replace(sampler.model, compute=dataclasses.replace(sampler.model.compute, block_k=1)))


def test_room_is_that_of_the_longest_trajectory_to_the_token(sampler):
    """An image has 64 VAE and 25 ViT tokens; each of three may have a plan before it and an inspection after."""
    sampler = by_the_token(sampler)
    text = SETTINGS.text.max_tokens + sampler.model.grammar.closings.shape[1] + 2
    texts, images = 100 + 2 + 6 * text, 3 * (64 + 2 + 25 + 2)
    (start,) = sampler.make_starts(["a"], settings=SETTINGS)
    assert capacities.compute_capacity(sampler.model, SETTINGS, [start]) == (texts + images, texts)
    # An existing plan is read at its own length, and no room is kept to write it.
    stage = TextStage("plan", "<ins>" + "a dog " * 60 + "</ins> <des></des>")
    texts += len(sampler.model.tokenizer.encode(stage.text)) + 2 - text
    held = dataclasses.replace(start, stages=[stage])
    assert capacities.compute_capacity(sampler.model, SETTINGS, [start, held]) == (texts + images, texts)


def test_room_after_a_draft_is_for_an_inspection_before_and_after_the_last_image(sampler):
    """A short plan counts as a long one, so that a trajectory needs the same room at every stage."""
    sampler = by_the_token(sampler)
    settings = dataclasses.replace(SETTINGS, max_images=2)
    (start,) = sampler.make_starts(["a"], settings=settings)
    draft = start.branch(0, plan=TEXTS["plan"][1]).branch(1, image=picture(0))
    text = SETTINGS.text.max_tokens + sampler.model.grammar.closings.shape[1] + 2
    texts, images = 100 + 2 + (1 + 3) * text, 2 * (64 + 2 + 25 + 2)
    assert capacities.compute_capacity(sampler.model, settings, [draft]) == (texts + images, texts)
    assert capacities.compute_capacity(sampler.model, settings, [start]) == (texts + images, texts)


def test_room_for_image_guidance_exists_only_if_it_is_used(sampler):
    def texts(mode, given=0, **changes):
        settings = dataclasses.replace(SETTINGS, mode=mode, **changes)
        return capacities.compute_capacity(
            sampler.model, settings, sampler.make_starts(["a"], [0], settings, [[picture(0)] * given])
        )[1]

    assert texts("single_pass") == texts("think") == texts("process", max_images=1) == texts("understand", 1) == 0
    assert texts("edit", 1) and texts("think", 1) and texts("process") and texts("process", 1, max_images=1)
    assert not texts("edit", 1, image=dataclasses.replace(SETTINGS.image, image_scale=1.0))
