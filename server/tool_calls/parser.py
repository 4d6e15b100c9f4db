"""A growing answer, taken apart into text and tool calls. Does no I/O.

How the answer was cut into pieces makes no difference to what comes out of it, put together.
"""

from collections.abc import Set
from enum import Enum, auto

from server.tool_calls.call_reader import (
    WHITE_SPACE,
    CallArguments,
    CallBegin,
    CallEvent,
    CallReader,
    Reading,
)
from server.tool_calls.formats import ToolCallFormat

Event = str | CallEvent
"""Text, or something about a call."""


_MAX_HELD = 256
"""Characters of white space that are held back."""


class _In(Enum):
    TEXT = auto()
    OPENING = auto()
    CALL = auto()
    AFTER_CALL = auto()


class ToolCallParser:
    """Reads one answer. What turns out to be no call is text.

    White space at the end of the text is held back: before a call it is dropped.
    """

    def __init__(self, form: ToolCallFormat, names: Set[str], *, is_parallel: bool = True) -> None:
        """Read calls of the tools `names`. Unless `is_parallel`, all but the first are dropped."""
        self._form = form
        self._names = names
        self._is_parallel = is_parallel
        self._state = _In.TEXT
        self._held = ""
        """Text that may turn out to be dropped."""
        self._raw: list[str] = []
        """What was read of a call that may turn out to be none."""
        self._may_be_bare = form.is_bare
        self._is_open = False
        """Whether a call may begin here: behind the opening, or behind a separator."""
        self._reader = CallReader(names)
        self.num_calls = 0
        """Calls that have begun."""

    @property
    def is_inside_call(self) -> bool:
        """Whether a call has begun and is not complete."""
        return self._state is _In.CALL and self._reader.has_begun

    def feed(self, text: str) -> list[Event]:
        """What is new, now that `text` has come."""
        events: list[Event] = []
        for char in text:
            self._read(char, events)
        return _merged(events)

    def finish(self) -> list[Event]:
        """What was held back, now that nothing follows."""
        events: list[Event] = []
        is_between = self._state is _In.OPENING and self.num_calls
        if not (is_between or self.is_inside_call or self._state is _In.AFTER_CALL):
            self._held += "".join(self._raw)
        # White space between calls is theirs, and so it is after the last one.
        if self._held.strip(WHITE_SPACE) or not self.num_calls:
            events.append(self._held)
        self._held = ""
        return _merged(events)

    def _read(self, char: str, events: list[Event]) -> None:
        match self._state:
            case _In.TEXT:
                self._read_text(char, events)
            case _In.OPENING:
                self._read_opening(char, events)
            case _In.CALL:
                self._read_call(char, events)
            case _In.AFTER_CALL:
                self._read_after_call(char, events)

    def _read_text(self, char: str, events: list[Event]) -> None:
        if self._may_be_bare and not self._held.strip(WHITE_SPACE) and char == "{":
            self._raw = [self._held]
            self._held = ""
            self._begin_call(char, events)
            return
        self._held += char
        trigger = self._form.trigger
        if self._held.endswith(trigger):
            text = self._held.removesuffix(trigger)
            kept = text.rstrip(WHITE_SPACE)
            events.append(kept)
            self._raw = [text[len(kept) :], trigger]
            self._is_open = not self._form.opening
            self._held = ""
            self._may_be_bare = False
            self._state = _In.OPENING
            return
        size = _overlap(self._held, trigger)
        head = self._held[: len(self._held) - size]
        if len(head) < _MAX_HELD:
            head = head.rstrip(WHITE_SPACE)
        if head:
            events.append(head)
            self._held = self._held[len(head) :]
            self._may_be_bare = False

    def _read_opening(self, char: str, events: list[Event]) -> None:
        is_opening = not self._is_open and char == self._form.opening
        if char in WHITE_SPACE or is_opening:
            self._raw.append(char)
            self._is_open = self._is_open or is_opening
        elif self._is_open and char == "{":
            self._begin_call(char, events)
        else:
            self._back_to_text(char, events)

    def _begin_call(self, char: str, events: list[Event]) -> None:
        self._may_be_bare = False
        self._reader = CallReader(self._names)
        self._state = _In.CALL
        self._read_call(char, events)

    def _read_call(self, char: str, events: list[Event]) -> None:
        reading, news = self._reader.read(char)
        if reading is Reading.WRONG:
            self._back_to_text(char, events)
            return
        self._raw.append(char)
        for event in news:
            self.num_calls += isinstance(event, CallBegin)
            if self._is_parallel or self.num_calls == 1:
                events.append(event)
        if self._reader.has_begun:
            self._raw.clear()
        if reading is Reading.COMPLETE:
            self._state = _In.AFTER_CALL

    def _read_after_call(self, char: str, events: list[Event]) -> None:
        form, read = self._form, "".join(self._raw).lstrip(WHITE_SPACE)
        if form.separator and char == form.separator and not read:
            self._raw = [char]
            self._is_open = True
            self._state = _In.OPENING
        elif char in WHITE_SPACE and not read:
            self._raw.append(char)
        elif form.ending and form.ending.startswith(read + char):
            self._raw.append(char)
            if read + char == form.ending:
                self._raw.clear()
                self._state = _In.TEXT
        else:
            self._back_to_text(char, events)

    def _back_to_text(self, char: str, events: list[Event]) -> None:
        """Give out as text what was thought to be of a call, and read `char` as text."""
        self._held, self._raw = "".join(self._raw), []
        self._state = _In.TEXT
        kept = self._held.rstrip(WHITE_SPACE)
        events.append(kept)
        self._held = self._held[len(kept) :]
        self._read_text(char, events)


def _overlap(text: str, trigger: str) -> int:
    """The length of the longest end of `text` that `trigger` begins with."""
    for size in range(min(len(text), len(trigger) - 1), 0, -1):
        if trigger.startswith(text[-size:]):
            return size
    return 0


def _merged(events: list[Event]) -> list[Event]:
    """Neighbours of one kind put together, and nothing that is empty."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, str):
            if not event:
                continue
            if isinstance(last, str):
                merged[-1] = last + event
                continue
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            merged[-1] = CallArguments(last.text + event.text)
            continue
        merged.append(event)
    return merged
