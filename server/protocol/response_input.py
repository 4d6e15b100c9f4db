"""What `/v1/responses` reads: messages, calls of an earlier answer, and what came of them."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from dijiang_runtime.errors import InvalidRequestError
from server.errors import UnsupportedParameterError
from server.protocol.chat import ChatMessage, Role
from server.protocol.common import RequestModel
from server.protocol.tools import CalledFunction, PastToolCall, parse_arguments

T = TypeVar("T")


class InputPart(RequestModel):
    """One part of an item's content. Only text is understood."""

    type: str
    text: str | None = None


Content = str | Annotated[list[InputPart], Field(max_length=1024, fail_fast=True)]


class InputItem(RequestModel):
    """A message, a call or its result; items of an earlier answer may be sent as they came."""

    type: str | None = None
    """`message`, which is the default, `function_call` or `function_call_output`."""
    role: Role | None = None
    """Of a message."""
    content: Content | None = None
    """Of a message."""
    name: str | None = None
    """Of a call: the function."""
    arguments: str | None = None
    """Of a call."""
    call_id: str | None = None
    """Of a call and of its output."""
    output: Content | None = None
    """Of a call's output."""
    id: str | None = None
    status: str | None = None

    def to_message(self, where: str) -> ChatMessage:
        """The message that this item is to a chat. `where` is its place in the request."""
        match self.type or "message":
            case "message":
                role: Role = required(self.role, f"{where}.role")
                return ChatMessage(role=role, content=text_of(self.content, f"{where}.content"))
            case "function_call":
                return ChatMessage(role="assistant", tool_calls=[self._to_call(where)])
            case "function_call_output":
                call_id = required(self.call_id, f"{where}.call_id")
                output = text_of(self.output, f"{where}.output")
                return ChatMessage(role="tool", tool_call_id=call_id, content=output)
            case _:
                raise UnsupportedParameterError(
                    f"{where}.type must be 'message', 'function_call' or 'function_call_output': "
                    "this server reads nothing else.",
                    param=f"{where}.type",
                )

    def _to_call(self, where: str) -> PastToolCall:
        name = required(self.name, f"{where}.name")
        arguments = required(self.arguments, f"{where}.arguments")
        parse_arguments(arguments, f"{where}.arguments")
        return PastToolCall(
            id=required(self.call_id, f"{where}.call_id"),
            function=CalledFunction(name=name, arguments=arguments),
        )


def required(value: T | None, where: str) -> T:
    """The value of a field that a kind of item must have."""
    if value is None:
        raise InvalidRequestError(f"{where} is required.", param=where)
    return value


def text_of(content: str | list[InputPart] | None, where: str) -> str:
    """The whole content, which there must be, as one string."""
    if content is None or isinstance(content, str):
        return required(content, where)
    return "".join(part_text(part, f"{where}[{i}]") for i, part in enumerate(content))


def part_text(part: InputPart, where: str) -> str:
    """The text of a part, or an error that names its place."""
    if part.type not in ("input_text", "output_text", "text"):
        raise UnsupportedParameterError(
            f"{where}.type must be 'input_text' or 'output_text': this model reads nothing else.",
            param=f"{where}.type",
        )
    return required(part.text, f"{where}.text")


def to_messages(items: Sequence[InputItem]) -> list[ChatMessage]:
    """The conversation, in which one message of the assistant has what it wrote and called."""
    messages: list[ChatMessage] = []
    for i, item in enumerate(items):
        message = item.to_message(f"input[{i}]")
        last = messages[-1] if messages else None
        if message.tool_calls and last is not None and last.role == "assistant":
            calls = [*(last.tool_calls or ()), *message.tool_calls]
            messages[-1] = last.model_copy(update={"tool_calls": calls})
        else:
            messages.append(message)
    return messages
