"""`/v1/chat/completions`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import NO_LOGPROBS
from server.chat_template import RESERVED_VARIABLES, PromptOptions
from server.errors import UnsupportedParameterError
from server.protocol.common import MaybeUsage, RequestModel, Usage
from server.protocol.logprobs import ChatLogprobs, PromptLogprobs
from server.protocol.sampling import GenerationRequest
from server.protocol.tools import (
    MAX_TOOLS,
    PastToolCall,
    ToolCallDelta,
    ToolCalls,
    ToolFields,
)

Role = Literal["system", "developer", "user", "assistant", "tool"]

MAX_TEMPLATE_CHARS = 65_536

ChatFinishReason = Literal["stop", "length", "tool_calls"]

# What would make a message more than its text.
_MESSAGE_EXTRAS = ("function_call", "audio", "reasoning_content")


class ContentPart(RequestModel):
    """One part of a message's content. Only text is understood."""

    type: str
    text: str | None = None


class ChatMessage(RequestModel):
    role: Role
    content: str | Annotated[list[ContentPart], Field(max_length=1024, fail_fast=True)] | None = (
        None
    )
    """Only an assistant that called tools may have none."""
    name: str | None = None
    """Accepted for compatibility; templates may use it."""
    tool_calls: (
        Annotated[list[PastToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
    ) = None
    """Of an assistant's message: what it called."""
    tool_call_id: str | None = None
    """Of a tool's message: the call that it answers."""

    def text(self, param: str) -> str:
        """The whole content as one string. `param` is where the message stands in the request."""
        for name in _MESSAGE_EXTRAS:
            if (self.model_extra or {}).get(name):
                raise UnsupportedParameterError(
                    f"{param}.{name} is not supported by this server.", param=f"{param}.{name}"
                )
        if self.content is None:
            if self.tool_calls:
                return ""
            raise InvalidRequestError(f"{param}.content is required.", param=f"{param}.content")
        if isinstance(self.content, str):
            return self.content
        for i, part in enumerate(self.content):
            where = f"{param}.content[{i}]"
            if part.type != "text":
                raise UnsupportedParameterError(
                    f"{where}.type must be 'text': this model reads nothing else.",
                    param=f"{where}.type",
                )
            if part.text is None:
                raise InvalidRequestError(f"{where}.text is required.", param=f"{where}.text")
        return "".join(part.text or "" for part in self.content)

    def plain(self, param: str) -> dict[str, Any]:
        """The message as a chat template reads it. `param` is where it stands in the request."""
        entry: dict[str, Any] = {"role": self.role, "content": self.text(param)}
        if self.name is not None:
            entry["name"] = self.name
        if self.tool_calls:
            if self.role != "assistant":
                where = f"{param}.tool_calls"
                raise InvalidRequestError(f"{where} are only an assistant's.", param=where)
            entry["tool_calls"] = [
                call.plain(f"{param}.tool_calls[{i}]") for i, call in enumerate(self.tool_calls)
            ]
        if (self.tool_call_id is None) == (self.role == "tool"):
            where = f"{param}.tool_call_id"
            rule = "is required" if self.role == "tool" else "is only a tool's"
            raise InvalidRequestError(f"{where} {rule}.", param=where)
        if self.tool_call_id is not None:
            entry["tool_call_id"] = self.tool_call_id
        return entry


Messages = Annotated[list[ChatMessage], Field(fail_fast=True)]


def plain_messages(messages: list[ChatMessage], *, max_messages: int) -> list[dict[str, Any]]:
    """The messages as a chat template reads them."""
    if not 1 <= len(messages) <= max_messages:
        raise InvalidRequestError(
            f"messages must hold 1 to {max_messages} messages.", param="messages"
        )
    return [message.plain(f"messages[{i}]") for i, message in enumerate(messages)]


class TemplateFields(RequestModel):
    """How the chat template makes a prompt of messages."""

    add_generation_prompt: bool | None = None
    """End the prompt where an answer begins. Default: true, unless the last message goes on."""
    continue_final_message: bool | None = None
    """End the prompt inside the last message, so that the answer goes on with it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template."""
    chat_template: Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_CHARS)] | None = None
    """Instead of the model's; see `--trust-request-chat-template`."""

    def prompt_options(self) -> PromptOptions:
        """What the template is told beside the messages."""
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other.",
                param="continue_final_message",
            )
        variables = self.chat_template_kwargs or {}
        if RESERVED_VARIABLES & variables.keys():
            raise InvalidRequestError(
                "chat_template_kwargs must not set what the server sets: "
                f"{', '.join(sorted(RESERVED_VARIABLES))}.",
                param="chat_template_kwargs",
            )
        return PromptOptions(
            add_generation_prompt=(
                not self.continue_final_message
                if self.add_generation_prompt is None
                else self.add_generation_prompt
            ),
            continue_final_message=bool(self.continue_final_message),
            variables=variables,
            template=self.chat_template,
        )


class ChatCompletionRequest(ToolFields, TemplateFields, GenerationRequest):
    """Answer the last of some messages."""

    messages: Messages
    max_completion_tokens: int | None = None
    """Newer name of `max_tokens`; wins over it."""
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def num_logprobs(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else NO_LOGPROBS

    @property
    def token_limit(self) -> int | None:
        """The longest answer that the client wants."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    @property
    def aliases(self) -> Mapping[str, str]:
        renamed = {"logprobs": "top_logprobs"}
        if self.max_completion_tokens is not None:
            renamed["max_tokens"] = "max_completion_tokens"
        return renamed

    def check(self, *, max_choices: int) -> None:
        super().check(max_choices=max_choices)
        self.check_tools()
        if self.top_logprobs is not None:
            if not self.logprobs:
                raise InvalidRequestError(
                    "top_logprobs is only allowed when logprobs is true.", param="top_logprobs"
                )
            if self.top_logprobs < 0:
                raise InvalidRequestError("top_logprobs must be at least 0.", param="top_logprobs")
        if self.token_limit is not None and self.token_limit < 1:
            name = self.aliases.get("max_tokens", "max_tokens")
            raise InvalidRequestError(f"{name} must be at least 1.", param=name)


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """Null for an answer that only calls tools."""
    refusal: None = None
    tool_calls: ToolCalls = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: str | int | None = None
    """What stopped the answer: the stop string or token id; null for the end of the text."""
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new in a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: Sequence[ToolCallDelta] | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    stop_reason: str | int | None = None
    token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: MaybeUsage = msgspec.UNSET
    prompt_token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET
    """With the first event of each choice."""
