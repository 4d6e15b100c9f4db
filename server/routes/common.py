"""The steps that completions and chat share, from the body to the engine and back."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar
from uuid import uuid4

import msgspec
from fastapi import Request
from starlette.responses import Response

from dijiang_runtime.engine.messages import EngineInfo
from dijiang_runtime.errors import ContextLengthError, EngineDeadError
from dijiang_runtime.request import Grammar
from dijiang_runtime.tokenizer import LONG_TEXT
from server.choices import Choice
from server.context import ServerContext
from server.errors import UnsupportedMediaTypeError
from server.generation import Generation
from server.lifecycle import client_left, run_for_client
from server.middleware import record_of
from server.protocol.common import MaybeUsage, RequestModel, parse_body
from server.protocol.sampling import EngineRequest, GenerationRequest
from server.version import VERSION

M = TypeVar("M", bound=RequestModel)
G = TypeVar("G", bound=EngineRequest)
P = ParamSpec("P")
T = TypeVar("T")

MAX_CHARS_PER_TOKEN = 8
"""A prompt longer than this many characters for each token of the context is refused unread."""

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every object of one answer, whole or streamed, begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


async def read_body(http: Request, request_type: type[M]) -> M:
    """The body as a request. One that is not plain JSON in UTF-8 is refused unread."""
    if http.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaTypeError("Send the body without Content-Encoding.")
    media_type, _, options = http.headers.get("content-type", "").partition(";")
    charset = options.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise UnsupportedMediaTypeError(
            "Send JSON in UTF-8, with the header 'Content-Type: application/json'."
        )
    return parse_body(request_type, await http.body())


async def read_request(http: Request, context: ServerContext, request_type: type[G]) -> G:
    """The body, as far as it can be checked without the model."""
    body = await read_body(http, request_type)
    body.check(max_choices=context.config.max_choices)
    if body.user:
        record_of(http.scope).user_hash = hashlib.sha256(body.user.encode()).hexdigest()[:16]
    return body


def admit(context: ServerContext, body: EngineRequest, kind: str) -> AnswerHead:
    """Let a request in, and make the head of its answer.

    Raises:
        UnknownModelError: it names another model.
        ServerDrainingError, EngineDeadError: nobody can answer it now.
    """
    name = context.model.resolve_name(body.model)
    if context.lifecycle.is_draining:
        context.metrics.admission_rejected("draining")
    context.lifecycle.check_accepting()
    if not context.engine.is_ready:
        context.metrics.admission_rejected("engine_not_ready")
        raise EngineDeadError("The model is not loaded yet. Try again.")
    return AnswerHead(
        id=f"{kind}-{uuid4().hex}",
        created=int(time.time()),
        model=name,
        system_fingerprint=fingerprint(context.engine.info),
    )


async def off_loop(
    num_chars: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a function that reads `num_chars` of text, in a thread when that takes a while."""
    if num_chars < LONG_TEXT:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


async def read_grammar(context: ServerContext, grammar: Grammar | None) -> Grammar | None:
    """The grammar of an answer, tried out before anything of it is computed.

    Raises:
        InvalidRequestError: it cannot be used.
    """
    if grammar is not None:
        info = context.engine.info
        await context.grammars.check(
            grammar, vocab_size=info.vocab_size, eos_token_ids=info.eos_token_ids
        )
    return grammar


def fit(
    info: EngineInfo, num_prompt_tokens: int, *, wanted: int | None, default: int, param: str
) -> int:
    """The `max_tokens` of one sequence: what is wanted, else the default or what is left."""
    num_left = info.max_model_len - num_prompt_tokens
    max_tokens = min(default, num_left) if wanted is None else wanted
    if num_left < max_tokens or (wanted is None and num_left < 1):
        raise ContextLengthError(
            num_prompt_tokens, max(1, max_tokens), info.max_model_len, param=param
        )
    return max_tokens


async def collect(http: Request, context: ServerContext, generation: Generation) -> list[Choice]:
    """The whole answers; abandoned when the client leaves."""
    with generation:
        record_of(http.scope).accepted = True
        left = client_left(http.receive)
        return await run_for_client(
            generation.collect(), left, context.lifecycle, deadline=generation.deadline
        )


def json_response(data: msgspec.Struct, headers: dict[str, str]) -> Response:
    return Response(_encoder.encode(data), headers=headers, media_type="application/json")


def usage_so_far(body: GenerationRequest, generation: Generation) -> MaybeUsage:
    """What a chunk that is not the last says about usage."""
    if body.wants_continuous_usage:
        return generation.usage()
    return None if body.wants_usage else msgspec.UNSET


def ignored_header(body: RequestModel) -> dict[str, str]:
    """Tells the client which fields had no effect."""
    names = body.ignored_fields()
    return {"X-Ignored-Parameters": ", ".join(names)} if names else {}


def fingerprint(info: EngineInfo) -> str:
    """Changes with whatever may change a seeded answer: software, model, device and precision."""
    parts = (
        VERSION,
        info.family,
        info.num_parameters,
        info.device,
        info.dtype,
        info.num_threads,
    )
    return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
