"""The sampler: grammar, contexts, limits, and the independence of a trajectory from its batch."""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.checkpoints.load import LoadedModel
from pdgen.config import ComputeConfig
from pdgen.models.context import add_text, empty_cache
from pdgen.sample.batch import Change
from pdgen.sample.compiled import Compiler
from pdgen.sample.model import make_model
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleError
from pdgen.sample.text import count_text_slots
from pdgen.sequence import layout
from pdgen.sequence.grammar import KINDS, SWITCHES
from pdgen.sequence.modes import check_kinds, image_stage
from pdgen.sequence.trajectory import (
    ImageStage,
    TextStage,
    parse_plan,
    parse_refine,
    segment_kind,
)
from tests.sample.conftest import PROMPTS, SEEDS, SETTINGS, TERSE, outcome, recording, restrict, use


def segment_tokens(sampler, segments):
    """List (mode of attention, tokens) of each copy that the segments put into a context."""
    config = sampler.model.config
    for segment in segments:
        if segment.kind == "image":
            pixels = segment.image.pixels.shape[1:3]
            yield "full", (pixels[0] // config.latent_stride) * (pixels[1] // config.latent_stride) + 2
            yield "full", segment.image.patches.shape[1] + 2
        else:
            yield "causal", len(segment.ids) + 2


def grown(sampler, segments):
    """Return (length, rotary) of a context that holds the segments, by the layout's own rules."""
    length = rotary = 0
    for mode, tokens in segment_tokens(sampler, segments):
        length, rotary = length + tokens, layout.advance(rotary, mode, tokens)
    return length, rotary


@pytest.fixture
def narrow(sampler, whole_grammar):
    """A function that gives the sampler another grammar: words by state, a free part, what may follow each kind."""
    automaton = sampler.model.automaton

    def narrowed(words, free, following):
        switches = whole_grammar.switches.copy()
        for kind, allowed in following.items():
            switches[KINDS.index(kind)] = [switch in allowed for switch in SWITCHES]
        narrower = restrict(whole_grammar, sampler.model.tokenizer, TERSE | words, free)
        use(sampler, dataclasses.replace(narrower, switches=switches))

    yield narrowed
    use(sampler, automaton)


def test_the_recorded_batch_takes_every_turn(histories):
    kinds = {segment.kind for segments in histories for segment in segments}
    assert kinds == {"prompt", "plan", "image", "inspect", "inspect+refine"}
    assert len({len(segments) for segments in histories}) > 1  # rows end at different times


def test_trajectories_obey_the_grammar(recorded, histories):
    for trajectory, segments in zip(recorded.drawn, histories):
        kinds = ["prompt", *map(segment_kind, trajectory.stages)]
        assert kinds == [segment.kind for segment in segments]
        check_kinds(kinds, complete=trajectory.stop_reason == "finished")
        drawn = [(n, stage) for n, stage in enumerate(trajectory.stages, 1) if isinstance(stage, ImageStage)]
        assert [stage.stage for _, stage in drawn] == [image_stage(kinds[:n]) for n, _ in drawn]
        assert [(stage.width, stage.height) for _, stage in drawn] == [image.size for image in trajectory.images]


def test_costs_count_tokens_and_evaluations(recorded):
    # All three steps of four timesteps lie in the guidance interval: full and text branch, later image too.
    for trajectory in recorded.drawn:
        later = len(trajectory.images) - 1
        assert trajectory.costs["network_evaluations"] == 3 * (2 + 3 * later)
        assert trajectory.costs["guidance_branches"] == 3 * (1 + 2 * later)
        first, *others = [stage.file for stage in trajectory.stages if isinstance(stage, ImageStage)]
        applied = {f"guidance.{first}": "text 4 in 3 of 3 steps"}
        applied |= {f"guidance.{file}": "text 4 in 3 of 3 steps, image 1.5 in 3" for file in others}
        assert {name: text for name, text in trajectory.settings.items() if name.startswith("guidance.")} == applied
        texts = [stage for stage in trajectory.stages if isinstance(stage, TextStage)]
        assert trajectory.costs["text_tokens"] == sum(stage.tokens for stage in texts)
        assert trajectory.costs["batch_seconds"] >= max(s.seconds for s in trajectory.stages) > 0


def test_progress_has_a_line_per_segment(recorded):
    lines = [line for line in recorded.lines if not line.startswith("compiled ")]
    assert len(lines) == sum(len(drawn.stages) for drawn in recorded.drawn)
    for drawn, seed in zip(recorded.drawn, SEEDS):
        words = [line.split(",")[0] for line in lines if line.startswith(f"seed {seed}: ")]
        assert words == [f"seed {seed}: {stage.stage}" for stage in drawn.stages]


def test_every_token_is_prefilled_once(sampler, recorded, histories):
    """The count of evaluated tokens, and the final context, are the sum of the segments."""
    last = recorded.recorder.calls[-1].state.full
    expected = [grown(sampler, segments) for segments in histories]
    assert [t.costs["prefilled_tokens"] for t in recorded.drawn] == [length for length, _ in expected]
    assert list(zip(last.length, last.rotary))[: len(expected)] == expected
    stages = [sum(s.tokens + 2 * isinstance(s, TextStage) for s in t.stages) for t in recorded.drawn]
    prompts = [len(segments[0].ids) + 2 for segments in histories]
    assert [length for length, _ in expected] == np.add(stages, prompts).tolist()


def test_prompts_hold_no_switch_tokens(sampler, recorded, histories):
    tokens = sampler.model.tokenizer
    specials = {tokens.im_start, tokens.im_end, tokens.vision_start, tokens.vision_end}
    for (prompt, *_), text in zip(histories, PROMPTS):
        assert not specials & set(prompt.ids) and tokens.decode(prompt.ids) == text
    read = collections.defaultdict(list)
    for call in recorded.recorder.named("prefill"):
        ids, count, _ = call.given[-1]
        if call.static[1] == "full":
            for place, slot in call.rows:
                assert call.state.full.length[slot] == len(read[slot])
                read[slot] += ids[place, : count[place]].tolist()
    assert [read[n] for n in range(3)] == [[tokens.im_start, *h[0].ids, tokens.im_end] for h in histories]


def test_text_guidance_sees_no_text_since_the_last_image(sampler, recorded, histories):
    drawn = collections.Counter()
    for call in recorded.recorder.named("draw"):
        for _, slot in call.rows:
            images = [place for place, segment in enumerate(histories[slot]) if segment.kind == "image"]
            until = images[drawn[slot] - 1] + 1 if drawn[slot] else 0
            view = call.state.view_length[slot], call.state.view_rotary[slot]
            assert view == grown(sampler, histories[slot][:until])
            drawn[slot] += 1
    assert list(drawn.values()) == [len(t.images) for t in recorded.drawn]


def test_image_guidance_sees_the_texts_alone_at_their_own_positions(sampler, recorded, histories):
    """At every image the context equals one that reads prompt and texts at once."""
    tokens, config = sampler.model.tokenizer, sampler.model.config
    grow = jax.jit(add_text, static_argnums=(0, 1))
    drawn, checked = collections.Counter(), 0
    for call in recorded.recorder.named("draw"):
        for _, slot in call.rows:
            segments, texts = histories[slot], call.state.texts
            place = [n for n, segment in enumerate(segments) if segment.kind == "image"][drawn[slot]]
            drawn[slot] += 1
            ids = [[tokens.im_start, *s.ids, tokens.im_end] for s in segments[:place] if s.kind != "image"]
            joined = list(itertools.chain(*ids))
            assert texts.length[slot] == texts.rotary[slot] == len(joined)
            length = texts.k.shape[2]
            padded = jnp.asarray([joined + [0] * (length - len(joined))], jnp.int32)
            cache, _ = grow(
                config,
                ComputeConfig(),
                sampler.model.params["model"],
                empty_cache(config, 1, length),
                padded,
                jnp.array([len(joined)]),
            )
            for name in ("k", "v"):
                expected = np.asarray(getattr(cache, name))[:, 0, : len(joined)]
                actual = getattr(texts, name)[:, slot, : len(joined)]
                np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
                checked += actual.size
    assert checked


def test_first_images_are_drawn_without_image_guidance_and_later_ones_with_it(recorded):
    drawn = collections.Counter()
    for call in recorded.recorder.named("draw"):
        image_guidance = call.static[3]
        for _, slot in call.rows:
            assert image_guidance == bool(drawn[slot])
            drawn[slot] += 1


def test_groups_hold_only_rows_that_take_part(recorded):
    """Groups of two out of four slots, and as few as possible: none holds an ended row."""
    for name in ("write_text", "read_image", "draw"):
        calls = recorded.recorder.named(name)
        assert all(1 <= len(call.rows) <= 2 and len(call.state.logits) == 4 for call in calls)
        worked = sum(len(call.rows) for call in calls)
        stages = [stage for trajectory in recorded.drawn for stage in trajectory.stages]
        assert worked == sum(isinstance(stage, TextStage) == (name == "write_text") for stage in stages)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_permuted_rows_give_the_same_trajectories(sampler, recorded, order):
    drawn = sampler([PROMPTS[n] for n in order], [SEEDS[n] for n in order], SETTINGS)
    assert [outcome(one) for one in drawn] == [outcome(recorded.drawn[n]) for n in order]


def test_a_row_does_not_depend_on_the_others(sampler, recorded):
    """The others have prompts of other lengths, other seeds, and so other numbers of segments."""
    drawn = sampler(["b", PROMPTS[0], "a photo of three dogs"], [1, SEEDS[0], 3], SETTINGS)
    assert outcome(drawn[1]) == outcome(recorded.drawn[0])
    again = sampler([PROMPTS[2], "c " * 40, "d"], [SEEDS[2], 8, 9], SETTINGS)
    assert outcome(again[0]) == outcome(recorded.drawn[2])


def test_a_row_alone_is_the_same_to_the_bit(sampler, recorded):
    """One prompt, in a batch with half as many slots: groups have the same size."""
    (alone,) = sampler(PROMPTS[:1], SEEDS[:1], SETTINGS)
    assert outcome(alone) == outcome(recorded.drawn[0])


def test_more_prompts_than_slots(sampler, recorded):
    """A waiting trajectory takes the slot of an ended one; ``done`` gets each as it ends."""
    ended = []
    prompts, seeds = ["b", "c", "d", "e", *PROMPTS], [1, 2, 3, 4, *SEEDS]  # four slots
    drawn = sampler(prompts, seeds, SETTINGS, done=lambda number, one: ended.append((number, one)))
    assert [outcome(one) for one in drawn[4:]] == [outcome(one) for one in recorded.drawn]
    assert sorted(number for number, _ in ended) == list(range(7)) and all(drawn[n] is one for n, one in ended)


def test_other_seeds_give_other_trajectories(sampler):
    drawn = sampler(["a cat"] * 3, [0, 1, 1], SETTINGS)
    assert outcome(drawn[0])[1] != outcome(drawn[1])[1] and outcome(drawn[1]) == outcome(drawn[2])


def test_nothing_is_compiled_twice(sampler, recorded):
    before, lines = sampler.model.compiler.seconds, []
    drawn = sampler(["one", "other " * 20, "prompts"], [0, 2, 4], SETTINGS, progress=lines.append)
    assert sampler.model.compiler.seconds == before and not any(line.startswith("compiled") for line in lines)
    assert drawn[0].costs["compile_seconds"] == 0


def test_contexts_hold_the_longest_trajectories(sampler, recorded, narrow):
    """The longest prompt, every plan cut at its limit, every image inspected, up to the limit of images."""
    # A random model does not close a tag by accident.
    narrow(
        {"after_image:": ["<refine"], "refine:": ["<"]},
        "ins",
        {"image": ["text"], "inspect+refine": ["text"]},
    )
    longest = "e " * (SETTINGS.max_prompt_tokens // 2)
    with recording(sampler) as recorder:
        drawn = sampler([longest] * 3, SEEDS, SETTINGS)
    context = recorder.calls[-1].state.full
    steps = ["plan", "sketch", "inspect"] + ["plan", "refine", "inspect"] * (SETTINGS.max_images - 1)
    for n, trajectory in enumerate(drawn):
        assert trajectory.stop_reason == "step limit"
        assert [stage.stage for stage in trajectory.stages] == steps
        texts = [stage for stage in trajectory.stages if isinstance(stage, TextStage)]
        assert all(parse_plan(stage.text)[1] == "" for stage in texts[::2])
        assert {stage.text for stage in texts[1::2]} == {"<refine></refine>"}
        assert trajectory.costs["texts_cut"] == SETTINGS.max_images
        assert all(
            SETTINGS.text.max_tokens < stage.tokens <= count_text_slots(SETTINGS.text, sampler.model.grammar) - 2
            for stage in texts[::2]
        )
        tokens = sum(stage.tokens + 2 * isinstance(stage, TextStage) for stage in trajectory.stages)
        assert context.length[n] == SETTINGS.max_prompt_tokens + 2 + tokens <= context.k.shape[2]


@pytest.mark.parametrize("switch", ["image", "text", "end"])
def test_a_cut_inspection_ends_a_trajectory(sampler, recorded, narrow, switch):
    narrow({"after_image:": ["<refine"]}, "refine", {"image": ["text"], "inspect+refine": [switch]})
    for trajectory in sampler(PROMPTS, SEEDS, SETTINGS):
        assert trajectory.stop_reason == "token limit" and len(trajectory.images) == 1
        assert trajectory.stages[-1].tokens > SETTINGS.text.max_tokens
        assert parse_refine(trajectory.stages[-1].text) is not None


def test_a_replaced_text_is_no_longer_truncated(sampler, recorded, narrow):
    narrow({"after_image:": ["<refine"]}, "refine", {"image": ["text"], "inspect": ["end"]})
    change = lambda row, stage, image: Change(text="o") if stage.stage == "inspect" else None  # noqa: E731
    for trajectory in sampler(PROMPTS, SEEDS, SETTINGS, review=change):
        assert trajectory.costs["texts_cut"] == 1 and trajectory.stages[-1].text == "o"
        assert trajectory.stop_reason == "finished"


def test_an_empty_inspection_takes_its_two_switch_tokens(sampler, recorded, narrow):
    narrow({"after_image:": [""]}, "", {"image": ["text"], "inspect": ["text"]})
    with recording(sampler) as recorder:
        drawn = sampler(PROMPTS, SEEDS, SETTINGS)
    texts = recorder.named("prefill")[-1].result.texts
    for n, trajectory in enumerate(drawn):
        assert trajectory.stop_reason == "step limit" and len(trajectory.images) == SETTINGS.max_images
        written = [stage for stage in trajectory.stages if isinstance(stage, TextStage)]
        assert sum(not stage.text for stage in written) == SETTINGS.max_images
        expected = len(sampler.model.tokenizer.encode(PROMPTS[n])) + 2 + sum(stage.tokens + 2 for stage in written)
        assert texts.length[n] == texts.rotary[n] == expected


@pytest.mark.parametrize(
    ("prompts", "seeds", "settings", "words"),
    [
        ([], None, {}, "there is no prompt"),
        (["a", " \n"], None, {}, "a prompt is empty"),
        (["a", "e " * 51], None, {}, "prompt 2 of 2 has 102 tokens, at most 100 are allowed"),
        (["a"], [1, 2], {}, "1 prompts need as many seeds, got 2"),
        (["a"], [-1], {}, "seed -1: must be at least 0"),
        (["a"], [2**32], {}, "seed 4294967296: must be"),
        (["a"], None, {"height": 30, "width": 32}, "height=30: must be a multiple of 4 between 4 and 32 pixels"),
        (["a"], None, {"height": 32, "width": 36}, "width=36: must be a multiple of 4 between 4 and 32 pixels"),
        (["a"], None, {"height": 32}, "height=32 and width=0: give both or none"),
        (["a"], None, {"mode": "edit"}, "prompt 1 of 1: mode edit needs an image to edit"),
        (["a"], None, {"max_images": 10**9}, r"no room: .* max_images=\d+ would fit, or lower batch_size"),
        (["a"], None, {"max_images": -1}, "max_images=-1: must be at least 0"),
    ],
)
def test_impossible_requests_are_refused(sampler, prompts, seeds, settings, words):
    with pytest.raises(ValueError, match=words) as fault:
        sampler(prompts, seeds, dataclasses.replace(SETTINGS, **settings))
    assert "\n" not in str(fault.value)


def test_a_full_device_is_reported(sampler):
    class Full(Compiler):
        def __call__(self, *_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.")

    full = Sampler(dataclasses.replace(sampler.model, compiler=Full()))
    with pytest.raises(SampleError, match=r"no room on the device for 1 trajectories .*7 bytes.*; lower max_images"):
        full(["a"])


def test_computation_uses_the_stored_dtype(sampler):
    head = {"kernel": sampler.model.params["model"]["language"]["head"]["kernel"].astype(jnp.bfloat16)}
    params = {"model": {"language": {"head": head}}}
    assert make_model(LoadedModel(sampler.model.config, params, sampler.model.tokenizer)).compute.dtype == "bfloat16"
    assert sampler.model.compute.dtype == "float32"
