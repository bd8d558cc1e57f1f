"""WISE: images of prompts that need world knowledge, judged by a vision model (Niu et al. 2025, arXiv 2503.07265).

Three scorings are in use, and their figures are not to be mixed:

A  the original one: grades 0 to 2 for consistency, realism and aesthetic quality, (0.7 c + 0.2 r + 0.1 a) / 2, and
   weighted categories of the original 1,000 prompts;
B  "WISE_Verified": one binary score, other categories of a revised list, other weights;
C  BAGEL's: the plain mean of A's six categories.

Both lists have the ids 1 to 1000, but other prompts behind them: a scoring whose categories are not those of the list
at hand gives no figures (``misfit``).

The questions are put in this project's own words (``VERSION``), with the criteria of the original; ``read_rules``
takes others, such as the original's.
"""

import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import PIL.Image

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.folder import Job, listed
from pdgen.evaluate.statistics import Estimate, estimate
from pdgen.evaluate.tables import Table, interval
from pdgen.files import new_file, sha256
from pdgen.sequence.images import why_unreadable
from pdgen.teachers.chat import AnswerError, ChatRequest
from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.protocols import TeacherError

VERSION = 1  # of the questions; part of every answer's key in the cache


class WisePrompt(
    msgspec.Struct,
    frozen=True,
    rename={"text": "Prompt", "explanation": "Explanation", "category": "Category", "subcategory": "Subcategory"},
):
    """A record of WISE's lists. ``explanation`` tells the judge what a right image shows."""

    prompt_id: int
    text: str
    explanation: str
    category: str
    subcategory: str


Grade = Annotated[int, msgspec.Meta(ge=0, le=2)]


