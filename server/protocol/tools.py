"""Tools: what a request says of them, the calls in its history, and those in an answer."""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from dijiang_runtime.errors import InvalidRequestError
from server.protocol.common import RequestModel
from server.protocol.structure import check_depth

MAX_TOOLS = 128

FUNCTION_NAME = r"[a-zA-Z0-9_-]{1,64}"
"""What the name of a function may be."""

_NAME = re.compile(FUNCTION_NAME)


class FunctionDefinition(RequestModel):
    """A function that the client can call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of an object."""
    strict: bool | None = None


class Tool(RequestModel):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(RequestModel):
    name: str


class NamedToolChoice(RequestModel):
    """Call this one."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice

Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class ToolFields(RequestModel):
    """The fields that a chat has for tools."""

    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    """Default: auto, if there are tools."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may call several times. Default: true."""

    @property
    def forced_name(self) -> str | None:
        """The one function that the answer must call, if it is named."""
        choice = self.tool_choice
        return choice.function.name if isinstance(choice, NamedToolChoice) else None

    @property
    def uses_tools(self) -> bool:
        """Whether the answer may call."""
        return bool(self.tools) and self.tool_choice != "none"

    def check_tools(self) -> None:
        """Raise `InvalidRequestError` for what is wrong without regard to the model."""
        names = set()
        for i, tool in enumerate(self.tools or ()):
            check_function(tool.function, f"tools[{i}].function")
            if tool.function.name in names:
                raise InvalidRequestError(
                    "tools must have names that differ.", param=f"tools[{i}].function.name"
                )
            names.add(tool.function.name)
        if self.tool_choice in (None, "none", "auto"):
            return
        if not self.tools:
            raise InvalidRequestError(
                "tool_choice is only allowed when there are tools.", param="tool_choice"
            )
        if self.forced_name is not None and self.forced_name not in names:
            raise InvalidRequestError(
                "tool_choice must name one of the tools.", param="tool_choice"
            )


def check_function(function: FunctionDefinition, param: str) -> None:
    """Raise `InvalidRequestError` for a name or a schema that cannot be used."""
    if not _NAME.fullmatch(function.name):
        raise InvalidRequestError(
            f"{param}.name must be 1 to 64 letters, digits, underscores and dashes.",
            param=f"{param}.name",
        )
    schema = function.parameters or {}
    if schema.get("type", "object") != "object":
        raise InvalidRequestError(
            f"{param}.parameters must be a JSON schema of type object.",
            param=f"{param}.parameters",
        )
    check_depth(schema, f"{param}.parameters")


class CalledFunction(RequestModel):
    name: str
    arguments: str


class PastToolCall(RequestModel):
    """A call in an assistant's message of the history."""

    id: str
    type: Literal["function"] | None = None
    function: CalledFunction

    def plain(self, param: str) -> dict[str, Any]:
        """The call as a chat template reads it: with arguments that are an object."""
        arguments = parse_arguments(self.function.arguments, f"{param}.function.arguments")
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


def parse_arguments(text: str, param: str) -> dict[str, Any]:
    """The object that the arguments of a call are. Raises `InvalidRequestError`."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(f"{param} must be the JSON text of an object.", param=param)
    check_depth(arguments, param)
    return arguments


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A whole call of an answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new in a call. Its id, type and name come once, with the first."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


ToolCalls = Sequence[ToolCall] | msgspec.UnsetType
"""Absent where an answer calls nothing."""
