"""One answer as the items of `/v1/responses`, one after another: text, calls, text again."""

from dataclasses import dataclass, field

from server.tool_calls.call_reader import CallBegin
from server.tool_calls.parser import Event
from server.tool_calls.use import ToolUse


@dataclass(slots=True)
class TextItem:
    """Text between calls."""

    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class CallItem:
    """A call, whose arguments are its text."""

    name: str
    call_id: str
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


Item = TextItem | CallItem


class ItemReader:
    """Takes one answer apart as it grows. Without tools it is one text."""

    def __init__(self, use: ToolUse | None) -> None:
        self._use = use
        self._parser = use.parser() if use is not None else None
        self.items: list[Item] = []

    def add(self, text: str, *, is_last: bool) -> list[tuple[int, str]]:
        """Return what is new in the items, in order. An answer has at least one, which may be an
        empty text."""
        events: list[Event] = [text] if text else []
        if self._parser is not None:
            events = self._parser.feed(text)
            if is_last:
                events += self._parser.finish()
        news = [self._note(event) for event in events]
        if is_last and not self.items:
            news.append(self._note(""))
        return news

    @property
    def is_inside_call(self) -> bool:
        """Whether the last item is a call that is not complete."""
        return self._parser is not None and self._parser.is_inside_call

    def _note(self, event: Event) -> tuple[int, str]:
        if isinstance(event, CallBegin):
            assert self._use is not None
            self.items.append(CallItem(event.name, self._use.new_id()))
            return len(self.items) - 1, ""
        text = event if isinstance(event, str) else event.text
        if isinstance(event, str) and not (self.items and isinstance(self.items[-1], TextItem)):
            self.items.append(TextItem())
        self.items[-1].pieces.append(text)
        return len(self.items) - 1, text
