"""Tokenizers: Qwen2's byte-level BPE (``tokenizer.json``, or ``vocab.json`` and ``merges.txt``) and sentencepiece.

Both become a ``Tokenizer`` with the bytes of every token, which the decoding grammar and ``decode`` need. By default
the name of a special token inside a text is encoded as plain text, so a user's text cannot open or close a segment.
"""

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, runtime_checkable

import msgspec
import sentencepiece
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.normalizers
import tokenizers.pre_tokenizers

from pdgen.files import sha256, shorten_fault
from pdgen.json_text import decode_json, load_json

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
PAD = "<|endoftext|>"
_BPE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
TOKENIZER_FILES = (*_BPE_FILES, "tokenizer.model")
WHOLE_TOKENIZER = "tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
_SLOW_FILES = ("vocab.json", "merges.txt")  # from which tokenizer.json is made
_MAX_IDS = 2**22  # of a vocabulary; a damaged id would need gigabytes of memory
# Qwen2's split into words, whose bytes are then merged; vocab.json and merges.txt do not say it.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A text that decode(encode(text)) must return unchanged: both slashes, repeated blanks, line ends, more than ASCII.
_ROUND_TRIP = "<ins>Add  a bird.</ins> <des>x</des>\n caf\u00e9 \u6f22 <refine>y<\\refine>"


class TokenizerError(ValueError):
    """A tokenizer file is missing or unusable, or a text cannot be encoded; the message is one line with the remedy."""


@runtime_checkable
class SwitchTokens(Protocol):
    """Ids of the tokens that open and close segments, such as a ``Tokenizer``."""

    @property
    def im_start(self) -> int:
        """Id of ``<|im_start|>``."""

    @property
    def im_end(self) -> int:
        """Id of ``<|im_end|>``."""

    @property
    def vision_start(self) -> int:
        """Id of ``<|vision_start|>``."""

    @property
    def vision_end(self) -> int:
        """Id of ``<|vision_end|>``."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
      pieces: the bytes that each id contributes to a text, b"" for a special token.
      encode_plain: returns the ids of a text without special tokens.
      im_start, im_end, vision_start, vision_end, pad: ids of the special tokens.
      files: the files that ``load_tokenizer`` needs to read the same tokenizer.
      fingerprint: SHA-256 (hex) of the file that defines it, or of the files in sequence.
    """

    pieces: tuple[bytes, ...] = dataclasses.field(repr=False)
    encode_plain: Callable[[str], list[int]] = dataclasses.field(repr=False, compare=False)
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    pad: int
    files: tuple[pathlib.Path, ...]
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """The largest id + 1. The model's vocabulary may be larger: BAGEL's is 152,064 for 151,665."""
        return len(self.pieces)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token contributes, b"" for special tokens and unknown ids."""
        return self.pieces[token] if 0 <= token < len(self.pieces) else b""

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text, without any added tokens.

        Args:
          text: any text.
          parse_special: whether names of the four switch tokens become their ids, as in BAGEL's code. Do not use it
            on a user's text.

        Raises:
          TokenizerError: the text contains a lone surrogate, which UTF-8 cannot encode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as fault:
            raise TokenizerError(f"text {text[:40]!r}: not valid Unicode ({fault.reason})") from None
        if not parse_special:
            return self.encode_plain(text)
        names = dict(zip(SPECIALS, (self.im_start, self.im_end, self.vision_start, self.vision_end)))
        parts = re.split("(" + "|".join(map(re.escape, SPECIALS)) + ")", text)
        return [i for part in parts for i in ([names[part]] if part in names else self.encode_plain(part))]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")


def holds_tokenizer(folder: pathlib.Path) -> bool:
    """Return whether ``load_tokenizer`` finds a tokenizer's files in ``folder``."""
    alone = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return alone or all((folder / name).is_file() for name in _SLOW_FILES)


