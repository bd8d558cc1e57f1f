"""Requests to a chat model and their answers: bodies, schemas, decoding. This module uses no network."""

import base64
import dataclasses
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

from pdgen.json_text import decode_json
from pdgen.teachers.protocols import Declined

CHARACTERS_PER_TOKEN = 4  # approximately, for English text; used only for estimates
LONGEST_QUOTE = 2000


class AnswerError(Declined):
    """A request without a usable answer; other requests may succeed. ``reason`` is a short text for counting."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class PaidAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer of a model, usable or not, with the tokens that the server counted."""

    content: str
    refusal: str | None
    finish_reason: str | None
    input_tokens: int
    output_tokens: int


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One request.

    Attributes:
      task: name under which usage is counted; error messages begin with it.
      version: version of the prompt; part of the cache key.
      system: the system prompt.
      content: texts and pictures (PNG bytes), in the order in which the model reads them.
      answer: the msgspec Struct of the answer, whose schema is sent.
      assumed: the answer in a dry run; its length is the estimate of output tokens.
      check: raises ValueError if a decoded answer does not fit the request.
    """

    task: str
    version: int
    system: str
    content: tuple[str | bytes, ...]
    answer: type
    assumed: Any
    check: Callable[[Any], None] = lambda _: None

    def make_body(self, model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Make the JSON body. Equal requests give equal bodies."""
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
        """Estimate (input, output) tokens: texts by length, pictures as GPT-4o counts, 85 plus 170 per 512 px tile."""
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
    """Make the JSON schema of a Struct.

    The root is an object, because servers reject a reference there. All properties are required. Docstrings are left
    out, so that rewording one does not change the request.

    Returns:
      The schema, and whether servers can enforce it strictly, that is whether no object has arbitrary keys.
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


_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Count
    completion_tokens: _Count


class Completion(msgspec.Struct):
    """The used part of a server's reply."""

    choices: list[_Choice]
    usage: _Usage | None = None

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("no choices")


def decode_reply(data: str) -> Completion:
    """Decode a server's reply. Raises ValueError if it is malformed."""
    return decode_json(data, Completion)


def read_answer(request: ChatRequest, paid: PaidAnswer) -> Any:
    """Decode an answer. Raises AnswerError with the reason if it cannot be used.

    Text before the first and after the last brace is ignored, because servers without structured answers often add it.
    """
    if paid.refusal or paid.finish_reason == "content_filter":
        raise AnswerError("refused", f"{request.task}: refused: {paid.refusal or 'content filter'}")
    if paid.finish_reason == "length":
        raise AnswerError("cut off", f"{request.task}: the answer is cut off at the limit of tokens; raise it")
    text = paid.content[paid.content.find("{") : paid.content.rfind("}") + 1]
    try:
        answer = decode_json(text, request.answer)
        request.check(answer)
    except msgspec.ValidationError as fault:
        raise AnswerError("against the schema", f"{request.task}: {fault}") from None
    except msgspec.DecodeError as fault:
        raise AnswerError("no JSON", f"{request.task}: {fault}: {paid.content[:60]!r}") from None
    except ValueError as fault:
        raise AnswerError("unsuitable", f"{request.task}: {fault}") from None
    return answer


def make_retry_body(body: dict[str, Any], last: PaidAnswer, fault: AnswerError) -> dict[str, Any]:
    """Make the body of the attempt after the answer ``last``: the request, that answer, and its fault.

    At temperature 0 the request alone would get the same answer again.
    """
    complaint = f"That answer cannot be used ({fault}). Answer again, with JSON of the schema alone."
    turns = [{"role": "assistant", "content": last.content[:LONGEST_QUOTE]}, {"role": "user", "content": complaint}]
    return {**body, "messages": [*body["messages"], *turns]}
