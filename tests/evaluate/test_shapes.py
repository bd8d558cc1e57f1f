"""The benchmark of shapes world: its form, its separation from training, and a perfect score."""

import collections
import json

import numpy as np
import pytest

from pdgen.evaluate.detectors.exact import ShapesDetector
from pdgen.evaluate.geneval.metadata import compare_graph, decode_metadata
from pdgen.evaluate.geneval.rule import TASKS, check_prompts, filter_detections, judge_detections
from pdgen.evaluate.shapes import COUNTS, make_benchmark
from pdgen.shapes import language
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.parse import parse
from pdgen.shapes.world import SHAPES
from pdgen.synthesis.leaks import normalise_prompt
from pdgen.synthesis.sample import make_prompt_graph, sample_graph
from tests.evaluate.painted import painted

KEPT_FROM_TRAINING = ("colors", "position", "color_attr", "composition")


@pytest.fixture(scope="module")
def prompts():
    return make_benchmark()


def test_every_task_is_present_and_no_prompt_repeats(prompts):
    counts = collections.Counter(p.metadata.tag for p in prompts)
    assert list(counts) == [*TASKS, "composition"]
    assert all(0 < counts[task] <= COUNTS[task] for task in COUNTS)
    assert (counts["single_object"], counts["counting"], counts["composition"]) == (10, 30, 60)
    assert len({p.metadata.prompt for p in prompts}) == len(prompts)


def test_its_form_is_genevals(prompts):
    check_prompts(prompts, SHAPES, "shapes")
    for prompt in prompts:
        assert decode_metadata(json.dumps(prompt.raw)) == prompt.metadata
    one = {p.metadata.tag: p.raw for p in prompts}
    noun = one["counting"]["include"][0]
    assert one["counting"]["exclude"] == [{"class": noun["class"], "count": noun["count"] + 1}]
    reference, subject = one["position"]["include"]
    kind, target = subject["position"]
    assert target == 0 and "position" not in reference
    article = "an" if subject["class"][0] in "aeiou" else "a"
    assert one["position"]["prompt"].startswith(f"a photo of {article} {subject['class']} {kind} a")
    assert "exclude" not in one["position"]


def test_prompts_ask_for_what_the_metadata_say(prompts):
    for prompt in prompts:
        assert compare_graph(parse(prompt.metadata.prompt), prompt.metadata) == []


def test_compositions_are_long_and_repeat_no_noun(prompts):
    sizes = collections.Counter()
    for prompt in prompts:
        nouns = [item.noun for item in prompt.metadata.include]
        assert len(set(nouns)) == len(nouns)
        if prompt.metadata.tag == "composition":
            sizes[len(nouns)] += 1
            assert all(item.color for item in prompt.metadata.include)
    # Of 60 draws with shares 0.25, 0.35, 0.25 and 0.15.
    assert set(sizes) == {3, 4, 5, 6} and 4 <= sizes[6] <= 18


def test_pairs_and_triples_are_held_out_from_training(prompts):
    for prompt in prompts:
        assert is_held_out(parse(prompt.metadata.prompt)) == (prompt.metadata.tag in KEPT_FROM_TRAINING)
    tested = {normalise_prompt(p.metadata.prompt) for p in prompts if p.metadata.tag in KEPT_FROM_TRAINING}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        task = (*TASKS, "composition")[seed % 7]
        graph = sample_graph(rng, task)
        text = language.write_prompt(rng, make_prompt_graph(rng, graph, task), task)
        assert normalise_prompt(text) not in tested and not is_held_out(parse(text))


def test_equal_seeds_give_equal_lists(prompts):
    assert make_benchmark() == prompts
    assert make_benchmark({"color_attr": 5}, seed=1) != make_benchmark({"color_attr": 5}, seed=2)
    assert len(make_benchmark({"color_attr": 5})) == 5


@pytest.mark.parametrize("task", [*TASKS, "composition"])
def test_a_right_picture_passes_and_another_prompts_fails(prompts, task):
    detector = ShapesDetector()
    some = [p for p in prompts if p.metadata.tag == task][:8]

    def right(prompt, image):
        (found,) = detector.detect([image])
        kept = filter_detections(found, prompt.metadata.tag, detector.thresholds)
        return judge_detections(prompt.metadata, kept, lambda noun, seen: detector.colors(image, noun, seen)).correct

    images = [painted(p.metadata.prompt, seed) for seed, p in enumerate(some)]
    assert all(right(prompt, image) for prompt, image in zip(some, images))
    assert not any(right(prompt, image) for prompt, image in zip(some, images[1:]))


def test_boxes_are_in_pixels():
    image = painted("a photo of a red circle", 0, 96)
    ((circle,),) = ShapesDetector().detect([image])[0].values()
    left, top, right, bottom = map(int, circle.box)
    inside = np.zeros((96, 96), bool)
    inside[top:bottom, left:right] = True
    pixels = np.asarray(image)
    assert (pixels[~inside] == pixels[0, 0]).all() and (circle.color, circle.score) == ("red", 1.0)
    assert (pixels[inside] != pixels[0, 0]).any(1).mean() > 0.6
