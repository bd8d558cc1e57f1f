"""Files of prompts, and the lists of GenEval and WISE."""

import PIL.Image
import pytest

from pdgen.data.prompts import read_prompt_texts
from pdgen.evaluate.folder import read_prompts as read_geneval
from pdgen.evaluate.folder import write_prompts
from pdgen.evaluate.geneval.metadata import find_disagreements
from pdgen.evaluate.shapes import make_benchmark
from pdgen.evaluate.wise import digest_prompts, make_wise_jobs, read_rules, read_wise_prompts
from pdgen.sample.runs.jobs import make_jobs, read_prompts
from tests.robustness.calls import call, find_fault, survey
from tests.robustness.mutations import mutate

pytestmark = pytest.mark.slow  # hundreds of damaged copies

PLAIN = "a red circle left of a blue square\n\ntwo stars \u2603\n"
LINES = '{"prompt": "a red circle", "seed": 5}\n{"prompt": "a star", "images": ["given.png"]}\n'
WISE = (
    '{"prompt_id": 1, "Prompt": "a", "Explanation": "b", "Category": "c", "Subcategory": "d"}',
    '{"prompt_id": 2, "Prompt": "e", "Explanation": "f", "Category": "c", "Subcategory": "d"}',
)


@pytest.mark.parametrize("name", ["plain", "lines"])
def test_files_of_prompts(tmp_path, capfd, name):
    file = tmp_path / "prompts.txt"
    file.write_text(PLAIN if name == "plain" else LINES)
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "given.png")
    read = lambda: make_jobs(read_prompts(file), 2, 0)  # noqa: E731
    survey(file, mutate(file.read_bytes(), 1), read, capfd, (str(tmp_path), "seed"))
    survey(file, mutate(file.read_bytes(), 2), lambda: read_prompt_texts(file), capfd)


def test_a_given_image_that_cannot_be_opened(tmp_path, capfd):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a star", "images": ["\\u0000"]}')
    outcome = call(lambda: make_jobs(read_prompts(file), 1, 0), capfd)
    assert find_fault(outcome, ["cannot be opened (embedded null byte)"]) == "" and outcome.status == 2


def test_lists_of_geneval(tmp_path, capfd):
    file = tmp_path / "metadata.jsonl"
    write_prompts(file, make_benchmark({"single_object": 2, "colors": 2, "position": 2}))

    def read():
        for prompt in read_geneval(file):
            find_disagreements(prompt.metadata)

    survey(file, mutate(file.read_bytes(), 3), read, capfd)


@pytest.mark.parametrize("form", ["%s\n%s\n", "[%s,\n %s]"])
def test_lists_of_wise(tmp_path, capfd, form):
    file = tmp_path / "culture.json"
    file.write_text(form % WISE)

    def read():
        prompts = read_wise_prompts([file])
        make_wise_jobs(prompts, 0)
        digest_prompts(prompts)

    survey(file, mutate(file.read_bytes(), 4), read, capfd)


def test_rules_of_a_judge(tmp_path, capfd):
    file = tmp_path / "rules.txt"
    file.write_text("score is 1 if it is right\n")
    survey(file, mutate(file.read_bytes(), 5), lambda: read_rules(file), capfd)
