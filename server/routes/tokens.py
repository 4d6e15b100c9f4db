"""`POST /tokenize` and `POST /detokenize`: the model's tokens, without running it."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from dijiang_runtime.errors import InvalidRequestError
from server.context import ContextDep, ServerContext
from server.protocol.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from server.routes.chat import read_messages
from server.routes.common import (
    MAX_CHARS_PER_TOKEN,
    ignored_header,
    json_response,
    off_loop,
    read_body,
)

router = APIRouter()


@router.post("/tokenize")
async def tokenize(http: Request, context: ContextDep) -> Response:
    body = await read_body(http, TokenizeRequest)
    body.check()
    context.model.resolve_name(body.model)
    if body.prompt is not None:
        ids = await read_text(body.prompt, body.add_special_tokens is not False, context)
    else:
        ids = await read_messages(body.messages or [], body.prompt_options(), context)
    tokenizer = context.model.tokenizer
    answer = TokenizeResponse(
        count=len(ids),
        max_model_len=context.engine.info.max_model_len,
        tokens=ids,
        token_strs=(
            [tokenizer.id_to_token(token_id) or "" for token_id in ids]
            if body.return_token_strs
            else None
        ),
    )
    return json_response(answer, ignored_header(body))


@router.post("/detokenize")
async def detokenize(http: Request, context: ContextDep) -> Response:
    body = await read_body(http, DetokenizeRequest)
    context.model.resolve_name(body.model)
    vocab_size = context.engine.info.vocab_size
    if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) < vocab_size:
        raise InvalidRequestError(
            f"tokens must hold token ids from 0 to {vocab_size - 1}.", param="tokens"
        )
    decode = context.model.tokenizer.decode
    text = await off_loop(len(body.tokens), decode, body.tokens, skip_special_tokens=False)
    return json_response(DetokenizeResponse(prompt=text), ignored_header(body))


async def read_text(text: str, add_special_tokens: bool, context: ServerContext) -> list[int]:
    """The tokens of a text, as the completions endpoint reads it."""
    max_chars = MAX_CHARS_PER_TOKEN * context.engine.info.max_model_len
    if len(text) > max_chars:
        raise InvalidRequestError(
            f"prompt must not be longer than {max_chars} characters.", param="prompt"
        )
    return await off_loop(
        len(text),
        context.model.tokenizer.encode,
        text,
        add_special_tokens=add_special_tokens,
        allow_special=False,
    )
