"""`/v1/responses`, answers: the response object, and the events of a stream."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from server.protocol.logprobs import ChatTokenLogprob
from server.protocol.responses import NamedFunction, ResponseTool, TextOptions

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: tuple[()] = ()
    logprobs: list[ChatTokenLogprob] = []


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """What the model wrote."""

    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: tuple[OutputText, ...]


class FunctionCall(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"
):
    """A function that the client is to call."""

    id: str
    call_id: str
    """What the output of the call is sent back with."""
    name: str
    arguments: str
    status: ItemStatus


OutputItem = OutputMessage | FunctionCall


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed. The code is one that OpenAI has; the message says more."""

    message: str
    code: Literal["server_error"] = "server_error"


class PlainText(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    pass


class JsonObject(msgspec.Struct, frozen=True, tag_field="type", tag="json_object"):
    pass


class JsonSchema(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema", kw_only=True):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool = True


class ResponseText(msgspec.Struct, frozen=True):
    """The form of the answer."""

    format: PlainText | JsonObject | JsonSchema = PlainText()


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the answer may call."""

    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class ChosenFunction(msgspec.Struct, frozen=True, kw_only=True):
    """The function that the answer must call."""

    type: Literal["function"] = "function"
    name: str


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, whole or as far as it has come."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    model: str
    output: tuple[OutputItem, ...] = ()
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: None = None
    service_tier: Literal["default"] = "default"
    store: bool = False
    temperature: float
    text: ResponseText
    tool_choice: Literal["auto", "none", "required"] | ChosenFunction
    tools: tuple[FunctionTool, ...]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None


class ResponseEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a streamed response. Its type says which of the other fields it has."""

    type: str
    sequence_number: int
    response: Response | msgspec.UnsetType = msgspec.UNSET
    output_index: int | msgspec.UnsetType = msgspec.UNSET
    item: OutputItem | msgspec.UnsetType = msgspec.UNSET
    item_id: str | msgspec.UnsetType = msgspec.UNSET
    content_index: int | msgspec.UnsetType = msgspec.UNSET
    part: OutputText | msgspec.UnsetType = msgspec.UNSET
    delta: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str | msgspec.UnsetType = msgspec.UNSET
    logprobs: list[ChatTokenLogprob] | msgspec.UnsetType = msgspec.UNSET


def text_form(text: TextOptions | None) -> ResponseText:
    """The form of the answer that a request asks for."""
    wanted = text.format if text is not None else None
    if wanted is None or wanted.type == "text":
        return ResponseText()
    if wanted.type == "json_object":
        return ResponseText(JsonObject())
    return ResponseText(
        JsonSchema(
            name=wanted.name or "", schema=wanted.schema_ or {}, description=wanted.description
        )
    )


def chosen_tool(
    choice: Literal["auto", "none", "required"] | NamedFunction | None,
) -> Literal["auto", "none", "required"] | ChosenFunction:
    """How a request lets the answer call."""
    if isinstance(choice, NamedFunction):
        return ChosenFunction(name=choice.name)
    return choice or "auto"


def tool_objects(tools: Sequence[ResponseTool] | None) -> tuple[FunctionTool, ...]:
    """The functions that a request has."""
    return tuple(
        FunctionTool(
            name=tool.name or "",
            description=tool.description,
            parameters=tool.parameters,
            strict=bool(tool.strict),
        )
        for tool in tools or ()
    )
