"""`/v1/responses`, requests. What is stored nowhere, calls no tools and reads only text."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dijiang_runtime.errors import InvalidRequestError
from server.errors import UnsupportedParameterError
from server.protocol.chat import ChatCompletionRequest, ChatMessage, Role
from server.protocol.common import EXPECTATIONS, UNSUPPORTED_FIELDS, RequestModel
from server.protocol.sampling import EngineRequest

LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16


class InputPart(RequestModel):
    """One part of an item's content. Only text is understood."""

    type: str
    text: str | None = None


class InputItem(RequestModel):
    """A message of the conversation; one of an earlier answer may be sent as it came."""

    type: str | None = None
    role: Role | None = None
    content: str | Annotated[list[InputPart], Field(max_length=1024, fail_fast=True)] | None = None
    id: str | None = None
    status: str | None = None

    def to_message(self, where: str) -> ChatMessage:
        """The message that this item is. `where` is its place in the request."""
        if self.type not in (None, "message"):
            raise UnsupportedParameterError(
                f"{where}.type must be 'message': this server reads nothing else.",
                param=f"{where}.type",
            )
        if self.role is None:
            raise InvalidRequestError(f"{where}.role is required.", param=f"{where}.role")
        if self.content is None:
            raise InvalidRequestError(f"{where}.content is required.", param=f"{where}.content")
        if isinstance(self.content, str):
            return ChatMessage(role=self.role, content=self.content)
        texts = [part_text(part, f"{where}.content[{i}]") for i, part in enumerate(self.content)]
        return ChatMessage(role=self.role, content="".join(texts))


def part_text(part: InputPart, where: str) -> str:
    """The text of a part, or an error that names its place."""
    if part.type not in ("input_text", "output_text", "text"):
        raise UnsupportedParameterError(
            f"{where}.type must be 'input_text' or 'output_text': this model reads nothing else.",
            param=f"{where}.type",
        )
    if part.text is None:
        raise InvalidRequestError(f"{where}.text is required.", param=f"{where}.text")
    return part.text


class TextFormat(RequestModel):
    type: str


class TextOptions(RequestModel):
    """The form of the answer."""

    format: TextFormat | None = None


class ResponseStreamOptions(RequestModel):
    """Options of a streamed answer."""

    include_obfuscation: bool | None = None
    """Accepted, has no effect: nothing is added to hide the length of tokens."""


class ResponsesRequest(EngineRequest):
    """Answer a text or a conversation."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_FIELDS,
        **dict.fromkeys(ChatCompletionRequest.model_fields, ()),
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "max_tool_calls": (),
        "n": (1,),
        "previous_response_id": (),
        "prompt": (),
        "reasoning": ({},),
        "stop": ([],),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
    }

    expectations: ClassVar[Mapping[str, str]] = {
        **EXPECTATIONS,
        "input": "must be a string or a list of messages",
    }

    input: str | Annotated[list[InputItem], Field(min_length=1, fail_fast=True)]
    instructions: str | None = None
    """A system message before the input."""
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    include: list[str] | None = None
    """Only `message.output_text.logprobs`."""
    top_logprobs: int | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` keeps the end of an input that is too long."""
    store: bool | None = None
    """Nothing is stored: true is refused."""
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    """Sent back with the answer."""

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def check(self, *, max_choices: int) -> None:
        super().check(max_choices=max_choices)
        self._check_refused()
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is only allowed when stream is true.", param="stream_options"
            )
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise InvalidRequestError(
                "max_output_tokens must be at least 1.", param="max_output_tokens"
            )
        if self.top_logprobs is not None and self.top_logprobs < 0:
            raise InvalidRequestError("top_logprobs must be at least 0.", param="top_logprobs")
        if self.top_logprobs and not self.wants_logprobs:
            raise InvalidRequestError(
                f"top_logprobs is only allowed when include has {LOGPROBS}.", param="top_logprobs"
            )
        if len(self.metadata or {}) > MAX_METADATA:
            raise InvalidRequestError(
                f"metadata must have at most {MAX_METADATA} entries.", param="metadata"
            )

    def _check_refused(self) -> None:
        """Raise `UnsupportedParameterError` for values that ask for what there is not."""
        if self.store:
            raise UnsupportedParameterError(
                "store must be false: this server stores no responses.", param="store"
            )
        if self.text and self.text.format and self.text.format.type != "text":
            raise UnsupportedParameterError(
                "text.format must be text: this endpoint has no other.", param="text.format"
            )
        if any(name != LOGPROBS for name in self.include or ()):
            raise UnsupportedParameterError(f"include may only have {LOGPROBS}.", param="include")

    def to_chat(self) -> ChatCompletionRequest:
        """The same question to the chat endpoint."""
        messages = []
        if self.instructions is not None:
            messages.append(ChatMessage(role="system", content=self.instructions))
        if isinstance(self.input, str):
            messages.append(ChatMessage(role="user", content=self.input))
        else:
            messages += [item.to_message(f"input[{i}]") for i, item in enumerate(self.input)]
        limit = self.truncate_prompt_tokens
        return ChatCompletionRequest(
            messages=messages,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs if self.wants_logprobs else None,
            truncate_prompt_tokens=-1 if limit is None and self.truncation == "auto" else limit,
            truncation_side=self.truncation_side,
        )


OWN_NAMES: Mapping[str, str] = {"messages": "input", "max_completion_tokens": "max_output_tokens"}
"""What the chat endpoint's parameters are called here."""
