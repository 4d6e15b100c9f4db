"""`/v1/responses`, requests. Nothing is stored, and the only tools are the client's functions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dijiang_runtime.errors import InvalidRequestError
from server.errors import UnsupportedParameterError
from server.protocol.chat import ChatCompletionRequest, ChatMessage
from server.protocol.common import EXPECTATIONS, UNSUPPORTED_FIELDS, RequestModel
from server.protocol.response_input import InputItem, required, to_messages
from server.protocol.sampling import EngineRequest
from server.protocol.structure import ResponseFormat
from server.protocol.tools import (
    MAX_TOOLS,
    FunctionDefinition,
    FunctionName,
    NamedToolChoice,
    Tool,
    ToolChoice,
)

LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16


class TextFormat(RequestModel):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    """Makes no difference: a schema always holds strictly."""

    def to_chat(self) -> ResponseFormat:
        """The same for a chat."""
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        named = {
            "name": required(self.name, "text.format.name"),
            "schema": required(self.schema_, "text.format.schema"),
        }
        return ResponseFormat.model_validate({"type": self.type, "json_schema": named})


class TextOptions(RequestModel):
    """The form of the answer."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


class ResponseTool(FunctionDefinition):
    """A function that the client can call. `type` is `function`."""

    type: str
    name: str | None = None  # type: ignore[assignment]
    """Required; other types of tools, which are refused, have none."""

    def to_chat(self, where: str) -> Tool:
        """The same for a chat. `where` is its place in the request."""
        if self.type != "function":
            raise UnsupportedParameterError(
                f"{where}.type must be 'function': this server has no tools of its own.",
                param=f"{where}.type",
            )
        function = FunctionDefinition(
            name=required(self.name, f"{where}.name"),
            description=self.description,
            parameters=self.parameters,
            strict=self.strict,
        )
        return Tool(type="function", function=function)


class NamedFunction(RequestModel):
    """Call this one."""

    type: Literal["function"]
    name: str


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
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    """Default: auto, if there are tools."""
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` keeps the end of an input that is too long."""
    store: bool | None = None
    """Nothing is stored: true is refused."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may call several times. Default: true."""
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
        if self.text is not None:
            self.text.check_unsupported("text.")
        if any(name != LOGPROBS for name in self.include or ()):
            raise UnsupportedParameterError(f"include may only have {LOGPROBS}.", param="include")
        if self.wants_logprobs and self.tools and self.tool_choice != "none":
            raise UnsupportedParameterError(
                "include cannot ask for logprobs where there are tools.", param="include"
            )

    def to_chat(self) -> ChatCompletionRequest:
        """The same question to the chat endpoint."""
        messages = []
        if self.instructions is not None:
            messages.append(ChatMessage(role="system", content=self.instructions))
        if isinstance(self.input, str):
            messages.append(ChatMessage(role="user", content=self.input))
        else:
            messages += to_messages(self.input)
        limit = self.truncate_prompt_tokens
        form = self.text.format if self.text is not None else None
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
            tools=[tool.to_chat(f"tools[{i}]") for i, tool in enumerate(self.tools or ())],
            tool_choice=self._chat_tool_choice,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=form.to_chat() if form is not None else None,
        )

    @property
    def _chat_tool_choice(self) -> ToolChoice | None:
        choice = self.tool_choice
        if not isinstance(choice, NamedFunction):
            return choice
        return NamedToolChoice(type="function", function=FunctionName(name=choice.name))


OWN_NAMES: Mapping[str, str] = {
    r"\bmessages(\[\d+\][\w.\[\]]*)?": "input",
    r"\bmax_completion_tokens\b": "max_output_tokens",
    r"\bresponse_format(\.json_schema)?": "text.format",
    r"(\btools\[\d+\])\.function": r"\1",
}
"""What the chat endpoint's parameters are called here, as patterns and what replaces them."""
