"""The OpenAPI document, made from the types that requests are read with and answers are made of.

A test holds it against real answers.
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import msgspec

from server.api_operations import OPERATIONS, Operation
from server.errors import ErrorResponse
from server.middleware import PUBLIC_PATHS
from server.request_bounds import Schema, bounded

REF: Final = "#/components/schemas/{}"


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
            parts = {**schema.pop("$defs", {}), operation.request.__name__: schema}
            schemas |= {name: bounded(name, part) for name, part in parts.items()}
    by_name = sorted(answers, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(by_name, ref_template=REF.format("{name}"))
    return {**schemas, **components}


def _ref(kind: type) -> Schema:
    return {"$ref": REF.format(kind.__name__)}
