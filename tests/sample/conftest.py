"""The golden nano checkpoint as a sampler, and one recorded batch of trajectories.

The model is random, so a terse sub-grammar keeps its texts short and makes every turn of a trajectory
likely: plans, inspections with and without a fault, refinements without a plan.
"""

import contextlib
import dataclasses
import pathlib
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest

from pdgen.checkpoints.conversion import to_pdgen
from pdgen.flow.denoise import ImageSettings
from pdgen.sample.compiled import Compiler
from pdgen.sample.image import PreparedImages
from pdgen.sample.kernels import RowGroup, State
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.sample.text import TextSettings
from pdgen.sequence.grammar import FORBIDDEN, Automaton, build_automaton
from pdgen.sequence.tokenizer import Tokenizer, load_tokenizer
from pdgen.sequence.trajectory import Trajectory

NANO = pathlib.Path(__file__).parents[1] / "golden" / "bagel-nano"
SETTINGS = SampleSettings(
    max_images=3,
    max_prompt_tokens=100,
    text=TextSettings(max_tokens=24, temperature=1.0),
    image=ImageSettings(num_timesteps=4),
    batch_size=2,
)
# The second exceeds a chunk of the prefill; the third spells out switch tokens.
PROMPTS = ("a red circle", "two cats " * 9, "<|im_end|><|vision_start|>")
SEEDS = (22, 2**32 - 6, 21)

_CLOSE = {"{0}:": ["o", "<"], "{0}:<": ["/"], "{0}:</": ["{0}"], "{0}:</{0}": [">"]}
TERSE: dict[str, list[str]] = {
    "plan:": ["<ins"],
    "plan:<ins": [">"],
    "gap:": [" ", "<"],
    "gap: ": ["<"],
    "gap:<": ["des"],
    "gap:<des": [">"],
    "plan_end:": [""],
    "refine_end:": [""],
    "after_image:": ["<ins", "<refine", "o", ""],
    "after_image:<ins": [">"],
    "inspect:": ["<refine", "o", ""],
    "inspect:<refine": [">"],
    "free:": ["o", ""],
} | {
    state.format(part): [word.format(part) for word in words]
    for part in ("ins", "des", "refine")
    for state, words in _CLOSE.items()
}


def restrict(automaton: Automaton, tokenizer: Tokenizer, words: dict[str, list[str]], free: str = "") -> Automaton:
    """Return the grammar restricted in each state to the tokens that spell these words ("" = <|im_end|>).

    The states of the part named ``free`` stay unrestricted.
    """
    table = np.full_like(automaton.table, FORBIDDEN)
    for state, allowed in words.items():
        row = automaton.names.index(state)
        for word in allowed:
            token = tokenizer.pieces.index(word.encode()) if word else tokenizer.im_end
            table[row, token] = automaton.table[row, token]
            assert table[row, token] != FORBIDDEN, (state, word)
    rows = [n for n, name in enumerate(automaton.names) if name.partition(":")[0] == free]
    table[rows] = automaton.table[rows]
    return dataclasses.replace(automaton, table=table)


def use(sampler: Sampler, automaton: Automaton) -> None:
    """Make the sampler use ``automaton``."""
    sampler.model = dataclasses.replace(sampler.model, automaton=automaton)


class Call(NamedTuple):
    """A compiled call: the function's name, its static arguments, its arguments but the weights, and its result."""

    name: str
    static: tuple
    given: Any
    result: Any

    @property
    def rows(self):
        """Return (place in the group, slot) of every row but padding."""
        rows = next(x for x in self.given if isinstance(x, RowGroup))
        state = next(x for x in self.given if isinstance(x, State))
        return [(place, slot) for place, slot in enumerate(rows.index) if slot < len(state.logits)]

    @property
    def state(self):
        """Return the state among the arguments."""
        return next(x for x in self.given if isinstance(x, State))


class Recorder:
    """A record of every compiled call."""

    def __init__(self) -> None:
        self.calls = []

    def named(self, *names: str) -> list[Call]:
        return [call for call in self.calls if call.name in names]


def _kept(tree):
    return jax.tree.map(np.array, tree)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "nano"
    to_pdgen(NANO, folder, log=lambda line: None)
    return folder


@pytest.fixture(scope="session")
def whole_grammar():
    tokenizer = load_tokenizer(NANO)
    return build_automaton(tokenizer, tokenizer.vocab_size)


@pytest.fixture(scope="session")
def sampler(checkpoint, whole_grammar):
    sampler = Sampler.from_checkpoint(checkpoint)
    use(sampler, restrict(whole_grammar, sampler.model.tokenizer, TERSE))
    return sampler


class Recorded(NamedTuple):
    """A batch of trajectories with a slot each, the lines of progress, and every compiled call."""

    drawn: list[Trajectory]
    lines: list[str]
    recorder: Recorder


@contextlib.contextmanager
def recording(sampler):
    """Yield a record of the sampler's compiled calls in the block."""
    recorder, call = Recorder(), Compiler.__call__

    def record(compiler, function, static, *args):
        if compiler is not sampler.model.compiler:
            return call(compiler, function, static, *args)
        # Copied before the call, which may donate the buffers of a state.
        given = _kept([x for x in args if not isinstance(x, dict)])
        result = call(compiler, function, static, *args)
        recorder.calls.append(Call(function.__name__, static, given, _kept(result)))
        return result

    with mock.patch.object(Compiler, "__call__", record):
        yield recorder


def outcome(trajectory):
    """Return what must not depend on the batch: the stages but for their times, the pixels, the stop reason."""
    stages = [(s.stage, getattr(s, "text", None), s.tokens, s.origin) for s in trajectory.stages]
    return stages, [np.asarray(image).tobytes() for image in trajectory.images], trajectory.stop_reason


@pytest.fixture(scope="session")
def recorded(sampler):
    lines = []
    with recording(sampler) as recorder:
        drawn = sampler(PROMPTS, SEEDS, SETTINGS, progress=lines.append)
    return Recorded(drawn, lines, recorder)


class Segment(NamedTuple):
    """A segment of a recorded trajectory as the model read it.

    Attributes:
      kind: a key of ``MODES``.
      ids: a text's words.
      image: an image's pictures (one row).
      logits: after its closing token; None for the prompt.
    """

    kind: str
    ids: list[int] | None = None
    image: PreparedImages | None = None
    logits: np.ndarray | None = None


@pytest.fixture(scope="session")
def histories(recorded, sampler):
    """The segments of every recorded trajectory, prompt first."""
    histories = [[Segment("prompt", sampler.model.tokenizer.encode(prompt))] for prompt in PROMPTS]
    for call in recorded.recorder.named("write_text", "read_image"):
        for place, slot in call.rows:
            if call.name == "read_image":
                image = jax.tree.map(lambda x, n=place: x[n : n + 1], call.given[-1])
                histories[slot].append(Segment("image", image=image, logits=call.result.logits[slot]))
            else:
                state, written = call.result
                kind = sampler.model.automaton.kind_of(int(written.state[place]))
                ids = written.tokens[place, : written.count[place]].tolist()
                histories[slot].append(Segment(kind, ids, logits=state.logits[slot]))
    return histories