def find_tokenizer(folder: pathlib.Path) -> pathlib.Path | None:
    """Return ``folder`` or its subfolder ``tokenizer``, whichever holds a tokenizer; None if neither does."""
    return next((path for path in (folder, folder / "tokenizer") if holds_tokenizer(path)), None)


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder.

    It is ``tokenizer.json``, or else ``tokenizer.model``, or else Qwen2's other files: ``vocab.json`` and
    ``merges.txt``, with the added tokens in ``tokenizer_config.json`` or ``added_tokens.json``.

    Raises:
      TokenizerError: the files are missing or damaged, a special token is missing, or decoding the ids of some text
        would change it.
    """
    folder = pathlib.Path(folder)
    if (folder / "tokenizer.json").exists():
        tokenizer = _load_bpe(folder)
    elif (folder / "tokenizer.model").exists():
        tokenizer = _load_sentencepiece(folder / "tokenizer.model")
    elif holds_tokenizer(folder):
        tokenizer = _build_bpe(folder)
    else:
        raise TokenizerError(
            f"{folder}: holds no tokenizer ({WHOLE_TOKENIZER}); copy the tokenizer's files from the checkpoint"
        )
    with _name_fault(tokenizer.files[0], "cannot encode a text"):
        ids = tokenizer.encode(_ROUND_TRIP)
    if tokenizer.decode(ids) != _ROUND_TRIP:
        raise TokenizerError(
            f"{tokenizer.files[0]}: changes blanks or characters of a text; use a byte-level BPE, or train "
            "sentencepiece with normalization_rule_name='identity', add_dummy_prefix=False, "
            "remove_extra_whitespaces=False"
        )
    missing = set(range(256)) - {piece[0] for piece in tokenizer.pieces if len(piece) == 1}
    if missing:
        raise TokenizerError(
            f"{tokenizer.files[0]}: has no token for {len(missing)} of the 256 bytes; use a "
            "byte-level BPE, or train sentencepiece with byte_fallback=True"
        )
    return tokenizer


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Return the byte of each character of GPT-2's alphabet, in which byte-level BPE writes its tokens.

    Printable Latin-1 characters represent themselves. The characters from U+0100 on represent the other bytes in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def _encode_bpe(bpe: tokenizers.Tokenizer, text: str) -> list[int]:
    if not bpe.encode_special_tokens:  # pickling for a loader's worker process loses this setting
        bpe.encode_special_tokens = True
    return bpe.encode(text, add_special_tokens=False).ids


@contextlib.contextmanager
def _name_fault(path: pathlib.Path, fault: str, what: str = "it") -> Generator[None, None, None]:
    """Raise TokenizerError with file and ``fault`` for every error of a library within the block; copy ``what``."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as cause:  # bare Exception, or the PanicException of Rust, which is no Exception
        if not isinstance(cause, Exception) and type(cause).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{path}: {fault} ({shorten_fault(cause)}); copy {what} again") from None


class _BpeModel(msgspec.Struct):
    continuing_subword_prefix: str | None = None


class _TokenizerJson(msgspec.Struct):
    """The part of ``tokenizer.json`` that is checked before the library reads it."""

    model: _BpeModel


def _load_bpe(folder: pathlib.Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    data = path.read_bytes()
    with _name_fault(path, "not a tokenizer"):
        if decode_json(data, _TokenizerJson).model.continuing_subword_prefix:  # the library may abort on it
            raise TokenizerError(f"{path}: its tokens have a prefix; use a byte-level BPE such as Qwen2's")
        bpe = tokenizers.Tokenizer.from_str(data.decode())
    return _make_bpe(path, bpe, data)


def _build_bpe(folder: pathlib.Path) -> Tokenizer:
    """Build Qwen2's tokenizer from the files from which ``tokenizer.json`` is made."""
    path, merges = (folder / name for name in _SLOW_FILES)
    with _name_fault(path, f"no tokenizer together with {merges.name}", "both"):
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(path), str(merges)))
    bpe.normalizer = tokenizers.normalizers.NFC()
    words = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_QWEN2_WORDS), "isolated")
    alphabet = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, alphabet])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    for number, token in sorted(_read_added_tokens(folder).items()):
        (bpe.add_special_tokens if token.special else bpe.add_tokens)([token])
        given = bpe.token_to_id(token.content)
        if given != number:
            raise TokenizerError(
                f"{path}: {token.content} has id {number}, but the ids before it leave {given}; "
                "use the checkpoint's own tokenizer"
            )
    files = [folder / name for name in _BPE_FILES if (folder / name).exists()]
    return _make_bpe(path, bpe, b"".join(file.read_bytes() for file in files))


