"""Folders of images: missing, misnumbered and foreign files are named; generation resumes."""

import json
import pathlib
import shutil

import PIL.Image
import pytest

from pdgen.evaluate import folder as folders
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.shapes import make_benchmark
from pdgen.sequence.trajectory_folder import load_trajectory
from tests.evaluate.painted import generate

PROMPTS = make_benchmark({"single_object": 2, "position": 1})
JOBS = folders.make_geneval_jobs(PROMPTS, samples=2, seed=7)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "whole"
    folders.begin_generation(path, {"strategy": "painted"}, JOBS)
    folders.generate_images(path, path.parent / "trajectories", JOBS, generate, 4)
    folders.write_metadata(path, PROMPTS)
    return path


@pytest.fixture
def images(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole, tmp_path / "images"))


def refusal(images, prompts=PROMPTS, samples=2):
    with pytest.raises(EvaluationError) as caught:
        folders.find_samples(images, prompts, samples)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_official_layout(whole):
    files = folders.find_samples(whole, PROMPTS, 2)
    names = [[str(path.relative_to(whole)) for path in paths] for paths in files]
    assert names == [[f"0000{i}/samples/0000{j}.png" for j in range(2)] for i in range(3)]
    for number, prompt in enumerate(PROMPTS):
        lines = (whole / f"0000{number}" / "metadata.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [prompt.raw]
    assert folders.read_image(files[0][0]).size == (64, 64)


def test_seeds_are_recorded_and_never_used_twice(whole):
    record = json.loads((whole / "generation.json").read_text())
    assert record["made_by"] == {"strategy": "painted"}
    assert list(record["jobs"].values()) == [
        [p.metadata.prompt, 7 + 2 * i + j] for i, p in enumerate(PROMPTS) for j in range(2)
    ]


def test_generation_resumes(images):
    before = {path: path.stat().st_mtime_ns for path in images.rglob("*.png")}
    for name in ("00001/samples/00000.png", "00002/samples/00001.png"):
        (images / name).unlink()
    asked, told = [], []

    def counting(prompts, seeds):
        asked.extend(zip(prompts, seeds))
        return generate(prompts, seeds)

    folders.begin_generation(images, {"strategy": "painted"}, JOBS)
    folders.generate_images(images, images.parent / "t", JOBS, counting, 4, told.append)
    assert asked == [(JOBS[2].prompt, 9), (JOBS[5].prompt, 12)]
    assert told == [4, 2]
    after = {path: path.stat().st_mtime_ns for path in images.rglob("*.png")}
    assert sum(before[path] != time for path, time in after.items()) == 2


def test_a_killed_generator_leaves_only_whole_images(tmp_path):
    def dies(prompts, seeds):
        if seeds[0] > 7:
            raise KeyboardInterrupt
        return generate(prompts, seeds)

    path = tmp_path / "images"
    folders.begin_generation(path, {}, JOBS)
    with pytest.raises(KeyboardInterrupt):
        folders.generate_images(path, tmp_path / "t", JOBS, dies, 2)
    assert [p.name for p in sorted(path.rglob("*.png"))] == ["00000.png", "00001.png"]


def test_a_run_killed_between_trajectory_and_image_resumes(tmp_path):
    """The trajectory is kept, and the same image is made again."""

    def make():
        folders.generate_images(tmp_path / "images", tmp_path / "trajectories", JOBS[:2], generate, 2)

    make()
    image, trajectory = tmp_path / "images" / f"{JOBS[1].name}.png", tmp_path / "trajectories" / JOBS[1].name
    before = image.read_bytes()
    image.unlink()
    make()
    assert image.read_bytes() == before and load_trajectory(trajectory).seed == JOBS[1].seed


def test_a_folder_holds_one_kind_of_images(images, tmp_path):
    with pytest.raises(EvaluationError, match="was begun with strategy='painted', now it is 'process'"):
        folders.begin_generation(images, {"strategy": "process"}, JOBS)
    with pytest.raises(EvaluationError, match="other prompts, seeds or samples"):
        folders.begin_generation(images, {"strategy": "painted"}, folders.make_geneval_jobs(PROMPTS, 2, 8))
    (images / "generation.json").write_text("[]")
    with pytest.raises(EvaluationError, match="not the record of a generation"):
        folders.begin_generation(images, {"strategy": "painted"}, JOBS)
    (images / "generation.json").unlink()
    with pytest.raises(EvaluationError, match=r"holds images but no generation\.json"):
        folders.begin_generation(images, {"strategy": "painted"}, JOBS)


def test_keys_that_ask_for_nothing_do_not_change_the_list(images, tmp_path):
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps(one.raw | {"source": "mine", "weight": 2}) + "\n" for one in PROMPTS) + "\n")
    more = folders.read_prompts(path)
    assert len(more) == len(PROMPTS) and more[0].raw["source"] == "mine"
    assert folders.find_samples(images, more, 2) == folders.find_samples(images, PROMPTS, 2)
    folders.write_metadata(images, more)
    assert folders.find_samples(images, PROMPTS, 2)


