"""The Kontext painter on diffusers' own pipeline with tiny random weights."""

import builtins
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from msgspec.structs import replace
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from pdgen.teachers.kontext import KontextPainter, KontextSettings
from pdgen.teachers.protocols import Painter, Stroke, TeacherError

SIZE = 32
WORDS = ["[PAD]", "[EOS]", "[UNK]", "add", "a", "red", "blue", "circle", "star", "."]


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]", model_max_length=16
    )


def tiny_pipeline() -> FluxKontextPipeline:
    """Make all parts of the real pipeline with some ten thousand weights; a latent is 8 pixels wide, as there."""
    torch.manual_seed(0)
    clip = {
        "vocab_size": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "projection_dim": 32,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    flux = {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    }
    vae = {
        "block_out_channels": (4,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "sample_size": SIZE,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 1,
        "norm_num_groups": 1,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1,
        "scaling_factor": 1.5,
    }
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(**vae).eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip)).eval(),
        tokenizer=tokenizer(),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ).eval(),
        tokenizer_2=tokenizer(),
        transformer=FluxTransformer2DModel(**flux).eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at these sizes threads wait thirty times as long as they work
    yield tiny_pipeline()
    torch.set_num_threads(threads)


SETTINGS = KontextSettings("tiny", device="cpu", dtype="float32", size=SIZE, steps=2)


def stroke(instruction="add a red circle .", previous=None, seed=0):
    return Stroke(instruction=instruction, previous=previous, scene=None, seed=seed)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def test_each_part_of_a_stroke_counts_and_equal_strokes_give_equal_bytes(pipeline):
    painter: Painter = KontextPainter(SETTINGS, pipeline)
    assert painter.name == "tiny"
    first = painter.paint(stroke())
    assert (first.shape, first.dtype) == ((SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(first, painter.paint(stroke()))
    seen = [first, painter.paint(stroke(seed=1)), painter.paint(stroke("add a blue star ."))]
    seen += [painter.paint(stroke(previous=picture(0))), painter.paint(stroke(previous=picture(1)))]
    assert len({p.tobytes() for p in seen}) == 5


def test_it_equals_the_pipeline_called_directly(pipeline):
    before = picture(3)
    drawn = KontextPainter(SETTINGS, pipeline).paint(stroke(previous=before, seed=5))
    by_hand = pipeline(
        image=torch.from_numpy(before).permute(2, 0, 1)[None].float() / 255,
        prompt="add a red circle .",
        height=SIZE,
        width=SIZE,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(5),
        max_area=SIZE * SIZE,
        _auto_resize=False,
        output_type="np",
    ).images[0]
    assert np.abs(drawn - 255 * by_hand).max() < 1.01


def test_settings_reach_the_pipeline(pipeline):
    usual = KontextPainter(SETTINGS, pipeline).paint(stroke())
    for changed in ({"steps": 3}, {"guidance_scale": 4.0}):
        other = KontextPainter(replace(SETTINGS, **changed), pipeline).paint(stroke())
        assert (other != usual).any()
    wide = KontextPainter(replace(SETTINGS, size=48), pipeline)
    first = wide.paint(stroke())
    assert first.shape == (48, 48, 3) == wide.paint(stroke(previous=first)).shape


@pytest.mark.parametrize(
    ("stroke", "words"),
    [
        (stroke(" "), "instruction is empty"),
        (stroke(previous=picture(0)[:16]), r"the picture before is \(16, 32, 3\), expected \(32, 32, 3\)"),
    ],
)
def test_strokes_it_cannot_paint(pipeline, stroke, words):
    with pytest.raises(TeacherError, match=words):
        KontextPainter(SETTINGS, pipeline).paint(stroke)


@pytest.mark.parametrize("size", [40, 0])
def test_sizes_it_cannot_paint(pipeline, size):
    with pytest.raises(TeacherError, match=f"size = {size}: this pipeline needs a multiple of 16"):
        KontextPainter(replace(SETTINGS, size=size), pipeline).paint(stroke())


def test_a_checkpoint_is_loaded_at_the_first_picture(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "tiny")
    painter = KontextPainter(replace(SETTINGS, checkpoint=str(tmp_path / "tiny")))
    assert painter._pipeline is None
    np.testing.assert_array_equal(painter.paint(stroke()), KontextPainter(SETTINGS, pipeline).paint(stroke()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": "{tmp}/nothing"}, "nothing on cpu in float32: "),
        ({"dtype": "float99"}, "in float99: "),
        ({"device": "cuda:99"}, "on cuda:99 in"),
    ],
)
def test_what_cannot_be_loaded(pipeline, tmp_path, monkeypatch, changes, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipeline.save_pretrained(tmp_path / "tiny")
    settings = replace(SETTINGS, **{"checkpoint": str(tmp_path / "tiny"), **changes})
    settings = replace(settings, checkpoint=settings.checkpoint.format(tmp=tmp_path))
    with pytest.raises(TeacherError, match=words) as fault:
        KontextPainter(settings).paint(stroke())
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("missing", ["torch", "diffusers", "transformers"])
def test_without_the_extra(monkeypatch, missing):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ImportError(f"No module named {missing!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(TeacherError, match=r"needs the extra 'teachers' .*pip install 'pdgen\[teachers\]'"):
        KontextPainter(SETTINGS).paint(stroke())
