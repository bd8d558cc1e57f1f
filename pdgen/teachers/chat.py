"""Questions to a chat model and what is made of its answers: bodies, schemas, decoding. No network here."""

import base64
import dataclasses
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from pdgen.teachers.answer_cache import PaidAnswer
from pdgen.teachers.protocols import Declined

CHARACTERS_PER_TOKEN = 4  # of English text, about; only estimates rest on it
LONGEST_QUOTE = 2000


class AnswerError(Declined):
    """This one request gets no answer; others may. ``reason`` is one of "refused" and the malformed kinds."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One question.

    Attributes:
      task: usage is counted by it, and error messages begin with it.
      version: of the prompt; part of the cache key.
      system: what the model is to do.
      content: texts and pictures (PNG bytes) in the order in which the model reads them.
      answer: the msgspec Struct that the answer must decode to; its schema is sent.
      assumed: the answer a dry run goes on with; its length is the estimate of what is written.
      check: raises ValueError where a decoded answer does not suit the question.
    """

    task: str
    version: int
    system: str
    content: tuple[str | bytes, ...]
    answer: type
    assumed: Any
    check: Callable[[Any], None] = lambda _: None

    def make_body(self, model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON body of the question. Equal questions give equal bodies."""
        schema, strict = make_schema(self.answer)
        form = {"name": self.answer.__name__, "strict": strict, "schema": schema}
        return {
            "model": model,
            "messages": [
                {"role": "system", "content": self.system},
                {"role": "user", "content": [_encode_part(part) for part in self.content]},
            ],
            "response_format": {"type": "json_schema", "json_schema": form},
            **parameters,
        }

    def estimate_tokens(self) -> tuple[int, int]:
        """(input, output): text by its length, pictures by GPT-4o's rule of 85 and 170 per 512-pixel tile."""
        texts = [self.system, json.dumps(make_schema(self.answer)[0])]
        texts += [part for part in self.content if isinstance(part, str)]
        tokens = sum(map(len, texts)) / CHARACTERS_PER_TOKEN
        for png in (part for part in self.content if isinstance(part, bytes)):
            width, height = struct.unpack(">II", png[16:24])
            tokens += 85 + 170 * math.ceil(width / 512) * math.ceil(height / 512)
        return math.ceil(tokens), math.ceil(len(msgspec.json.encode(self.assumed)) / CHARACTERS_PER_TOKEN)


def _encode_part(part: str | bytes) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(part).decode()}}


def make_schema(answer: type) -> tuple[dict[str, Any], bool]:
    """(JSON schema of a Struct, whether servers can enforce it strictly: no object of free keys).

    The root is an object (servers refuse a reference there), all properties are required, and docstrings stay out:
    rewording one must not change what is asked.
    """
    schema = msgspec.json.schema(answer)
    definitions = {name: _strip_definition(value) for name, value in schema["$defs"].items()}
    root = definitions.pop(schema["$ref"].rsplit("/", 1)[1])
    strict = all(
        not isinstance(p.get("additionalProperties"), dict)
        for d in (root, *definitions.values())
        for p in d["properties"].values()
    )
    return {**root, **({"$defs": definitions} if definitions else {})}, strict


def _strip_definition(definition: dict[str, Any]) -> dict[str, Any]:
    properties = {
        name: {k: v for k, v in value.items() if k != "default"} for name, value in definition["properties"].items()
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class Completion(msgspec.Struct):
    """The part of a server's reply that is read."""

    choices: list[_Choice]
    usage: _Usage | None = None

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("no choices")


def decode_reply(data: bytes) -> Completion:
    """A server's reply. Raises ValueError where it is none."""
    return msgspec.json.decode(data, type=Completion)


def read_answer(request: ChatRequest, paid: PaidAnswer) -> Any:
    """The decoded answer. Raises AnswerError with the reason why it is of no use.

    What stands before the first and after the last brace is passed over: servers without structured answers like
    to wrap them.
    """
    if paid.refusal or paid.finish_reason == "content_filter":
        raise AnswerError("refused", f"{request.task}: refused: {paid.refusal or 'content filter'}")
    if paid.finish_reason == "length":
        raise AnswerError("cut off", f"{request.task}: the answer is cut off at the limit of tokens; raise it")
    text = paid.content[paid.content.find("{") : paid.content.rfind("}") + 1]
    try:
        answer = msgspec.json.decode(text, type=request.answer)
        request.check(answer)
    except msgspec.ValidationError as fault:
        raise AnswerError("against the schema", f"{request.task}: {fault}") from None
    except msgspec.DecodeError as fault:
        raise AnswerError("no JSON", f"{request.task}: {fault}: {paid.content[:60]!r}") from None
    except ValueError as fault:
        raise AnswerError("unsuitable", f"{request.task}: {fault}") from None
    return answer


def make_retry_body(body: dict[str, Any], last: PaidAnswer, fault: AnswerError) -> dict[str, Any]:
    """The body of the attempt after the answer ``last``, with that answer and what is wrong with it.

    At temperature 0 the bare question would get the same answer again.
    """
    complaint = f"That answer cannot be used ({fault}). Answer again, with JSON of the schema alone."
    turns = [{"role": "assistant", "content": last.content[:LONGEST_QUOTE]}, {"role": "user", "content": complaint}]
    return {**body, "messages": [*body["messages"], *turns]}
