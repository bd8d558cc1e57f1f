"""Training sets compared with a benchmark's prompts, and the report."""

import json

import pytest

from pdgen.data.records import Dataset, Origin, write_dataset, write_index
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.leaks import Leaks, describe_leaks, find_leaks, read_training_prompts
from tests.data.small_records import records

ASKED = ["a photo of a bench", "a photo of a dog", "a photo of a cat", "a photo of a dog"]


def test_a_benchmark_s_own_spelling_does_not_hide_a_leak():
    """Neither capitals and full stops in its list nor spaces around a training prompt."""
    found = find_leaks([" A red Fox.\t", "a grey owl"], ["A red Fox.", "A grey owl!"])
    assert (found.exact, found.normalised) == (["A red Fox."], ["A grey owl!"])


def test_exact_and_normalised_leaks_are_distinguished():
    training = ["A photo of a dog.", "a photo of a bench", "A PHOTO of a bench", "a photo of a cow"]
    found = find_leaks(training, ASKED, ["data"])
    assert found == Leaks(["data"], 4, 3, ["a photo of a bench"], ["a photo of a dog"])
    said = describe_leaks(found)
    assert "of the 3 prompts, 1 are in data (4 prompts) verbatim and 1 more" in said


def test_nothing_found_and_nothing_compared_are_distinguished():
    assert (
        describe_leaks(find_leaks(["a cow"], ASKED, ["data"])) == "Leaks: none of the 3 prompts is in data (1 prompts)."
    )
    assert describe_leaks(find_leaks([], ASKED)).startswith("Leaks: not compared with any training set")


def test_a_file_has_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts"
    path.write_text('a dog\n\n{"prompt": "a cat", "tag": "x"}\n')
    told = []
    assert list(read_training_prompts(path, told.append)) == ["a dog", "a cat"] and sum(told) == 2
    for line, words in (
        ('{"text": 1}', "line 2: Object missing required field `prompt`"),
        ('{"prompt": 1}', "line 2: Expected `str`"),
        ("{", "line 2: Input data was truncated"),
    ):
        path.write_text(f"a dog\n{line}")
        with pytest.raises(EvaluationError, match=words):
            list(read_training_prompts(path))
    with pytest.raises(EvaluationError, match="No such file"):
        list(read_training_prompts(tmp_path / "nowhere"))


@pytest.mark.parametrize("text", ['["a dog", "a cat"]', '\n [{"prompt": "a dog"}]', '[\n"a dog"\n]'])
def test_a_json_list_is_not_a_prompt(tmp_path, text):
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=r"prompts\.json: line [12]: starts with '\['.* a line") as caught:
        list(read_training_prompts(path))
    assert "\n" not in str(caught.value)


def test_empty_training_prompts_are_refused(tmp_path):
    path = tmp_path / "empty"
    path.write_text(" \n\n")
    with pytest.raises(EvaluationError, match="empty: holds no prompt; write one a line; name a data set"):
        find_leaks(read_training_prompts(path), ASKED, ["empty"])
    (tmp_path / "data").mkdir()
    write_index(tmp_path / "data", Dataset(files=[], origin=Origin(seed=0)))
    with pytest.raises(EvaluationError, match="data: holds no prompts"):
        find_leaks(read_training_prompts(tmp_path / "data"), ASKED, ["data"])


def test_a_data_set_is_read(tmp_path):
    folder = tmp_path / "data"
    made = records(3)
    write_dataset(folder, made, Origin(seed=0))
    assert list(read_training_prompts(folder)) == [one.segments[0].text for one in made]
    with pytest.raises(EvaluationError, match="not a data set"):
        list(read_training_prompts(tmp_path))


def test_prompts_of_a_list_of_the_benchmark_are_all_found(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(json.dumps({"tag": "x", "prompt": p}) for p in ASKED))
    assert find_leaks(read_training_prompts(path), ASKED, ["list"]).exact == ASKED[:3]
