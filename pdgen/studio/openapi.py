"""The OpenAPI 3.1 document of the API, from its table of operations and the msgspec structs."""

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pdgen.studio import api


class Operation(NamedTuple):
    """One operation of the API; its description is the docstring of its handler.

    Attributes:
      path: with parameters in braces.
      body, answer: structs of the request and of the answer; None: no body, or bytes of ``media``.
      query: names of parameters.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    body: type | None = None
    answer: type | None = None
    status: int = 200
    query: tuple[str, ...] = ()
    media: str = "application/json"


def describe_api(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI document."""
    kinds = [kind for o in operations for kind in (o.body, o.answer) if kind is not None]
    kinds = list(dict.fromkeys([*kinds, api.Fault]))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    references = dict(zip(kinds, schemas))
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pdgen studio",
            "version": "1",
            "description": "Paint together with the model. Every error is an object with one line, `error`.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _describe(operation: Operation, references: dict[type, Any]) -> dict[str, Any]:
    summary, _, description = inspect.cleandoc(operation.handler.__doc__ or "").partition("\n")
    content = {operation.media: {"schema": references[operation.answer] if operation.answer else {}}}
    success: dict[str, Any] = {"description": "done"}
    if operation.status != 204:
        success["content"] = content
    fault = {"description": "refused", "content": {"application/json": {"schema": references[api.Fault]}}}
    described: dict[str, Any] = {
        "operationId": getattr(operation.handler, "__name__", operation.path),
        "summary": summary,
        "description": " ".join(description.split()),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", operation.path)
        ]
        + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in operation.query],
        "responses": {str(operation.status): success, "4XX": fault},
    }
    if operation.body is not None:
        schema = {"schema": references[operation.body]}
        described["requestBody"] = {"required": True, "content": {"application/json": schema}}
    return described
