"""`POST /v1/chat/completions`: answer a conversation."""

from collections import defaultdict
from dataclasses import dataclass, replace

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import (
    NO_LOGPROBS,
    Grammar,
    PositionLogprobs,
    RequestOutput,
    SamplingParams,
)
from dijiang_runtime.tokenizer import LONG_TEXT
from server.bad_words import tokenize_words
from server.chat_template import PromptOptions
from server.context import ContextDep, ServerContext
from server.generation import Choice, Generation, make_requests
from server.protocol.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
    plain_messages,
)
from server.protocol.common import MaybeUsage
from server.protocol.logprobs import ChatLogprobs, chat_logprobs, prompt_logprobs
from server.routes.common import (
    MAX_CHARS_PER_TOKEN,
    AnswerHead,
    admit,
    collect,
    fit,
    ignored_header,
    json_response,
    off_loop,
    read_grammar,
    read_request,
    usage_so_far,
)
from server.stream_interval import grouped
from server.streaming import EventStream, EventTemplate, HeldTokens, StreamEncoder, event
from server.tool_calls.answer import AnswerReader
from server.tool_calls.use import ToolUse, plan_tools

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(http: Request, context: ContextDep) -> Response:
    body = await read_request(http, context, ChatCompletionRequest)
    head = admit(context, body, "chatcmpl")
    question = await read_question(body, context)
    prompt, use = question.prompt, question.use
    requests = make_requests(context, head.id, [(prompt, question.sampling)], body)
    generation = Generation(context, requests, body)
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
    """A conversation's tokens, through the model's chat template."""
    conversation = plain_messages(messages, max_messages=context.config.max_messages)
    num_chars = sum(len(message["content"]) for message in conversation)
    max_chars = MAX_CHARS_PER_TOKEN * context.engine.info.max_model_len
    token_ids = await off_loop(
        # Tools and calls are no text of which the length is known.
        LONG_TEXT if options.tools else num_chars,
        context.model.template.encode,
        conversation,
        options,
        max_chars=max_chars,
    )
    if not token_ids:
        raise InvalidRequestError("messages must not be without text.", param="messages")
    return token_ids


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


def chat_choice(
    body: ChatCompletionRequest, index: int, choice: Choice, use: ToolUse | None
) -> ChatChoice:
    """A finished answer."""
    reader = AnswerReader(use)
    reader.add(choice.text, is_last=True)
    wants_prompt = body.prompt_logprobs is not None and choice.prompt_logprobs is not None
    return ChatChoice(
        index=index,
        message=AssistantMessage(
            content=(reader.content or None) if reader.calls else reader.content,
            tool_calls=reader.calls or msgspec.UNSET,
        ),
        logprobs=logprobs_of(body, choice.logprobs),
        finish_reason=reader.finish_reason(choice.finish_reason),
        stop_reason=choice.stop_reason,
        prompt_logprobs=(
            prompt_logprobs(choice.prompt_logprobs or ()) if wants_prompt else msgspec.UNSET
        ),
        token_ids=choice.token_ids if body.return_token_ids else msgspec.UNSET,
    )


def logprobs_of(
    body: ChatCompletionRequest, positions: list[PositionLogprobs]
) -> ChatLogprobs | None:
    """The logprobs object of some positions, where it is wanted."""
    if not body.logprobs:
        return None
    return chat_logprobs(positions, as_ids=bool(body.return_tokens_as_token_ids))


class ChatStream(StreamEncoder):
    """Spells a stream of chat chunks; see `StreamEncoder`."""

    def __init__(
        self,
        body: ChatCompletionRequest,
        head: AnswerHead,
        generation: Generation,
        prompt: tuple[int, ...],
        use: ToolUse | None,
    ) -> None:
        self._body = body
        self._head = head
        self._generation = generation
        self._prompt = prompt
        self._held: defaultdict[int, HeldTokens] = defaultdict(HeldTokens)
        self._readers = [AnswerReader(use) for _ in range(body.num_choices)]
        self._templates: dict[int, EventTemplate] = {}
        self._is_plain = (
            not body.logprobs and not body.return_token_ids and not body.wants_continuous_usage
        )
        """Whether inner events differ in their text alone."""

    def opening(self) -> bytes:
        """The role, once for each choice."""
        delta = ChatDelta(role="assistant", content="")
        usage = usage_so_far(self._body, self._generation)
        prompt = self._prompt if self._body.return_token_ids else msgspec.UNSET
        chunks = [
            self._chunk([ChatChunkChoice(index=index, delta=delta)], usage, prompt)
            for index in range(self._body.num_choices)
        ]
        return b"".join(map(event, chunks))

    def chunk(self, index: int, output: RequestOutput) -> bytes:
        """One event, or nothing while the text is held back. Held tokens come with the text."""
        body, held, reader = self._body, self._held[index], self._readers[index]
        content, calls = reader.add(output.text, is_last=output.finished)
        if self._is_plain and not (calls or output.finished):
            return self._template(index).event(content) if content else b""
        held.add(output)
        if not (content or calls or output.finished):
            return b""
        choice = ChatChunkChoice(
            index=index,
            delta=ChatDelta(content=content or None, tool_calls=calls or msgspec.UNSET),
            logprobs=logprobs_of(body, held.logprobs) if held.logprobs else None,
            finish_reason=reader.finish_reason(output.finish_reason),
            stop_reason=output.stop_reason,
            token_ids=held.token_ids if body.return_token_ids else msgspec.UNSET,
        )
        data = event(self._chunk([choice], usage_so_far(body, self._generation)))
        held.clear()
        return data

    def _template(self, index: int) -> EventTemplate:
        """The events of a choice that bring nothing but text."""
        template = self._templates.get(index)
        if template is None:
            usage = usage_so_far(self._body, self._generation)
            template = self._templates[index] = EventTemplate(
                lambda text: self._chunk(
                    [ChatChunkChoice(index=index, delta=ChatDelta(content=text))], usage
                )
            )
        return template

    def closing(self) -> bytes:
        if not self._body.wants_usage:
            return super().closing()
        return event(self._chunk([], self._generation.usage())) + super().closing()

    def _chunk(
        self,
        choices: list[ChatChunkChoice],
        usage: MaybeUsage,
        prompt_token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET,
    ) -> ChatCompletionChunk:
        head = self._head
        return ChatCompletionChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=choices,
            usage=usage,
            prompt_token_ids=prompt_token_ids,
        )
