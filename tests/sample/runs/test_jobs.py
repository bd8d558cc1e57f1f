"""Jobs of sampling: files of prompts, seeds, given images, and one line for every fault."""

import hashlib

import PIL.Image
import pytest

from pdgen.sample.runs import jobs as jobs_module
from pdgen.sample.runs.jobs import GivenImage, PromptError, PromptLine, make_jobs, read_picture, read_prompts


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    PIL.Image.new("RGB", (6, 4), "red").save(path)
    return path


def test_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  two dogs \n", "utf-8")
    assert read_prompts(path) == [PromptLine("a cat"), PromptLine("two dogs")]


def test_json_lines_have_seeds_and_images_beside_the_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat", "seed": 7}\n{"prompt": "blue", "images": ["cat.png"]}\n')
    assert read_prompts(path) == [PromptLine("a cat", 7), PromptLine("blue", None, [str(tmp_path / "cat.png")])]


def test_byte_order_marks_are_dropped_and_only_line_feeds_end_lines(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes("\ufeff".encode() + '{"prompt": "a\u2028cat", "seed": 5}\r\n{"prompt": "a\x85dog"}\r\n'.encode())
    assert read_prompts(path) == [PromptLine("a\u2028cat", 5), PromptLine("a\x85dog")]
    path.write_bytes("\ufeffa cat\n".encode())
    assert read_prompts(path) == [PromptLine("a cat")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n \n", "holds no prompt"),
        ('{"prompt": "a"}\n{"prompt": 3}', "line 2: Expected `str`"),
        ('{"prompt": "a"}\na cat', "line 2: JSON is malformed"),
        ('{"prompt": "a", "speed": 1}', "line 1: Object contains unknown field `speed`"),
        ('{"prompt": " "}', "line 1: a prompt is empty"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "prompts"
    path.write_text(text)
    with pytest.raises(PromptError, match=words) as fault:
        read_prompts(path)
    assert str(path) in str(fault.value) and "\n" not in str(fault.value)


def test_files_that_are_not_text_are_named(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes", "none"):
        with pytest.raises(PromptError, match=f"{name}: cannot be read as text"):
            read_prompts(tmp_path / name)


def test_every_sample_of_a_prompt_has_its_own_seed(picture):
    made = make_jobs([PromptLine("a"), PromptLine("b", 40, [str(picture)]), PromptLine("c")], 2, 5)
    assert [(job.name, job.prompt, job.seed) for job in made] == [
        ("000", "a", 5),
        ("001", "a", 6),
        ("002", "b", 40),
        ("003", "b", 41),
        ("004", "c", 9),
        ("005", "c", 10),
    ]
    assert made[3].images == [GivenImage(str(picture), hashlib.sha256(picture.read_bytes()).hexdigest())]
    assert made[0].images == []


def test_jobs_do_not_decode_their_images(picture, monkeypatch):
    monkeypatch.setattr(jobs_module, "decode_image", lambda *_: pytest.fail("decoded"))
    (made,) = make_jobs([PromptLine("b", 40, [str(picture)])], 1, 5)
    assert made.images[0].path == str(picture)


def test_names_sort_like_numbers():
    names = [job.name for job in make_jobs([PromptLine("a")], 1001, 0)]
    assert (names[0], names[-1]) == ("0000", "1000") and names == sorted(names)


def test_seeds_and_prompts_out_of_range_are_refused():
    with pytest.raises(PromptError, match="a prompt is empty"):
        make_jobs([PromptLine("a"), PromptLine("\t")], 1, 0)
    with pytest.raises(PromptError, match="'a': seed 4294967296 must be"):
        make_jobs([PromptLine("a", 2**32 - 1)], 2, 0)


@pytest.mark.parametrize("side", [8200, 9500])
def test_an_image_that_is_absurdly_large_is_not_decoded(tmp_path, picture, monkeypatch, side):
    assert read_picture(picture).size == (6, 4)
    monkeypatch.setattr(jobs_module, "decode_image", lambda *_: pytest.fail("decoded"))
    PIL.Image.new("1", (side, side)).save(tmp_path / "large.png")
    words = f"large.png: {side} x {side} pixels are too many, at most 67,108,864 are read"
    with pytest.raises(PromptError, match=words):
        make_jobs([PromptLine("a", None, [str(tmp_path / "large.png")])], 1, 0)
    with pytest.raises(PromptError, match=words):
        read_picture(tmp_path / "large.png")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_an_image_is_named(tmp_path, content):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(PromptError, match="broken: not a readable PNG, JPEG"):
        read_picture(tmp_path / "broken")
    with pytest.raises(PromptError, match="none: No such file"):
        read_picture(tmp_path / "none")


def test_an_image_that_is_cut_off_is_named(tmp_path, picture):
    picture.write_bytes(picture.read_bytes()[:50])
    with pytest.raises(PromptError, match=r"cat.png: not a readable PNG"):
        read_picture(picture)
