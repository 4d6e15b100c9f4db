"""`POST /v1/completions`: continue prompts."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from dijiang_runtime.request import (
    NO_LOGPROBS,
    Grammar,
    SamplingParams,
)
from server.bad_words import tokenize_words
from server.choices import best_choices
from server.context import ContextDep, ServerContext
from server.generation import Generation, make_requests
from server.protocol.completions import (
    DEFAULT_MAX_TOKENS,
    CompletionRequest,
)
from server.routes.common import (
    admit,
    collect,
    fit,
    ignored_header,
    json_response,
    read_grammar,
    read_request,
)
from server.routes.completion_writer import CompletionStream, CompletionWriter
from server.routes.prompts import Prompt, read_prompts
from server.stream_interval import grouped
from server.streaming import EventStream

router = APIRouter()


@router.post("/v1/completions")
async def create_completion(http: Request, context: ContextDep) -> Response:
    body = await read_request(http, context, CompletionRequest)
    head = admit(context, body, "cmpl")
    prompts = await read_prompts(body, context)
    bad_words = tokenize_words(body.bad_words, context.model.tokenizer)
    grammar = await read_grammar(context, body.read_grammar())
    requests = make_requests(
        context,
        head.id,
        [
            (prompt.token_ids, sampling_params(body, prompt, context, bad_words, grammar))
            for prompt in prompts
        ],
        body,
    )
    generation = await Generation.begin(context, requests, body)
    writer = CompletionWriter(body, head, prompts)
    if body.stream:
        stream = CompletionStream(writer, generation)
        encoder = grouped(stream, body.stream_interval)
        return EventStream(context, generation, encoder, ignored_header(body))
    choices = best_choices(await collect(http, context, generation), body)
    answer = writer.completion(
        [writer.choice(index, choice) for index, choice in enumerate(choices)],
        generation.usage(),
    )
    return json_response(answer, ignored_header(body))


def sampling_params(
    body: CompletionRequest,
    prompt: Prompt,
    context: ServerContext,
    bad_words: tuple[tuple[int, ...], ...],
    grammar: Grammar | None,
) -> SamplingParams:
    """The sampling parameters of a prompt's first choice, checked."""
    info = context.engine.info
    max_tokens = fit(
        info,
        len(prompt.token_ids),
        wanted=body.max_tokens,
        default=DEFAULT_MAX_TOKENS,
        param="prompt",
    )
    wanted = NO_LOGPROBS if body.prompt_logprobs is None else body.prompt_logprobs
    if body.echo:
        wanted = max(wanted, body.num_logprobs)
        if max_tokens == 0:
            # The engine has something to do only if somebody wants the prompt's logprobs.
            wanted = max(wanted, 0)
    sampling = body.to_sampling_params(
        context.model.defaults,
        max_tokens=max_tokens,
        prompt_logprobs=wanted,
        bad_words=bad_words,
        grammar=grammar,
    )
    body.validate_sampling(sampling, vocab_size=info.vocab_size, max_logprobs=info.max_logprobs)
    return sampling
