"""Training of shapes world's sentencepiece tokenizer on generated texts."""

import collections
import io
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece

from pdgen.files import new_file
from pdgen.sequence.trajectory import TAG
from pdgen.shapes import inspections, language
from pdgen.shapes.graph import COLORS, SceneGraph, Step, grow
from pdgen.shapes.lexicon import NUMBERS, make_sentence, pluralize
from pdgen.shapes.matching import find_differences
from pdgen.shapes.world import BACKGROUNDS, MAX_OBJECTS, SHAPES, Scene, place_scenes
from pdgen.synthesis.base.questions import KINDS, make_asker
from pdgen.synthesis.faults import corrupt
from pdgen.synthesis.rewrite import rewrite
from pdgen.synthesis.sample import TASKS, make_prompt_graph, sample_graph
from pdgen.teachers.exact.plan_check import check_consistency

VOCAB_SIZE = 512
MAX_WORDS = 226  # whole words; 262 bytes and controls, the tags and single characters take the other pieces
MIN_COUNT = 20  # occurrences that make sure of a piece for each noun, colour, background and number
WORD = re.compile(r" ?[A-Za-z]+")
CONTROL_SYMBOLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


def generate_texts(seed: int, count: int) -> Iterator[str]:
    """Yield the texts of ``count`` random trajectories, cycling through the tasks, and texts about their pictures."""
    answers = [*COLORS, *BACKGROUNDS, *NUMBERS[:MAX_OBJECTS]]
    for _ in range(MIN_COUNT):
        yield f" {' '.join((*SHAPES, *map(pluralize, SHAPES), *answers))}"
        yield "\n".join(map(make_sentence, answers))
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        task = TASKS[number % len(TASKS)]
        graph = sample_graph(rng, task)
        prompt = make_prompt_graph(rng, graph, task)
        yield language.write_prompt(rng, prompt, task)
        before = None
        for step in rewrite(rng, grow(rng, graph), share=0.5):
            yield language.write_plan(rng, before, step, prompt)
            yield inspections.write_agreement(rng, step.graph, prompt)
            if any(d.said is not None for d in find_differences(prompt, step.graph)):
                yield inspections.write_conflict(rng, prompt, step.graph)
            if before is not None and (text := check_consistency(step.graph, before)) is not None:
                yield text
            before = step.graph
        scenes = place_scenes(rng, [Step("add", tuple(e.id for e in graph.entities), graph)])
        if scenes is not None:
            yield from _generate_scene_texts(rng, graph, scenes[0])


def _generate_scene_texts(rng: np.random.Generator, graph: SceneGraph, scene: Scene) -> Iterator[str]:
    """Yield the text about a draft with a random fault, and every kind of question with its answer."""
    entity = int(rng.choice([e.id for e in graph.entities]))
    draft, kind = corrupt(rng, scene, graph, entity)
    yield inspections.write_draft_fault(rng, kind, graph, entity, draft)
    for kind in KINDS:
        question = make_asker(rng, kind)(scene)
        if question is not None:
            yield from (question.text, question.answer)


def find_frequent_words(sentences: Iterable[str]) -> list[str]:
    """Return the ``MAX_WORDS`` most frequent words, sorted, each with a leading space if it has one."""
    counts = collections.Counter(word for text in sentences for word in WORD.findall(TAG.sub("\n", text)))
    return sorted(word for word, _ in counts.most_common(MAX_WORDS))


def fit_pieces(sentences: list[str]) -> bytes:
    """Fit a byte-pair model of at most ``VOCAB_SIZE`` pieces that encodes and decodes any text without loss.

    Every tag and every frequent word is one piece. The few remaining pieces are learned from the rest of the texts, and
    bytes encode what has no piece. (With learned pairs alone most of so small a vocabulary would be parts of words: a
    plan would have 38 tokens instead of 29.)

    Returns:
      The serialised model.
    """
    whole = [" "]  # A single space must be a piece: sentencepiece would decode its bytes as U+2581.
    whole += [tag for name in ("ins", "des", "refine") for tag in (f"<{name}>", f" <{name}>", f"</{name}>")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        byte_fallback=True,
        control_symbols=list(CONTROL_SYMBOLS),
        user_defined_symbols=[piece.replace(" ", "\u2581") for piece in (*whole, *find_frequent_words(sentences))],
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_by_unicode_script=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def train_tokenizer(path: pathlib.Path, seed: int, count: int) -> tuple[int, int]:
    """Train a tokenizer on ``count`` trajectories and write it. The same seed and count give the same bytes.

    Returns:
      The number of pieces and the file's size in bytes.

    Raises:
      OSError: the file cannot be written.
    """
    model = fit_pieces(list(generate_texts(seed, count)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        partial.write_bytes(model)
    return sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size(), len(model)