class Grades(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The original judgement of an image."""

    consistency: Grade
    realism: Grade
    aesthetic_quality: Grade

    @property
    def score(self) -> float:
        """WiScore, 0 to 1: (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2."""
        return (7 * self.consistency + 2 * self.realism + self.aesthetic_quality) / 20


class Binary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The judgement of WISE_Verified: 1 where the image is right."""

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
_FORM = "\nAnswer with JSON of the given schema alone.\n"  # whatever the rules ask for


class Judgement(NamedTuple):
    """A way of judging: the rules the judge is given, the answer's type and what a price estimate assumes."""

    rules: str
    answer: Any
    assumed: Any
    file: str


JUDGEMENTS = {
    "graded": Judgement(_GRADED, Grades, Grades(1, 1, 1), "scores.jsonl"),
    "binary": Judgement(_BINARY, Binary, Binary(1), "scores_verified.jsonl"),
}


class Scoring(NamedTuple):
    """A way from judgements to a total.

    Attributes:
      judgement: of ``JUDGEMENTS``.
      categories: by name, the ids of its prompts.
      weights: of the categories, in their order; their sum is 1.
      source: the list that it presumes, and who judged its published figures.
    """

    judgement: str
    categories: Mapping[str, range]
    weights: tuple[float, ...]
    source: str


NAMES = ("culture", "time", "space", "biology", "physics", "chemistry")


def read_rules(path: pathlib.Path) -> str:
    """A judge's rules from a text file. Raises EvaluationError where it cannot be read or is empty."""
    try:
        rules = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise EvaluationError(f"{path}: {fault}; name a text file with the judge's rules") from None
    if not rules:
        raise EvaluationError(f"{path}: empty; name a text file with the judge's rules")
    return rules + "\n"


def _ranges(*firsts: int) -> dict[str, range]:
    return {name: range(*ends) for name, ends in zip(NAMES, itertools.pairwise((*firsts, 1001)))}


ORIGINAL = _ranges(1, 401, 568, 701, 801, 901)
VERIFIED = _ranges(1, 401, 521, 641, 761, 881)
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
LIST = "prompts.jsonl"  # beside the scores: the prompts that they are of


def read_wise(paths: Sequence[pathlib.Path]) -> list[WisePrompt]:
    """The records of all files, by id. A file is a JSON list, or has one JSON object a line.

    Raises:
      EvaluationError: a file cannot be read, a record is not of WISE's form, or an id occurs twice.
    """
    prompts: dict[int, WisePrompt] = {}
    for path in paths:
        try:
            data = path.read_bytes()
            whole = data.lstrip().startswith(b"[")
            lines = msgspec.json.decode(data, type=list[msgspec.Raw]) if whole else data.splitlines()
        except (OSError, msgspec.DecodeError) as fault:
            raise EvaluationError(f"{path}: {fault}; name WISE's prompt files") from None
        for number, line in enumerate(lines, 1):
            try:
                prompt = msgspec.json.decode(line, type=WisePrompt)
            except msgspec.DecodeError as fault:
                other = " (this is a list of GenEval; pass --benchmark=geneval)" if b'"include"' in bytes(line) else ""
                raise EvaluationError(f"{path}: record {number} is not of WISE's form: {fault}{other}") from None
            if prompt.prompt_id in prompts:
                raise EvaluationError(f"{path}: record {number}: prompt_id {prompt.prompt_id} occurs twice")
            prompts[prompt.prompt_id] = prompt
    if not prompts:
        raise EvaluationError(f"{listed(paths)}: no prompts; name WISE's prompt files")
    return [prompts[number] for number in sorted(prompts)]


def digest(prompts: Sequence[WisePrompt]) -> str:
    """SHA-256 (hexadecimal) of a list's ids, texts and explanations: equal for equal prompts in any order."""
    told = sorted((p.prompt_id, p.text, p.explanation) for p in prompts)
    return sha256(json.dumps(told).encode())


def misfit(scoring: Scoring, prompts: Sequence[WisePrompt]) -> str:
    """Why a list is not the one that a scoring's ids are of, in a clause; "" if nothing tells so.

    A prompt's Category and Subcategory together belong to one of the six categories. Where prompts of two id ranges
    share them, the list's categories end elsewhere than the scoring's.
    """
    names = {number: name for name, ids in scoring.categories.items() for number in ids}
    homes: dict[tuple[str, str], WisePrompt] = {}
    for prompt in prompts:
        if prompt.prompt_id not in names:
            return f"id {prompt.prompt_id} is none of its list"
        first = homes.setdefault((prompt.category.casefold(), prompt.subcategory.casefold()), prompt)
        own, other = names[prompt.prompt_id], names[first.prompt_id]
        if own != other:
            return (
                f"ids {first.prompt_id} and {prompt.prompt_id} are both of {prompt.category} ({prompt.subcategory}), "
                f"but {other} and {own} in this scoring: it is of another list"
            )
    return ""


def wise_jobs(prompts: Sequence[WisePrompt], seed: int) -> list[Job]:
    """Jobs in WISE's layout; the prompt with id i has the seed ``seed + i``."""
    return [Job(str(p.prompt_id), p.text, seed + p.prompt_id) for p in prompts]


def find_images(folder: pathlib.Path, prompts: Sequence[WisePrompt]) -> list[pathlib.Path]:
    """The image of every prompt.

    Raises:
      EvaluationError: images are missing or are no PNG; lists the ids.
    """
    paths = [folder / f"{p.prompt_id}.png" for p in prompts]
    if missing := [p.prompt_id for p, path in zip(prompts, paths) if not path.is_file()]:
        raise EvaluationError(
            f"{folder}: {len(missing)} of {len(prompts)} images <prompt_id>.png are missing: {spans(missing)}; make "
            "them, there is no score without them"
        )
    return paths


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers in short: "1-3, 7"."""
    parts = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(parts)


def _png(path: pathlib.Path) -> bytes:
    data = path.read_bytes()
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as fault:
        raise EvaluationError(f"{path}: not a readable PNG ({why_unreadable(fault)}); make it again") from None
    return data


def requests(
    prompts: Sequence[WisePrompt], images: Sequence[pathlib.Path], judgements: Mapping[str, Judgement]
) -> Iterator[ChatRequest]:
    """The questions, image after image, for each as many as ``judgements``."""
    for prompt, path in zip(prompts, images, strict=True):
        png = _png(path)
        content = (f"Prompt: {prompt.text}\nExplanation: {prompt.explanation}", png)
        for name, (rules, answer, assumed, _) in judgements.items():
            yield ChatRequest(f"wise {name}", VERSION, rules + _FORM, content, answer, assumed)


class Judged(NamedTuple):
    """Answers by judgement and prompt id, and by the same why there is none."""

    answers: dict[str, dict[int, Any]]
    faults: dict[str, dict[int, str]]


def judge_images(
    prompts: Sequence[WisePrompt],
    images: Sequence[pathlib.Path],
    endpoint: Endpoint,
    judgements: Mapping[str, Judgement] = JUDGEMENTS,
    progress: Callable[[int], None] = lambda count: None,
) -> Judged:
    """Asks for every image; answers that the endpoint's cache holds cost nothing.

    Malformed answers are asked for again as often as the endpoint's settings say, then stand among the faults.

    Raises:
      EvaluationError: an image is no PNG, or the judge cannot be reached; what was answered is kept.
    """
    judged = Judged({name: {} for name in judgements}, {name: {} for name in judgements})
    asked = itertools.product([p.prompt_id for p in prompts], judgements)
    done = 0
    try:
        for (number, name), answer in zip(asked, endpoint.map(requests(prompts, images, judgements))):
            if isinstance(answer, AnswerError):
                judged.faults[name][number] = str(answer)
            else:
                judged.answers[name][number] = answer
            done += 1
            progress(1)
    except TeacherError as fault:
        raise EvaluationError(
            f"{fault}; {done} of {len(prompts) * len(judgements)} answers are in {endpoint.settings.cache} and are "
            "not paid again: run again to go on"
        ) from None
    return judged


def write_scores(folder: pathlib.Path, prompts: Sequence[WisePrompt], judged: Judged) -> None:
    """Writes each judgement's answers in the form of the original, the prompts, and ``unanswered.jsonl`` with the rest.

    Scores of judgements that were not asked for are removed: they are of an earlier call, maybe of other images.
    """
    for name, judgement in JUDGEMENTS.items():
        if name not in judged.answers:
            (folder / judgement.file).unlink(missing_ok=True)
    _write_lines(folder / LIST, [msgspec.to_builtins(prompt) for prompt in prompts])
    for name, answers in judged.answers.items():
        lines = [
            {"prompt_id": p.prompt_id, "Subcategory": p.subcategory, **msgspec.to_builtins(answers[p.prompt_id])}
            for p in prompts
            if p.prompt_id in answers
        ]
        _write_lines(folder / JUDGEMENTS[name].file, lines)
    faults = [
        {"judgement": name, "prompt_id": number, "reason": reason}
        for name, found in judged.faults.items()
        for number, reason in found.items()
    ]
    _write_lines(folder / "unanswered.jsonl", faults)


def _write_lines(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with new_file(path) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


class Scored(NamedTuple):
    """A scoring's figures.

    Attributes:
      categories: None for a category of which an id has no score.
      overall: None unless every id of every category has one.
      missing: ids without a score.
      misfit: why there are no figures at all, "" if there may be some (see ``misfit``).
    """

    categories: dict[str, Estimate | None]
    overall: Estimate | None
    missing: list[int]
    misfit: str = ""

    @property
    def lacking(self) -> str:
        """Why there is no total, in a clause; "" if there is one."""
        if self.misfit:
            return f"no figures: {self.misfit}"
        return f"no total: {len(self.missing)} ids have no score: {spans(self.missing)}" if self.missing else ""


def score(scoring: Scoring, scores: Mapping[int, float], prompts: Sequence[WisePrompt]) -> Scored:
    """The figures of one scoring, from a score between 0 and 1 by prompt id; none if it is not of these prompts."""
    missing = [i for ids in scoring.categories.values() for i in ids if i not in scores]
    if reason := misfit(scoring, prompts):
        return Scored(dict.fromkeys(scoring.categories), None, missing, reason)
    strata = {
        name: np.array([scores[i] for i in ids])
        for name, ids in scoring.categories.items()
        if all(i in scores for i in ids)
    }
    categories = {name: estimate([strata[name]]) if name in strata else None for name in scoring.categories}
    overall = None if missing else estimate(list(strata.values()), scoring.weights)
    return Scored(categories, overall, missing)


def score_all(answers: Mapping[str, Mapping[int, Any]], prompts: Sequence[WisePrompt]) -> dict[str, Scored]:
    """The figures of all three scorings, by label; what was not judged is missing.

    Args:
      answers: by judgement and prompt id.
      prompts: the list that was judged; a scoring of another one has no figures.
    """
    return {
        label: score(scoring, {i: answer.score for i, answer in answers.get(scoring.judgement, {}).items()}, prompts)
        for label, scoring in SCORINGS.items()
    }


def wise_table(scored: Mapping[str, Scored], judge: str) -> Table:
    """The three scorings side by side, each figure with its interval and its number of prompts.

    Args:
      judge: the model that judged, for the note.
    """
    rows = []
    for name in (*NAMES, "overall"):
        cells: list[Any] = [name]
        for one in scored.values():
            figure = one.overall if name == "overall" else one.categories[name]
            cells += (None, None, None, None) if figure is None else interval(figure)
        rows.append(tuple(cells))
    notes = [f"Judged here by {judge}."]
    for label, one in scored.items():
        lacking = f" {one.lacking[0].upper()}{one.lacking[1:]}." if one.lacking else ""
        notes.append(f"{label}: {SCORINGS[label].source}.{lacking}")
    columns = ["category"]
    for label in scored:
        columns += [label, f"{label} low", f"{label} high", f"{label} prompts"]
    return Table("wise", tuple(columns), rows, "\n".join(notes))
