"""WISE: images of prompts that need world knowledge, judged by a vision model (Niu et al. 2025, arXiv 2503.07265).

Three scorings are in use. Their scores are not comparable:

A  the original one: grades 0 to 2 for consistency, realism and aesthetic quality, (0.7 c + 0.2 r + 0.1 a) / 2, and
   weighted categories of the original 1,000 prompts;
B  "WISE_Verified": one binary score, other categories of a revised list, other weights;
C  BAGEL's: the plain mean of A's six categories.

Both lists use the ids 1 to 1000 for different prompts. A scoring whose categories do not match the given list yields no
scores (``find_mismatch``).

The questions are worded by this project (``QUESTION_VERSION``) with the criteria of the original. ``read_rules`` reads
other rules, such as the original ones.
"""

import codecs
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.folder import ImageJob, read_image_file, write_lines
from pdgen.evaluate.statistics import Estimate, estimate
from pdgen.evaluate.tables import Table, to_cells
from pdgen.files import sha256
from pdgen.json_text import decode_json
from pdgen.messages import name_some
from pdgen.sequence.images import convert_to_png
from pdgen.teachers.chat import AnswerError, ChatRequest
from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.protocols import TeacherError

QUESTION_VERSION = 1  # part of every answer's key in the cache


class WisePrompt(
    msgspec.Struct,
    frozen=True,
    rename={"text": "Prompt", "explanation": "Explanation", "category": "Category", "subcategory": "Subcategory"},
):
    """A record of WISE's lists. The explanation tells the judge what a correct image shows."""

    prompt_id: int
    text: str
    explanation: str
    category: str
    subcategory: str


Grade = Annotated[int, msgspec.Meta(ge=0, le=2)]


