"""Answers of `/v1/chat/completions` as the client reads them, whole and streamed."""

from collections import defaultdict

import msgspec

from dijiang_runtime.request import PositionLogprobs, RequestOutput
from server.choices import Choice
from server.generation import Generation
from server.protocol.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
)
from server.protocol.common import MaybeUsage
from server.protocol.logprobs import ChatLogprobs, chat_logprobs, prompt_logprobs
from server.routes.common import AnswerHead, usage_so_far
from server.streaming import EventTemplate, HeldTokens, StreamEncoder, event
from server.tool_calls.answer import AnswerReader
from server.tool_calls.use import ToolUse


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
