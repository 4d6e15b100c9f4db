"""`POST /v1/chat/completions`: answer a conversation."""

from collections import defaultdict

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import NO_LOGPROBS, PositionLogprobs, RequestOutput, SamplingParams
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
)
from server.protocol.common import MaybeUsage
from server.protocol.logprobs import chat_logprobs, prompt_logprobs
from server.routes.common import (
    MAX_CHARS_PER_TOKEN,
    AnswerHead,
    admit,
    collect,
    fit,
    ignored_header,
    json_response,
    off_loop,
    read_request,
    usage_so_far,
)
from server.streaming import EventStream, event

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(http: Request, context: ContextDep) -> Response:
    body = await read_request(http, context, ChatCompletionRequest)
    head = admit(context, body, "chatcmpl")
    prompt = await read_conversation(body, context)
    requests = make_requests(
        head.id, [(prompt, sampling_params(body, prompt, context))], body.num_choices
    )
    generation = Generation(context, requests, body.num_choices)
    if body.stream:
        stream = ChatStream(body, head, generation)
        return EventStream(context, generation, stream, ignored_header(body))
    choices = await collect(http, context, generation)
    answer = ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        system_fingerprint=head.system_fingerprint,
        choices=[chat_choice(body, index, choice) for index, choice in enumerate(choices)],
        usage=generation.usage(),
    )
    return json_response(answer, ignored_header(body))


async def read_conversation(body: ChatCompletionRequest, context: ServerContext) -> tuple[int, ...]:
    """The prompt's tokens, through the model's chat template."""
    conversation = body.conversation(max_messages=context.config.max_messages)
    num_chars = sum(len(message["content"]) for message in conversation)
    max_chars = MAX_CHARS_PER_TOKEN * context.engine.info.max_model_len
    token_ids = await off_loop(
        num_chars, context.model.template.encode, conversation, max_chars=max_chars
    )
    if not token_ids:
        raise InvalidRequestError("messages must not be without text.", param="messages")
    return tuple(token_ids)


def sampling_params(
    body: ChatCompletionRequest, prompt: tuple[int, ...], context: ServerContext
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
        context.model.defaults, max_tokens=max_tokens, prompt_logprobs=wanted
    )
    body.validate_sampling(sampling, vocab_size=info.vocab_size, max_logprobs=info.max_logprobs)
    return sampling


def chat_choice(body: ChatCompletionRequest, index: int, choice: Choice) -> ChatChoice:
    """A finished answer."""
    wants_prompt = body.prompt_logprobs is not None and choice.prompt_logprobs is not None
    return ChatChoice(
        index=index,
        message=AssistantMessage(content=choice.text),
        logprobs=chat_logprobs(choice.logprobs) if body.logprobs else None,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        prompt_logprobs=(
            prompt_logprobs(choice.prompt_logprobs or ()) if wants_prompt else msgspec.UNSET
        ),
    )


class ChatStream:
    """Spells a stream of chat chunks; see `StreamEncoder`."""

    def __init__(
        self, body: ChatCompletionRequest, head: AnswerHead, generation: Generation
    ) -> None:
        self._body = body
        self._head = head
        self._generation = generation
        self._held: defaultdict[int, list[PositionLogprobs]] = defaultdict(list)

    def opening(self) -> bytes:
        """The role, once for each choice."""
        delta = ChatDelta(role="assistant", content="")
        return b"".join(self._event(index, delta) for index in range(self._body.num_choices))

    def chunk(self, index: int, output: RequestOutput) -> bytes:
        """One event, or nothing while the text is held back. Held logprobs come with the text."""
        held = self._held[index]
        held.extend(output.logprobs or ())
        if not (output.text or output.finished):
            return b""
        delta = ChatDelta(content=output.text or None)
        data = self._event(index, delta, output, held)
        held.clear()
        return data

    def closing(self) -> bytes:
        if not self._body.wants_usage:
            return b""
        return event(self._chunk([], self._generation.usage()))

    def _event(
        self,
        index: int,
        delta: ChatDelta,
        output: RequestOutput | None = None,
        logprobs: list[PositionLogprobs] | None = None,
    ) -> bytes:
        choice = ChatChunkChoice(
            index=index,
            delta=delta,
            logprobs=chat_logprobs(logprobs) if self._body.logprobs and logprobs else None,
            finish_reason=output.finish_reason if output else None,
            stop_reason=output.stop_reason if output else None,
        )
        return event(self._chunk([choice], usage_so_far(self._body, self._generation)))

    def _chunk(self, choices: list[ChatChunkChoice], usage: MaybeUsage) -> ChatCompletionChunk:
        head = self._head
        return ChatCompletionChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=choices,
            usage=usage,
        )