class Grades(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to the original questions about an image."""

    consistency: Grade
    realism: Grade
    aesthetic_quality: Grade

    @property
    def score(self) -> float:
        """The WiScore, 0 to 1: (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2."""
        return (7 * self.consistency + 2 * self.realism + self.aesthetic_quality) / 20


class Binary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to WISE_Verified's question: 1 if the image is correct."""

    score: Annotated[int, msgspec.Meta(ge=0, le=1)]


_GRADED = """\
You grade an image that a model has made from a prompt. Be strict: in doubt give the lower grade; a 2 is rare.

- consistency: 0 where key elements of the prompt are missing or contradicted; 1 where only part of it is shown, or \
not accurately; 2 where every element and nuance is shown without fault. The explanation says what the prompt means: \
an image that shows the prompt's words but not their meaning is not consistent.
- realism: 0 where it is physically implausible or plainly artificial; 1 with small inconsistencies; 2 where it could \
be a photograph: light, materials and space are right throughout.
- aesthetic_quality: 0 for poor composition without appeal; 1 for a plain but acceptable picture; 2 for outstanding \
composition, colour and craft.
"""
_BINARY = """\
You check an image that a model has made from a prompt that needs knowledge of the world. The explanation says what a \
right image shows.

score is 1 if the image clearly shows what the explanation asks for and nothing in it contradicts the explanation, the \
prompt, or how the world is; else 0. In doubt it is 0.
"""
_FORM = "\nAnswer with JSON of the given schema alone.\n"  # follows all rules, also a user's


class Judgement(NamedTuple):
    """A way of judging an image."""

    rules: str
    answer: Any  # its type
    assumed: Any  # the answer that a price estimate assumes
    file: str  # of the answers


JUDGEMENTS = {
    "graded": Judgement(_GRADED, Grades, Grades(1, 1, 1), "scores.jsonl"),
    "binary": Judgement(_BINARY, Binary, Binary(1), "scores_verified.jsonl"),
}


class Scoring(NamedTuple):
    """A way to compute a total from judgements."""

    judgement: str  # one of ``JUDGEMENTS``
    categories: Mapping[str, range]  # by name, the ids of its prompts
    weights: tuple[float, ...]  # of the categories in their order; the sum is 1
    source: str  # the list that the scoring belongs to, and the judge of its published scores


CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")


def read_rules(path: pathlib.Path) -> str:
    """Read a judge's rules from a text file. Raises EvaluationError if it cannot be read or is empty."""
    try:
        rules = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise EvaluationError(f"{path}: {fault}; name a text file with the judge's rules") from None
    if not rules:
        raise EvaluationError(f"{path}: empty; name a text file with the judge's rules")
    return rules + "\n"


def _split_ids(*firsts: int) -> dict[str, range]:
    return {name: range(*ends) for name, ends in zip(CATEGORIES, itertools.pairwise((*firsts, 1001)))}


ORIGINAL = _split_ids(1, 401, 568, 701, 801, 901)
VERIFIED = _split_ids(1, 401, 521, 641, 761, 881)
SCORINGS = {
    "A": Scoring(
        "graded",
        ORIGINAL,
        (0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
        "original weights, of the original 1,000 prompts; published figures: judged by gpt-4o-2024-05-13",
    ),
    "B": Scoring(
        "binary",
        VERIFIED,
        (0.4,) + (0.12,) * 5,
        "WISE_Verified, of its revised 1,000 prompts; published figures: judged by Qwen3.5-35B-A3B",
    ),
    "C": Scoring(
        "graded",
        ORIGINAL,
        (1 / 6,) * 6,
        "BAGEL's to May 2026, plain mean of A's categories; published figures: judged by gpt-4o-2024-11-20",
    ),
}
PROMPTS_FILE = "prompts.jsonl"  # the judged prompts, in the folder of the scores


def read_wise_prompts(paths: Sequence[pathlib.Path]) -> list[WisePrompt]:
    """Read the records of all files, sorted by id. A file is a JSON list, or has one JSON object a line.

    Raises:
      EvaluationError: A file cannot be read, a record does not have WISE's form, or an id occurs twice.
    """
    prompts: dict[int, WisePrompt] = {}
    for path in paths:
        try:
            data = path.read_bytes().removeprefix(codecs.BOM_UTF8).rstrip()
            whole = data.lstrip().startswith(b"[")
            lines = decode_json(data, list[msgspec.Raw]) if whole else data.splitlines()
        except (OSError, msgspec.DecodeError) as fault:
            raise EvaluationError(f"{path}: {fault}; name WISE's prompt files") from None
        for number, line in enumerate(lines, 1):
            try:
                prompt = decode_json(line, WisePrompt)
            except msgspec.DecodeError as fault:
                other = " (this is a list of GenEval; pass --benchmark=geneval)" if b'"include"' in bytes(line) else ""
                raise EvaluationError(f"{path}: record {number} does not have WISE's form: {fault}{other}") from None
            if prompt.prompt_id in prompts:
                raise EvaluationError(f"{path}: record {number}: prompt_id {prompt.prompt_id} occurs twice")
            prompts[prompt.prompt_id] = prompt
    if not prompts:
        raise EvaluationError(f"{name_some(paths)}: no prompts; name WISE's prompt files")
    return [prompts[number] for number in sorted(prompts)]


def digest_prompts(prompts: Sequence[WisePrompt]) -> str:
    """Return the SHA-256 (hexadecimal) of the ids, texts and explanations, independent of their order."""
    contents = sorted((p.prompt_id, p.text, p.explanation) for p in prompts)
    return sha256(json.dumps(contents).encode())


def find_mismatch(scoring: Scoring, prompts: Sequence[WisePrompt]) -> str:
    """Return why a list is not the one that a scoring's ids belong to, as a clause; "" if nothing shows it.

    A prompt's Category and Subcategory together determine one of the six categories. If prompts of two id ranges share
    them, the list has other category boundaries than the scoring.
    """
    names = {number: name for name, ids in scoring.categories.items() for number in ids}
    first_prompts: dict[tuple[str, str], WisePrompt] = {}
    for prompt in prompts:
        if prompt.prompt_id not in names:
            return f"id {prompt.prompt_id} is not in its list"
        first = first_prompts.setdefault((prompt.category.casefold(), prompt.subcategory.casefold()), prompt)
        own, other = names[prompt.prompt_id], names[first.prompt_id]
        if own != other:
            return (
                f"ids {first.prompt_id} and {prompt.prompt_id} are both in {prompt.category} ({prompt.subcategory}), "
                f"but in {other} and {own} of this scoring, which belongs to another list"
            )
    return ""


def make_wise_jobs(prompts: Sequence[WisePrompt], seed: int) -> list[ImageJob]:
    """Return the jobs in WISE's layout. The prompt with id i has the seed ``seed + i``."""
    return [ImageJob(str(p.prompt_id), p.text, seed + p.prompt_id) for p in prompts]


def find_images(folder: pathlib.Path, prompts: Sequence[WisePrompt]) -> list[pathlib.Path]:
    """Return the path of every prompt's image. Raises EvaluationError with the ids of those that are missing."""
    paths = [folder / f"{p.prompt_id}.png" for p in prompts]
    if missing := [p.prompt_id for p, path in zip(prompts, paths) if not path.is_file()]:
        raise EvaluationError(
            f"{folder}: {len(missing)} of {len(prompts)} images <prompt_id>.png are missing: {format_ranges(missing)}; "
            "generate them first"
        )
    return paths


def format_ranges(numbers: Iterable[int]) -> str:
    """Format ascending numbers as ranges, such as "1-3, 7"; of many ranges, some and the number of the others."""
    parts = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return name_some(parts)


def make_requests(
    prompts: Sequence[WisePrompt], images: Sequence[pathlib.Path], judgements: Mapping[str, Judgement]
) -> Iterator[ChatRequest]:
    """Yield the questions, image after image, one for each of ``judgements``."""
    for prompt, path in zip(prompts, images, strict=True):
        content = (
            f"Prompt: {prompt.text}\nExplanation: {prompt.explanation}",
            read_image_file(path, convert_to_png),
        )
        for name, (rules, answer, assumed, _) in judgements.items():
            yield ChatRequest(f"wise {name}", QUESTION_VERSION, rules + _FORM, content, answer, assumed)


class JudgeAnswers(NamedTuple):
    """The judge's answers by judgement and prompt id, and the reasons for missing ones."""

    answers: dict[str, dict[int, Any]]
    faults: dict[str, dict[int, str]]


def judge_images(
    prompts: Sequence[WisePrompt],
    images: Sequence[pathlib.Path],
    endpoint: Endpoint,
    judgements: Mapping[str, Judgement] = JUDGEMENTS,
    progress: Callable[[int], None] = lambda count: None,
) -> JudgeAnswers:
    """Ask the judge about every image. Answers in the endpoint's cache cost nothing.

    A malformed answer is requested again as often as the endpoint's settings allow, and then recorded as a fault.

    Args:
      prompts: The prompts.
      images: The image file of every prompt.
      endpoint: The judge.
      judgements: The judgements to ask for, by name.
      progress: Called with the number of answers since the last call.

    Raises:
      EvaluationError: An image cannot be read, or the judge cannot be reached. Earlier answers stay in the cache.
    """
    judged = JudgeAnswers({name: {} for name in judgements}, {name: {} for name in judgements})
    asked = itertools.product([p.prompt_id for p in prompts], judgements)
    done = 0
    try:
        for (number, name), answer in zip(asked, endpoint.map(make_requests(prompts, images, judgements))):
            if isinstance(answer, AnswerError):
                judged.faults[name][number] = str(answer)
            else:
                judged.answers[name][number] = answer
            done += 1
            progress(1)
    except TeacherError as fault:
        raise EvaluationError(
            f"{fault}; {done} of {len(prompts) * len(judgements)} answers are in {endpoint.settings.cache} and are "
            "not paid again: run again to resume"
        ) from None
    return judged


def write_scores(folder: pathlib.Path, prompts: Sequence[WisePrompt], judged: JudgeAnswers) -> None:
    """Write each judgement's answers in the original's form, the prompts, and ``unanswered.jsonl`` with the rest.

    The files of other judgements are removed, since they may be scores of other images.
    """
    for name, judgement in JUDGEMENTS.items():
        if name not in judged.answers:
            (folder / judgement.file).unlink(missing_ok=True)
    write_lines(folder / PROMPTS_FILE, [msgspec.to_builtins(prompt) for prompt in prompts])
    for name, answers in judged.answers.items():
        lines = [
            {"prompt_id": p.prompt_id, "Subcategory": p.subcategory, **msgspec.to_builtins(answers[p.prompt_id])}
            for p in prompts
            if p.prompt_id in answers
        ]
        write_lines(folder / JUDGEMENTS[name].file, lines)
    faults = [
        {"judgement": name, "prompt_id": number, "reason": reason}
        for name, found in judged.faults.items()
        for number, reason in found.items()
    ]
    write_lines(folder / "unanswered.jsonl", faults)


class WiseFigures(NamedTuple):
    """The scores of one scoring."""

    categories: dict[str, Estimate | None]  # None if an id of the category has no score
    overall: Estimate | None  # None unless every id of every category has a score
    missing: list[int]  # the ids without a score
    mismatch: str = ""  # why the scoring does not apply, see ``find_mismatch``; "" if it does

    @property
    def missing_reason(self) -> str:
        """Why there is no total, in a clause; "" if there is one."""
        if self.mismatch:
            return f"no figures: {self.mismatch}"
        return f"no total: {len(self.missing)} ids have no score: {format_ranges(self.missing)}" if self.missing else ""


def compute_figures(scoring: Scoring, scores: Mapping[int, float], prompts: Sequence[WisePrompt]) -> WiseFigures:
    """Compute the scores of a scoring from the score of each prompt id, 0 to 1.

    If the scoring belongs to another list than the judged ``prompts``, there are no scores.
    """
    missing = [i for ids in scoring.categories.values() for i in ids if i not in scores]
    if reason := find_mismatch(scoring, prompts):
        return WiseFigures(dict.fromkeys(scoring.categories), None, missing, reason)
    strata = {
        name: np.array([scores[i] for i in ids])
        for name, ids in scoring.categories.items()
        if all(i in scores for i in ids)
    }
    categories = {name: estimate([strata[name]]) if name in strata else None for name in scoring.categories}
    overall = None if missing else estimate(list(strata.values()), scoring.weights)
    return WiseFigures(categories, overall, missing)


def compute_all_figures(
    answers: Mapping[str, Mapping[int, Any]], prompts: Sequence[WisePrompt]
) -> dict[str, WiseFigures]:
    """Compute the scores of all three scorings, by label, from the answers by judgement and prompt id."""
    scores = {name: {i: answer.score for i, answer in own.items()} for name, own in answers.items()}
    return {label: compute_figures(one, scores.get(one.judgement, {}), prompts) for label, one in SCORINGS.items()}


def make_wise_table(scored: Mapping[str, WiseFigures], judge: str) -> Table:
    """Return the three scorings in columns, each score with its interval and n; the note names the judge's model."""
    rows = []
    for name in (*CATEGORIES, "overall"):
        cells: list[Any] = [name]
        for one in scored.values():
            cells += to_cells(one.overall if name == "overall" else one.categories[name])
        rows.append(tuple(cells))
    notes = [f"Judged here by {judge}."]
    for label, one in scored.items():
        reason = f" {one.missing_reason[0].upper()}{one.missing_reason[1:]}." if one.missing_reason else ""
        notes.append(f"{label}: {SCORINGS[label].source}.{reason}")
    columns = ["category"]
    for label in scored:
        columns += [label, f"{label} low", f"{label} high", f"{label} prompts"]
    return Table("wise", tuple(columns), rows, "\n".join(notes))
