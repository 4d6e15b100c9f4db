"""`POST /v1/embeddings`: what texts are about, in numbers."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from dijiang_runtime.errors import ContextLengthError, InvalidRequestError
from dijiang_runtime.request import SamplingParams
from server.choices import Choice
from server.context import ContextDep, ServerContext
from server.generation import Generation, deadline_of, make_requests
from server.lifecycle import client_left, run_for_client
from server.middleware import RequestRecord, record_of
from server.protocol.embeddings import (
    EmbeddingList,
    EmbeddingObject,
    EmbeddingRequest,
    EmbeddingUsage,
)
from server.routes.common import (
    AnswerHead,
    admit,
    ignored_header,
    json_response,
    read_request,
)
from server.routes.prompts import read_texts

router = APIRouter()

TokenIds = tuple[int, ...]


@router.post("/v1/embeddings")
async def create_embeddings(http: Request, context: ContextDep) -> Response:
    body = await read_request(http, context, EmbeddingRequest)
    head = admit(context, body, "embd")
    body.check_dimensions(context.engine.info.hidden_size)
    prompts = await read_inputs(body, context)
    embeddings = await run_for_client(
        embed(prompts, body, head, context, record_of(http.scope)),
        client_left(http.receive),
        context.lifecycle,
        deadline=deadline_of(context, body),
    )
    num_tokens = sum(map(len, prompts))
    answer = EmbeddingList(
        data=[
            EmbeddingObject(index=index, embedding=body.encode(choice.embedding or b""))
            for index, choice in enumerate(embeddings)
        ],
        model=head.model,
        usage=EmbeddingUsage(num_tokens, num_tokens),
    )
    return json_response(answer, ignored_header(body))


async def read_inputs(body: EmbeddingRequest, context: ServerContext) -> list[TokenIds]:
    """The texts as tokens, as many as are wanted of each."""
    max_model_len = context.engine.info.max_model_len
    inputs = []
    for whole in await read_texts(
        body.inputs(), context, param="input", add_special_tokens=body.add_special_tokens
    ):
        ids = body.truncate(whole, max_model_len=max_model_len, max_tokens=0)
        if not ids:
            raise InvalidRequestError("input must hold at least one token.", param="input")
        if len(ids) > max_model_len:
            raise ContextLengthError(len(ids), 0, max_model_len, param="input")
        inputs.append(tuple(ids))
    return inputs


async def embed(
    prompts: Sequence[TokenIds],
    body: EmbeddingRequest,
    head: AnswerHead,
    context: ServerContext,
    record: RequestRecord,
) -> list[Choice]:
    """The embeddings in order. Only so many texts are in the engine at once as a request may have
    sequences, so that a long list of them takes its turn with what others ask."""
    sampling, size = SamplingParams(max_tokens=0), context.config.max_sequences_per_request
    found: list[Choice] = []
    for start in range(0, len(prompts), size):
        part = [(prompt, sampling) for prompt in prompts[start : start + size]]
        requests = make_requests(context, f"{head.id}-{start}", part, body, embed=True)
        with await Generation.begin(context, requests, body) as generation:
            record.accepted = True
            found += await generation.collect()
    return found
