"""The OpenAPI document, made from the types that requests are read with and answers are made of.

The routes read bodies themselves, so FastAPI knows nothing of them; `OPERATIONS` does. A test holds
it against the routes and against real answers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec
from pydantic import BaseModel

from server.errors import ErrorResponse
from server.middleware import PUBLIC_PATHS
from server.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from server.protocol.completions import Completion, CompletionRequest
from server.protocol.embeddings import EmbeddingList, EmbeddingRequest
from server.protocol.models import ModelCard, ModelList
from server.protocol.response_objects import Response, ResponseEvent
from server.protocol.responses import ResponsesRequest
from server.protocol.sampling import MAX_TIMEOUT_SECONDS
from server.protocol.status import Load, Status, Version
from server.protocol.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)

REF: Final = "#/components/schemas/{}"

Schema = dict[str, Any]

INT32, INT64 = 2**31, 2**63
BOUNDS: Final[dict[str, Schema]] = {
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"minimum": -1, "maximum": INT32 - 1},
    "min_p": {"minimum": 0, "maximum": 1},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "repetition_penalty": {"minimum": 0.01, "maximum": 100},
    "seed": {"minimum": -INT64, "maximum": INT64 - 1},
    "priority": {"minimum": -INT32, "maximum": INT32 - 1},
    "timeout": {"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_SECONDS},
    "truncate_prompt_tokens": {"minimum": -1},
    "n": {"minimum": 1},
    "best_of": {"minimum": 1},
    "min_tokens": {"minimum": 0},
    "max_tokens": {"minimum": 0},
    "max_completion_tokens": {"minimum": 1},
    "max_output_tokens": {"minimum": 1},
    "logprobs": {"minimum": 0},
    "top_logprobs": {"minimum": 0},
    "prompt_logprobs": {"minimum": 0},
}
"""What the numbers of a request may be, as far as it does not depend on the server's options. The
code checks them where it can say what to do; a test holds both together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    request: type[BaseModel] | None = None
    answer: type[msgspec.Struct] | str | None = None
    """What a 200 holds: a type of ours, a media type, or nothing."""
    chunk: type[msgspec.Struct] | None = None
    """What the data of each event is where the answer may be a stream."""
    is_typed_stream: bool = False
    """Whether its events have names and an own end, rather than `[DONE]`."""
    errors: tuple[int, ...] = (401,)
    unready: type[msgspec.Struct] | None = None
    """What a 503 holds where it is no error, but what was asked for."""


_READ = (400, 401, 404, 413, 415, 503)
_GENERATE = (*_READ, 429, 500, 504)

OPERATIONS: Final = (
    Operation(
        method="post",
        path="/v1/completions",
        summary="Continue prompts.",
        request=CompletionRequest,
        answer=Completion,
        chunk=Completion,
        errors=_GENERATE,
    ),
    Operation(
        method="post",
        path="/v1/chat/completions",
        summary="Answer a conversation.",
        request=ChatCompletionRequest,
        answer=ChatCompletion,
        chunk=ChatCompletionChunk,
        errors=_GENERATE,
    ),
    Operation(
        method="post",
        path="/v1/responses",
        summary="Answer a text or a conversation, in OpenAI's newer form.",
        request=ResponsesRequest,
        answer=Response,
        chunk=ResponseEvent,
        is_typed_stream=True,
        errors=_GENERATE,
    ),
    Operation(
        method="post",
        path="/v1/embeddings",
        summary="Say what texts are about, in numbers.",
        request=EmbeddingRequest,
        answer=EmbeddingList,
        errors=_GENERATE,
    ),
    Operation(method="get", path="/v1/models", summary="List the model.", answer=ModelList),
    Operation(
        method="get",
        path="/v1/models/{name}",
        summary="Describe the model under one of its names.",
        answer=ModelCard,
        errors=(401, 404),
    ),
    Operation(
        method="post",
        path="/tokenize",
        summary="Tell the tokens of a text or of a conversation.",
        request=TokenizeRequest,
        answer=TokenizeResponse,
        errors=_READ,
    ),
    Operation(
        method="post",
        path="/detokenize",
        summary="Tell the text of tokens.",
        request=DetokenizeRequest,
        answer=DetokenizeResponse,
        errors=_READ,
    ),
    Operation(method="get", path="/load", summary="Tell how much runs and waits.", answer=Load),
    Operation(method="get", path="/version", summary="Tell the version.", answer=Version),
    Operation(method="get", path="/metrics", summary="Tell the metrics.", answer="text/plain"),
    Operation(
        method="get", path="/openapi.json", summary="This document.", answer="application/json"
    ),
    Operation(
        method="get",
        path="/livez",
        summary="200 while the event loop runs.",
        answer=Status,
        errors=(),
    ),
    Operation(
        method="get",
        path="/readyz",
        summary="200 while new requests are welcome.",
        answer=Status,
        errors=(),
        unready=Status,
    ),
    Operation(
        method="get",
        path="/health",
        summary="200 while the engine lives, 503 otherwise; without a body.",
        errors=(503,),
    ),
    Operation(method="get", path="/", summary="The playground.", answer="text/html", errors=()),
)


