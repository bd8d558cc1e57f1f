"""The Mask2Former detector with a tiny random model, against the published steps written out in plain loops."""

import sys
import types

import numpy as np
import PIL.Image
import pytest
import skimage.transform
import torch
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from pdgen.evaluate.detectors.exact import load_detector
from pdgen.evaluate.detectors.mask2former import ClipColors, Mask2Former, _preprocess
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.metadata import decode_metadata
from pdgen.evaluate.geneval.rule import Detection, Thresholds, filter_detections, judge_detections
from pdgen.shapes.graph import COLORS
from pdgen.shapes.lexicon import COCO

EVERYTHING = Thresholds(score=0.0, counting=0.0)


def labels():
    names = list(COCO)
    for number, plain in enumerate(("mouse", "remote", "keyboard")):
        names[names.index(("computer mouse", "tv remote", "computer keyboard")[number])] = plain
    return dict(enumerate(names))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: on so small a model threads cost more than they gain, above all beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        id2label=labels(),
        num_queries=6,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        encoder_feedforward_dim=16,
    )
    made = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():  # so that classes differ in probability
        made.class_predictor.weight.normal_(0, 1)
    return made


def reddest(crops, noun):
    """Score a crop's colour by its middle pixel."""
    return ["red" if crop.getpixel((crop.width // 2, crop.height // 2))[0] > 128 else "blue" for crop in crops]


@pytest.fixture(scope="module")
def detector(model):
    return Mask2Former(model, reddest, EVERYTHING)


def picture(width, height, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


def bilinear(array, height, width):
    """Resize [h, w, n] with half-pixel centres and no antialiasing, by another library."""
    return skimage.transform.resize(array, (height, width), order=1, mode="edge", anti_aliasing=False)


@torch.no_grad()
def slowly(model, image):
    """Return (class, box, score) of every instance by the published steps, best first."""
    width, height = image.size
    pixels = _preprocess(image, "cpu").numpy()  # scaling has its own test
    h, w = pixels.shape[1:]
    padded = np.zeros((3, -(-h // 32) * 32, -(-w // 32) * 32), np.float32)
    padded[:, :h, :w] = pixels
    output = model(pixel_values=torch.from_numpy(padded)[None])
    classes = torch.softmax(output.class_queries_logits[0], -1).numpy()[:, :-1]
    logits = bilinear(output.masks_queries_logits[0].numpy().transpose(1, 2, 0), *padded.shape[1:])[:h, :w]
    logits = bilinear(logits, height, width)
    found = []
    for flat in np.argsort(-classes.ravel())[:100]:
        query, label = divmod(int(flat), 80)
        mask = logits[:, :, query]
        if not (mask > 0).any():
            continue
        sure = (1 / (1 + np.exp(-mask[mask > 0]))).mean()
        y, x = np.nonzero(mask > 0)
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        found.append((COCO[label], box, classes[query, label] * sure, mask > 0))
    return found


@pytest.mark.parametrize("size", [(30, 24), (200, 9)])
def test_pictures_are_scaled_to_a_short_side_of_800_or_a_long_one_of_1333(size):
    image = picture(*size)
    scale = min(800 / min(size), 1333 / max(size))
    h, w = int(size[1] * scale + 0.5), int(size[0] * scale + 0.5)
    assert (h == 800) == (size == (30, 24)) and (w == 1333) == (size == (200, 9))
    expected = np.rint(bilinear(np.asarray(image, np.float64), h, w))
    expected = (expected - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    ours = _preprocess(image, "cpu").permute(1, 2, 0).numpy()
    # The two libraries round halves differently, so values may be one of 256 apart.
    assert ours.shape == (h, w, 3) and np.abs(ours - expected).max() < 0.018
    assert np.mean(np.abs(ours - expected) > 1e-4) < 0.01


# Long and thin, so that the scaled picture is small.
@pytest.mark.parametrize("size", [(9, 200), (200, 9)])
def test_instances_match_the_published_steps(model, detector, size):
    image = picture(*size)
    (found,) = detector.detect([image])
    expected = slowly(model, image)
    assert len(expected) > 20 and sum(map(len, found.values())) == len(expected)
    for noun, box, score, mask in expected:
        near = [o for o in found[noun] if abs(o.score - score) < 1e-5]
        assert any(o.box == box and (o.mask == mask).all() for o in near)


def test_answers_do_not_depend_on_the_batch(detector):
    images = [picture(9, 200), picture(6, 120, 1), picture(9, 200, 2)]
    together = detector.detect(images)
    for image, answer in zip(images, together):
        (alone,) = detector.detect([image])
        assert list(alone) == list(answer)
        for noun in alone:
            assert [o.box for o in alone[noun]] == [o.box for o in answer[noun]]
            assert [o.score for o in alone[noun]] == pytest.approx([o.score for o in answer[noun]], abs=1e-5)
    assert {o.mask.shape for found in together[1].values() for o in found} == {(120, 6)}


def test_instances_below_the_threshold_are_skipped(model, detector):
    (everything,) = detector.detect([picture(9, 200)])
    scores = sorted(o.score for found in everything.values() for o in found)
    least = scores[len(scores) // 2]
    (some,) = Mask2Former(model, reddest, Thresholds(least, 0.9)).detect([picture(9, 200)])
    above = {noun: kept for noun, found in everything.items() if (kept := [o.score for o in found if o.score > least])}
    kept_of_some = {noun: [o.score for o in found if o.score > least] for noun, found in some.items()}
    assert {noun: scores for noun, scores in kept_of_some.items() if scores} == above
    assert sum(map(len, some.values())) < len(scores)


def test_a_crop_shows_the_object_and_grey():
    seen = []
    image = PIL.Image.new("RGB", (10, 8), "red")
    mask = np.zeros((8, 10), bool)
    mask[2:4, 3:5] = mask[5, 3] = True
    detector = Mask2Former.__new__(Mask2Former)
    detector._color_of = lambda crops, noun: seen.extend(crops) or ["red"]
    assert detector.colors(image, "dog", [Detection((3.0, 2.0, 5.0, 6.0), 0.9, mask=mask)]) == ["red"]
    red, grey = (255, 0, 0), (0x99,) * 3
    assert np.asarray(seen[0]).reshape(-1, 3).tolist() == [list(c) for c in (red, red, red, red, grey, grey, red, grey)]


def test_colours_and_boxes_pass_the_rule(detector):
    image = picture(9, 200)
    (found,) = detector.detect([image])
    noun = next(iter(found))
    raw = f'{{"tag": "colors", "prompt": "a", "include": [{{"class": "{noun}", "count": 1, "color": "%s"}}]}}'
    objects = filter_detections(found, "colors", EVERYTHING)
    color = detector.colors(image, noun, objects[noun][:1])[0]
    for wanted in ("red", "blue"):
        verdict = judge_detections(decode_metadata(raw % wanted), objects, lambda n, o: detector.colors(image, n, o))
        assert verdict.correct == (wanted == color)


RGB = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


class TinyClip(torch.nn.Module):
    """A CLIP that embeds a picture as its mean colour, and a text as the colours that it names."""

    def encode_image(self, images):
        return images.mean((2, 3))

    def encode_text(self, texts):
        # The length grows with the text: without normalising, long templates would outweigh the short one.
        return torch.tensor([[len(t) * v for v in RGB.get(self.color(t), (0.1, 0.1, 0.1))] for t in texts])

    @staticmethod
    def color(text):
        return next(c for c in COLORS if f" {c} " in text or f" {c}-colored " in text)


class Texts(list):
    """A tokenizer's output."""

    def to(self, device):
        return self


def pixels_of(image):
    return torch.tensor(np.array(image.resize((4, 4)), np.float32)).permute(2, 0, 1) / 255


def test_clip_scores_every_colour_by_three_templates():
    asked = []

    def tokenize(texts):
        asked.extend(texts)
        return Texts(texts)

    colors = ClipColors(TinyClip(), pixels_of, tokenize)
    crops = [PIL.Image.new("RGB", (4, 4), color) for color in ("#0000ff", "#e01020", "#10c020")]
    assert colors(crops, "dog") == ["blue", "red", "green"]
    assert asked[:3] == ["a photo of a red dog", "a photo of a red-colored dog", "a photo of a red object"]
    assert len(asked) == 30
    colors(crops, "dog")
    assert len(asked) == 30  # the class's texts are embedded once


def test_clip_weighs_templates_and_colours_alike():
    """Long embeddings and templates that agree give no advantage: cosines by hand."""
    vectors = {
        "red": [(10, 0, 0), (0, 1, 0), (0, 1, 0)],  # (1, 2, 0) / 5^0.5 where each counts alike, else (5, 1, 0) / 26^0.5
        "yellow": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],  # (1, 1, 1) / 3^0.5, of a mean with length 3^-0.5
        "blue": [(0, 0, 1)] * 3,
    }
    clip = TinyClip()
    each = [torch.tensor(vectors.get(color, [(0, 0, 0)] * 3), dtype=torch.float32) for color in COLORS]
    clip.encode_text = lambda texts: torch.cat(each)
    colors = ClipColors(clip, pixels_of, Texts)
    # (0, 1, 0.4): 0.89 red, 0.81 yellow, 0.4 blue. (0.8, 0.8, 1): 1.07 red, 1.50 yellow, 1 blue.
    crops = [PIL.Image.new("RGB", (4, 4), color) for color in ("#00ff66", "#ccccff")]
    assert colors(crops, "dog") == ["red", "yellow"]


class OpenClip(types.ModuleType):
    """A stand-in for open_clip: it returns the tiny model and records what was requested."""

    def __init__(self):
        super().__init__("open_clip")
        self.asked = []

    def create_model_and_transforms(self, *names, **how):
        self.asked.append((names, how))
        if names[1] != "openai":
            raise RuntimeError("no such weights")
        return TinyClip(), None, pixels_of

    def get_tokenizer(self, name):
        return Texts


def test_the_published_weights_are_loaded(model, tmp_path, monkeypatch):
    clip = OpenClip()
    monkeypatch.setitem(sys.modules, "open_clip", clip)
    model.save_pretrained(tmp_path / "weights")
    detector = load_detector("mask2former", str(tmp_path / "weights"), "cpu")
    # Without QuickGELU, OpenAI's weights compute something else.
    assert clip.asked == [(("ViT-L-14", "openai"), {"force_quick_gelu": True})]
    assert (detector.thresholds.score, detector.thresholds.counting, detector.thresholds.max_objects) == (0.3, 0.9, 16)
    assert detector.classes == COCO and str(tmp_path / "weights") in detector.identity
    image, everything = picture(9, 200), Thresholds(0.0, 0.0)
    detector.thresholds = everything
    (found,), (expected,) = detector.detect([image]), Mask2Former(model, reddest, everything).detect([image])
    assert {noun: [o.score for o in objects] for noun, objects in found.items()} == {
        noun: [o.score for o in objects] for noun, objects in expected.items()
    }
    noun, objects = next(iter(found.items()))
    assert set(detector.colors(image, noun, objects)) <= set(COLORS)
    with pytest.raises(EvaluationError, match=r"detector mask2former: .*connect once, or name a folder"):
        load_detector("mask2former", str(tmp_path / "nowhere"), "cpu")


def test_weights_that_lack_tensors_are_refused(model, tmp_path, monkeypatch):
    """The library would fill the missing ones with random numbers."""
    monkeypatch.setitem(sys.modules, "open_clip", OpenClip())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "class_predictor" not in k},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(EvaluationError, match=r"lacks 2 of the model's tensors, such as class_predictor.bias"):
        load_detector("mask2former", str(tmp_path), "cpu")


@pytest.mark.parametrize("device", ["cuda:77", "gpu"])
def test_a_missing_device_is_named(model, tmp_path, monkeypatch, device):
    monkeypatch.setitem(sys.modules, "open_clip", OpenClip())
    model.save_pretrained(tmp_path)
    with pytest.raises(EvaluationError, match=f"--device={device}: .*; use cpu") as caught:
        load_detector("mask2former", str(tmp_path), device)
    assert "\n" not in str(caught.value)


def test_other_classes_are_refused(model):
    config = model.config
    labels = config.id2label
    try:
        config.id2label = {0: "wall", 1: "sky"}
        with pytest.raises(EvaluationError, match=r"its classes .wall, sky, .* are not COCO's 80"):
            Mask2Former(model, reddest)
    finally:
        config.id2label = labels


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(EvaluationError, match=r"open_clip.*pip install pdgen\[geneval\]"):
        load_detector("mask2former")
    with pytest.raises(EvaluationError, match="'yolo' is not one of shapes, mask2former"):
        load_detector("yolo")
