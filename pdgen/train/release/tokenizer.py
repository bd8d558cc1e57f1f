"""Training the sentencepiece tokenizer of shapes world on generated texts."""

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
MAX_WORDS = 226  # beside 262 bytes and controls, the tags and single characters
RARE = 20  # how often each noun, colour, background and number is there at least, so that it is among them
WORD = re.compile(r" ?[A-Za-z]+")
CONTROL_SYMBOLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


def make_texts(seed: int, count: int) -> Iterator[str]:
    """All texts of ``count`` random trajectories, a task after the other, and what may be said of their pictures."""
    answers = [*COLORS, *BACKGROUNDS, *NUMBERS[:MAX_OBJECTS]]
    for _ in range(RARE):
        yield f" {' '.join((*SHAPES, *map(pluralize, SHAPES), *answers))}"
        yield "\n".join(map(make_sentence, answers))
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        task = TASKS[number % len(TASKS)]
        graph = sample_graph(rng, task)
        asked = make_prompt_graph(rng, graph, task)
        yield language.write_prompt(rng, asked, task)
        before = None
        for step in rewrite(rng, grow(rng, graph), share=0.5):
            yield language.write_plan(rng, before, step, asked)
            yield inspections.write_agreement(rng, before, step, asked)
            if any(d.said is not None for d in find_differences(asked, step.graph)):
                yield inspections.write_conflict(rng, asked, step.graph)
            if before is not None and (text := check_consistency(step.graph, before)) is not None:
                yield text
            before = step.graph
        scenes = place_scenes(rng, [Step("add", tuple(e.id for e in graph.entities), graph)])
        if scenes is not None:
            yield fault_text(rng, graph, scenes[0])
            yield from question_texts(rng, scenes[0])


def fault_text(rng: np.random.Generator, graph: SceneGraph, scene: Scene) -> str:
    """What is said of a draft of the scene with a fault."""
    entity = int(rng.choice([e.id for e in graph.entities]))
    draft, kind = corrupt(rng, scene, graph, entity)
    return inspections.write_draft_fault(rng, kind, graph, entity, draft)


def question_texts(rng: np.random.Generator, scene: Scene) -> Iterator[str]:
    """Questions of every kind that the scene allows, with their answers."""
    for kind in KINDS:
        question = make_asker(rng, kind)(scene)
        if question is not None:
            yield from (question.text, question.answer)


def frequent_words(sentences: Iterable[str]) -> list[str]:
    """The ``MAX_WORDS`` most frequent words, each with the space before it, if there is one."""
    counts = collections.Counter(word for text in sentences for word in WORD.findall(TAG.sub("\n", text)))
    return sorted(word for word, _ in counts.most_common(MAX_WORDS))


def fit_pieces(sentences: list[str]) -> bytes:
    """A byte-pair model of at most ``VOCAB_SIZE`` pieces that encodes any text and gives it back unchanged.

    Tags and the words of the texts are one piece each, wherever they stand; what few pieces remain are learnt from
    the rest, and bytes stand in for what has no piece. (Learnt pairs alone would spend most of so small a vocabulary
    on the parts of words: a plan would have 38 tokens, not 29.)
    """
    whole = [" "]  # A blank of its own must be a piece: sentencepiece's bytes for it would come back as U+2581.
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
        user_defined_symbols=[piece.replace(" ", "\u2581") for piece in (*whole, *frequent_words(sentences))],
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
    """Trains a tokenizer and writes it. The same seed and count give the same bytes.

    Args:
      path: The file to write; it appears whole or not at all.
      seed: The seed of the trajectories.
      count: How many trajectories' texts to train on.

    Returns:
      The number of pieces and the file's size in bytes.

    Raises:
      OSError: The file cannot be written.
    """
    model = fit_pieces(list(make_texts(seed, count)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        partial.write_bytes(model)
    return sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size(), len(model)