def test_missing_prompts_and_samples_are_named(images):
    shutil.rmtree(images / "00001")
    assert "1 of 3 prompts are missing: 00001" in refusal(images)
    shutil.copytree(images / "00000", images / "00001")
    (images / "00001" / "metadata.jsonl").write_text(json.dumps(PROMPTS[1].raw))
    (images / "00001" / "samples" / "00001.png").unlink()
    said = refusal(images)
    assert "1 of 3 prompts do not hold samples 0 to 1: 00001; the first holds 00000.png" in said
    assert "3 of 3 prompts do not hold samples 0 to 3" in refusal(images, samples=4)
    assert "--samples" in said


def test_wrong_numbering_is_named(images):
    (images / "00002").rename(images / "00003")
    assert "00003: no prompt of the list has that number (3 prompts are 00000 to 00002)" in refusal(images)
    (images / "00003").rename(images / "2")
    assert "2: no prompt of the list has that number" in refusal(images)
    (images / "2").rename(images / "00002")
    (images / "00002" / "samples" / "00001.png").rename(images / "00002" / "samples" / "00002.png")
    assert "do not hold samples 0 to 1: 00002; the first holds 00000.png, 00002.png" in refusal(images)


def test_a_number_that_two_samples_share_is_named(images):
    samples = images / "00000" / "samples"
    shutil.copy(samples / "00001.png", samples / "1.png")
    assert "00000; the first holds 00000.png, " in refusal(images)


def test_images_of_another_list_are_named(images, tmp_path):
    said = refusal(images, [PROMPTS[1], PROMPTS[0], PROMPTS[2]])
    assert f"is of {PROMPTS[0].raw['prompt']!r}, but line 1 of the list is {PROMPTS[1].raw['prompt']!r}" in said
    assert "00002: no prompt of the list has that number" in refusal(images, PROMPTS[:2])
    other = dict(PROMPTS[0].raw, include=[{"class": "heart", "count": 2}])
    (images / "00000" / "metadata.jsonl").write_text(json.dumps(other))
    assert "or asks for something else" in refusal(images)
    for content in ("{", "[]", '{"prompt": "a"}', b"\xff"):
        (images / "00000" / "metadata.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
        assert "00000/metadata.jsonl: metadata: " in refusal(images)
    (tmp_path / "wise").mkdir()
    (tmp_path / "wise" / "1.png").write_bytes(b"")
    assert "holds no folders 00000, 00001, ..." in refusal(tmp_path / "wise")
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_an_image_is_read_upright(tmp_path):
    """Orientation 6: the first stored row is the right side."""
    image, exif = PIL.Image.new("RGB", (4, 2)), PIL.Image.Exif()
    image.putpixel((0, 0), (255, 0, 0))
    exif[0x0112] = 6
    image.save(tmp_path / "00000.png", exif=exif)
    upright = folders.read_image(tmp_path / "00000.png")
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(whole, tmp_path, content):
    good = (whole / "00000" / "samples" / "00000.png").read_bytes()
    path = tmp_path / "00000.png"
    path.write_bytes(good[: len(good) // 2] if content is None else content)
    with pytest.raises(EvaluationError, match=r"00000\.png: not a readable PNG"):
        folders.read_image(path)


def test_a_prompt_list_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "metadata.jsonl"
    folders.write_prompts(path, PROMPTS)
    assert folders.read_prompts(path) == PROMPTS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no prompt"),
        (None, "No such file"),
        ('{"tag": "a", "prompt": "b", "include": []}\n{"tag": "a"}', "line 2: Object missing required field `include`"),
        ('{"Prompt": "a", "Explanation": "b", "prompt_id": 1}', "list of WISE; pass --benchmark=wise"),
        ('[\n {"Prompt": "a",\n "prompt_id": 1}]', "list of WISE; pass --benchmark=wise"),
    ],
)
def test_other_files_are_not_prompt_lists(tmp_path, content, words):
    path = tmp_path / "metadata.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=words) as caught:
        folders.read_prompts(path)
    assert str(path) in str(caught.value)
