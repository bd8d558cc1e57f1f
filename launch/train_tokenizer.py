"""Trains the shapes-world sentencepiece tokenizer on generated texts.

python launch/train_tokenizer.py --output=pdgen/assets/shapes/tokenizer.model
"""

import io
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import NoReturn

import sentencepiece
from absl import app, flags

from pdgen.interleave.trajectory import Text
from pdgen.scenes.subsets import Settings, make_trajectories

OUTPUT = flags.DEFINE_string("output", None, "File to write, ending in .model.", required=True)
COUNT = flags.DEFINE_integer("count", 4000, "Trajectories whose texts it is trained on.", lower_bound=100)
SEED = flags.DEFINE_integer("seed", 0, "Seed of those trajectories.", lower_bound=0)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing file.")

VOCAB_SIZE = 512
CONTROL_SYMBOLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


def texts(seed: int, count: int) -> Iterator[str]:
    """All texts of ``count`` generated trajectories."""
    for record in make_trajectories(Settings(seed=seed, count=count)):
        yield from (s.text for s in record.segments if isinstance(s, Text))


def train(sentences: Iterator[str]) -> bytes:
    """A byte-pair model of at most ``VOCAB_SIZE`` pieces that encodes any text and gives it back unchanged.

    Bytes stand in for what has no piece; spaces are kept as they are and begin the piece they precede;
    punctuation never shares a piece with letters, so a word has one spelling in pieces wherever it stands.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        control_symbols=list(CONTROL_SYMBOLS),
        unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_by_unicode_script=True,
        num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    path = pathlib.Path(OUTPUT.value)
    if path.suffix != ".model":
        fail(f"--output={path}: name a file ending in .model")
    if path.exists() and not OVERWRITE.value:
        fail(f"{path}: exists already; pass --overwrite to replace it")
    model = train(texts(SEED.value, COUNT.value))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(model)
        os.replace(partial, path)
    except OSError as fault:
        fail(fault)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    print(f"{path}: {pieces} pieces, {len(model)} bytes")


def parse(argv: list[str]) -> list[str]:
    """The flags; wrong ones end like other faults of input."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as fault:
        fail(fault)


def fail(fault: object) -> NoReturn:
    """Prints the one line and leaves with status 2."""
    print(f"train_tokenizer: {' '.join(str(fault).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