def _read_added_tokens(folder: pathlib.Path) -> dict[int, tokenizers.AddedToken]:
    """Read the tokens that Qwen2's files add to ``vocab.json``, by id.

    ``added_tokens.json`` does not say which are special. They are those of ``special_tokens_map.json``, and always the
    tokens of the sequence grammar.
    """
    result = {}
    path = folder / "added_tokens.json"
    try:
        listed = _read_object(path).items()
        path = folder / "special_tokens_map.json"
        named = _read_object(path).values()
        tokens = [token for value in named for token in (value if isinstance(value, list) else [value])]
        special = {*SPECIALS, PAD, *(token["content"] if isinstance(token, dict) else token for token in tokens)}
        for content, number in listed:
            is_special = content in special
            result[int(number)] = tokenizers.AddedToken(content, normalized=not is_special, special=is_special)
        path = folder / "tokenizer_config.json"
        for number, fields in _read_object(path).get("added_tokens_decoder", {}).items():
            flags = {key: value for key, value in fields.items() if key != "content" and isinstance(value, bool)}
            result[int(number)] = tokenizers.AddedToken(fields["content"], **flags)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as fault:
        raise TokenizerError(f"{path}: cannot be read ({fault}); copy it again") from None
    return result


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """Read a json object; without the file it is empty."""
    value = load_json(path.read_bytes()) if path.exists() else {}
    if not isinstance(value, dict):
        raise ValueError(f"holds {type(value).__name__}, expected an object")
    return value


def _make_bpe(path: pathlib.Path, bpe: tokenizers.Tokenizer, data: bytes) -> Tokenizer:
    """Return the tokenizer ``bpe`` of the file ``path``, whose fingerprint is that of ``data``."""
    added = bpe.get_added_tokens_decoder()
    vocabulary = bpe.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1
    if size > _MAX_IDS:
        raise TokenizerError(f"{path}: holds the id {size - 1:,}, at most {_MAX_IDS - 1:,} is read; copy it again")
    pieces = [b""] * size
    byte_of = _byte_of_character()
    for name, number in vocabulary.items():
        if number in added:
            pieces[number] = b"" if added[number].special else name.encode()
            continue
        try:
            pieces[number] = bytes(byte_of[c] for c in name)
        except KeyError:
            raise TokenizerError(
                f"{path}: token {name!r} is not written in GPT-2's byte alphabet; use a byte-level BPE such as Qwen2's"
            ) from None
    return Tokenizer(
        tuple(pieces),
        functools.partial(_encode_bpe, bpe),
        *(_find(path, name, vocabulary.get(name), pieces) for name in (*SPECIALS, PAD)),
        files=tuple(path.parent / name for name in _BPE_FILES if (path.parent / name).exists()),
        fingerprint=sha256(data),
    )


def _load_sentencepiece(path: pathlib.Path) -> Tokenizer:
    data = path.read_bytes()
    if not data:
        raise TokenizerError(f"{path}: is empty; copy it again")
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        pieces = [_sentencepiece_bytes(model, number) for number in range(model.vocab_size())]
        ids = {model.id_to_piece(number): number for number in range(model.vocab_size())}
    except (RuntimeError, ValueError) as fault:  # ValueError of a piece that is not UTF-8, or no byte
        reason = str(fault).splitlines()[0]
        raise TokenizerError(f"{path}: not a sentencepiece model ({reason}); copy it again") from None
    special = [_find(path, name, ids.get(name), pieces) for name in SPECIALS]
    pad = model.pad_id() if model.pad_id() >= 0 else _find(path, PAD, ids.get(PAD), pieces)
    return Tokenizer(tuple(pieces), model.encode, *special, pad, files=(path,), fingerprint=sha256(data))


def _sentencepiece_bytes(model: sentencepiece.SentencePieceProcessor, number: int) -> bytes:
    piece = model.id_to_piece(number)
    if model.is_control(number) or model.is_unknown(number) or model.is_unused(number):
        return b""
    if model.is_byte(number):
        return bytes([int(piece[3:5], 16)])  # <0xNN>
    return piece.replace("\u2581", " ").encode()


def _find(path: pathlib.Path, name: str, number: int | None, pieces: list[bytes]) -> int:
    """Return the id of a special token; raise TokenizerError if it is missing or contributes to a text."""
    if number is None:
        raise TokenizerError(f"{path}: lacks the special token {name}; use the checkpoint's own tokenizer")
    if pieces[number]:
        raise TokenizerError(
            f"{path}: {name} is an ordinary token; mark it as special (BPE) or as one of "
            "control_symbols (sentencepiece)"
        )
    return number
