"""`POST /v1/chat/completions`: answer a conversation."""

from dataclasses import dataclass, replace

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import (
    NO_LOGPROBS,
    Grammar,
    SamplingParams,
)
from dijiang_runtime.tokenizer import LONG_TEXT
from server.bad_words import tokenize_words
from server.chat_template import ChatTemplate, PromptOptions
from server.context import ContextDep, ServerContext
from server.errors import UnsupportedParameterError
from server.generation import Generation, make_requests
from server.protocol.chat import (
    ChatCompletion,
    ChatCompletionRequest,
    ChatMessage,
    plain_messages,
)
from server.routes.chat_writer import ChatStream, chat_choice
from server.routes.common import (
    MAX_CHARS_PER_TOKEN,
    admit,
    collect,
    fit,
    ignored_header,
    json_response,
    off_loop,
    read_grammar,
    read_request,
)
from server.stream_interval import grouped
from server.streaming import EventStream
from server.tool_calls.use import ToolUse, plan_tools

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(http: Request, context: ContextDep) -> Response:
    body = await read_request(http, context, ChatCompletionRequest)
    head = admit(context, body, "chatcmpl")
    question = await read_question(body, context)
    prompt, use = question.prompt, question.use
    requests = make_requests(context, head.id, [(prompt, question.sampling)], body)
    generation = await Generation.begin(context, requests, body)
    if body.stream:
        stream = ChatStream(body, head, generation, prompt, use)
        encoder = grouped(stream, body.stream_interval)
        return EventStream(context, generation, encoder, ignored_header(body))
    choices = await collect(http, context, generation)
    answer = ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        system_fingerprint=head.system_fingerprint,
        choices=[chat_choice(body, index, choice, use) for index, choice in enumerate(choices)],
        usage=generation.usage(),
        prompt_token_ids=prompt if body.return_token_ids else msgspec.UNSET,
    )
    return json_response(answer, ignored_header(body))


@dataclass(frozen=True, slots=True)
class Question:
    """What a chat asks of the engine, and how its answer is read."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    """Of the first choice."""
    use: ToolUse | None


async def read_question(body: ChatCompletionRequest, context: ServerContext) -> Question:
    """Everything about a chat that can be wrong is found here, before it runs."""
    model = context.model
    grammar = body.read_grammar()
    use = plan_tools(body, grammar, model.tool_format, model.tokenizer)
    prompt = await read_prompt(body, use, context)
    grammar = await read_grammar(context, grammar if use is None else use.grammar)
    return Question(prompt, sampling_params(body, prompt, context, grammar, use), use)


async def read_prompt(
    body: ChatCompletionRequest, use: ToolUse | None, context: ServerContext
) -> tuple[int, ...]:
    """The prompt's tokens, as many as are wanted of them."""
    options = replace(body.prompt_options(), tools=use.tools if use is not None else None)
    token_ids = await read_messages(body.messages, options, context)
    max_model_len = context.engine.info.max_model_len
    max_tokens = body.token_limit
    if max_tokens is None:
        max_tokens = min(context.config.default_max_tokens, max_model_len // 2)
    kept = body.truncate(token_ids, max_model_len=max_model_len, max_tokens=max_tokens)
    return tuple(kept)


async def read_messages(
    messages: list[ChatMessage], options: PromptOptions, context: ServerContext
) -> list[int]:
    """A conversation's tokens, through the chat template."""
    template = await read_template(options.template, context)
    conversation = plain_messages(messages, max_messages=context.config.max_messages)
    num_chars = sum(len(message["content"]) for message in conversation)
    max_chars = MAX_CHARS_PER_TOKEN * context.engine.info.max_model_len
    token_ids = await off_loop(
        # Tools and calls are no text of which the length is known.
        LONG_TEXT if options.tools else num_chars,
        template.encode,
        conversation,
        options,
        max_chars=max_chars,
    )
    if not token_ids:
        raise InvalidRequestError("messages must not be without text.", param="messages")
    return token_ids


async def read_template(source: str | None, context: ServerContext) -> ChatTemplate:
    """The model's chat template, or the one that a request brings, where that is allowed."""
    if source is None:
        return context.model.template
    if not context.config.trust_request_chat_template:
        raise UnsupportedParameterError(
            "chat_template is not taken from requests: a template is a program. The operator "
            "allows it with --trust-request-chat-template.",
            param="chat_template",
        )
    return await off_loop(LONG_TEXT, ChatTemplate.of_request, context.model.tokenizer, source)


def sampling_params(
    body: ChatCompletionRequest,
    prompt: tuple[int, ...],
    context: ServerContext,
    grammar: Grammar | None = None,
    use: ToolUse | None = None,
) -> SamplingParams:
    """The sampling parameters of the first choice, checked."""
    info = context.engine.info
    max_tokens = fit(
        info,
        len(prompt),
        wanted=body.token_limit,
        default=context.config.default_max_tokens,
        param="messages",
    )
    wanted = NO_LOGPROBS if body.prompt_logprobs is None else body.prompt_logprobs
    sampling = body.to_sampling_params(
        context.model.defaults,
        max_tokens=max_tokens,
        prompt_logprobs=wanted,
        bad_words=tokenize_words(body.bad_words, context.model.tokenizer),
        grammar=grammar,
        shown_token_ids=use.shown_token_ids if use is not None else (),
    )
    body.validate_sampling(sampling, vocab_size=info.vocab_size, max_logprobs=info.max_logprobs)
    return sampling
