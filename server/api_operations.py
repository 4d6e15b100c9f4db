"""What the server can be asked: each method of each path, with the types of request and answer.

The routes read bodies themselves, so FastAPI knows nothing of them; this list does. A test holds it
against the routes.
"""

from dataclasses import dataclass
from typing import Final

import msgspec
from pydantic import BaseModel

from server.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from server.protocol.completions import Completion, CompletionRequest
from server.protocol.embeddings import EmbeddingList, EmbeddingRequest
from server.protocol.models import ModelCard, ModelList
from server.protocol.response_objects import Response, ResponseEvent
from server.protocol.responses import ResponsesRequest
from server.protocol.status import Load, Status, Version
from server.protocol.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)


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
