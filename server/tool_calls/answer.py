"""The tool calls of one answer, as OpenAI spells them: whole, or what is new."""

from dijiang_runtime.request import FinishReason
from server.protocol.chat import ChatFinishReason
from server.protocol.tools import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta
from server.tool_calls.call_reader import CallBegin
from server.tool_calls.parser import Event
from server.tool_calls.use import ToolUse


class AnswerReader:
    """Takes one answer apart as it grows, into content and calls.

    Without tools everything is content.
    """

    def __init__(self, use: ToolUse | None) -> None:
        self._use = use
        self._parser = use.parser() if use is not None else None
        self._content: list[str] = []
        self._calls: list[_Call] = []

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def calls(self) -> list[ToolCall]:
        return [call.whole() for call in self._calls]

    def add(self, text: str, *, is_last: bool) -> tuple[str, list[ToolCallDelta]]:
        """Return what is new in the content, and in the calls; one delta for each of them."""
        if self._parser is None:
            self._content.append(text)
            return text, []
        events = self._parser.feed(text)
        if is_last:
            events += self._parser.finish()
        content: list[str] = []
        news: dict[int, _News] = {}
        for event in events:
            self._note(event, content, news)
        self._content += content
        return "".join(content), [self._calls[i].delta(i, new) for i, new in news.items()]

    def finish_reason(self, reason: FinishReason | None) -> ChatFinishReason | None:
        """Why the answer ended. `tool_calls` only if every call in it is complete."""
        if reason is FinishReason.LENGTH:
            return "length"
        is_calling = self._calls and self._parser is not None and not self._parser.is_inside_call
        return None if reason is None else "tool_calls" if is_calling else "stop"

    def _note(self, event: Event, content: list[str], news: "dict[int, _News]") -> None:
        if isinstance(event, str):
            content.append(event)
            return
        if isinstance(event, CallBegin):
            assert self._use is not None
            self._calls.append(_Call(self._use.new_id(), event.name))
            news[len(self._calls) - 1] = _News(is_first=True)
            return
        new = news.setdefault(len(self._calls) - 1, _News())
        new.arguments += event.text
        self._calls[-1].arguments.append(event.text)


class _News:
    """What one output brought for one call."""

    def __init__(self, *, is_first: bool = False) -> None:
        self.is_first = is_first
        self.arguments = ""


class _Call:
    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.arguments: list[str] = []

    def whole(self) -> ToolCall:
        function = FunctionCall(name=self.name, arguments="".join(self.arguments))
        return ToolCall(id=self.id, function=function)

    def delta(self, index: int, new: _News) -> ToolCallDelta:
        if not new.is_first:
            return ToolCallDelta(index=index, function=FunctionCallDelta(arguments=new.arguments))
        function = FunctionCallDelta(name=self.name, arguments=new.arguments)
        return ToolCallDelta(index=index, id=self.id, type="function", function=function)