def build_document(version: str, *, has_playground: bool, needs_key: bool) -> Schema:
    """The document of one server."""
    operations = [o for o in OPERATIONS if has_playground or o.path != "/"]
    document: Schema = {
        "openapi": "3.2.0",
        "info": {
            "title": "DiJiang",
            "version": version,
            "description": "The OpenAI API for DiJiang models, with vLLM's extensions.",
        },
        "paths": {},
        "components": {"schemas": _components(operations)},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for operation in operations:
        entry = _describe(operation)
        if needs_key and operation.path not in PUBLIC_PATHS:
            entry["security"] = [{"key": []}]
        document["paths"].setdefault(operation.path, {})[operation.method] = entry
    return document


def _describe(operation: Operation) -> Schema:
    entry: Schema = {"summary": operation.summary, "responses": _responses(operation)}
    entry["operationId"] = f"{operation.method} {operation.path}"
    if "{name}" in operation.path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        entry["parameters"] = [name]
    if operation.request is not None:
        entry["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(operation.request)}},
        }
    return entry


def _responses(operation: Operation) -> Schema:
    content: Schema = {}
    if isinstance(operation.answer, str):
        content[operation.answer] = {}
    elif operation.answer is not None:
        content["application/json"] = {"schema": _ref(operation.answer)}
    if operation.chunk is not None:
        content["text/event-stream"] = {
            "itemSchema": _event(operation.chunk, is_typed=operation.is_typed_stream)
        }
    answer: Schema = {"description": "OK"}
    responses = {"200": {**answer, "content": content} if content else answer}
    error: Schema = {"content": {"application/json": {"schema": _ref(ErrorResponse)}}}
    for status in sorted(operation.errors):
        # What answers nothing tells nothing of its failure either.
        body = {} if operation.answer is None else error
        responses[str(status)] = {"description": HTTPStatus(status).phrase, **body}
    if operation.unready is not None:
        responses["503"] = {
            "description": "Not now",
            "content": {"application/json": {"schema": _ref(operation.unready)}},
        }
    return responses


def _event(chunk: type[msgspec.Struct], *, is_typed: bool) -> Schema:
    """One server-sent event, as OpenAPI 3.2 describes it: an object of its fields."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": _ref(chunk) if is_typed else {"anyOf": [_ref(chunk), _ref(ErrorResponse)]},
    }
    event: Schema = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    if is_typed:
        event["properties"]["event"] = {"type": "string", "description": "The type in the data."}
        event["required"] = ["event", "data"]
        return event
    end = {"type": "object", "properties": {"data": {"const": "[DONE]"}}, "required": ["data"]}
    return {"anyOf": [end, event]}


def _components(operations: Iterable[Operation]) -> Schema:
    answers: set[type[msgspec.Struct]] = {ErrorResponse}
    schemas: Schema = {}
    for operation in operations:
        for kind in (operation.answer, operation.chunk, operation.unready):
            if isinstance(kind, type):
                answers.add(kind)
        if operation.request is not None:
            schema = operation.request.model_json_schema(ref_template=REF.format("{model}"))
            schemas |= schema.pop("$defs", {})
            schemas[operation.request.__name__] = _bounded(schema)
    by_name = sorted(answers, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(by_name, ref_template=REF.format("{name}"))
    return {**schemas, **components}


def _bounded(schema: Schema) -> Schema:
    """The schema of a request, with the bounds of its numbers."""
    for name, field in schema["properties"].items():
        for form in field.get("anyOf", [field]):
            if form.get("type") in ("integer", "number"):
                form.update(BOUNDS.get(name, {}))
    return schema


def _ref(kind: type) -> Schema:
    return {"$ref": REF.format(kind.__name__)}
