"""One call, `{"name": …, "arguments": {…}}`, read character by character."""

import json
from collections.abc import Set
from dataclasses import dataclass
from enum import Enum, auto

WHITE_SPACE = " \t\r\n"

_ARGUMENTS = frozenset({"arguments", "parameters"})
_IGNORED = frozenset({"id", "type", "index"})
"""Keys that some models add."""


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool that the request has."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of the last call's arguments."""

    text: str


CallEvent = CallBegin | CallArguments


class Reading(Enum):
    """What a character did to a call."""

    GOES_ON = auto()
    COMPLETE = auto()
    WRONG = auto()
    """It is no call from this character on, which was not read."""


class _At(Enum):
    OBJECT = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()


class CallReader:
    """Reads until the object is complete, or can be no call of a known tool.

    The arguments are given out as they come, from the moment when the name is known.
    """

    def __init__(self, names: Set[str]) -> None:
        self._names = names
        self._at = _At.OBJECT
        self._key: str | None = None
        self._item: list[str] = []
        self._scan = _Scan()
        self._name: str | None = None
        self._arguments: list[str] = []
        """Those that came before the name."""
        self._has_arguments = False
        self.has_begun = False

    def read(self, char: str) -> tuple[Reading, list[CallEvent]]:
        """Take one character. The first must be the brace that opens the object."""
        if not self._item and char in WHITE_SPACE:
            return Reading.GOES_ON, []
        match self._at:
            case _At.OBJECT:
                return self._expect(char, {"{": _At.KEY})
            case _At.KEY if not self._item and char == "}" and self._key is None:
                return self._close()
            case _At.KEY:
                return self._read_key(char)
            case _At.COLON:
                return self._expect(char, {":": _At.VALUE})
            case _At.VALUE:
                return self._read_value(char)
            case _At.COMMA if char == "}":
                return self._close()
            case _At.COMMA:
                return self._expect(char, {",": _At.KEY})

    def _expect(self, char: str, next_of: dict[str, _At]) -> tuple[Reading, list[CallEvent]]:
        if char not in next_of:
            return Reading.WRONG, []
        self._at = next_of[char]
        return Reading.GOES_ON, []

    def _read_key(self, char: str) -> tuple[Reading, list[CallEvent]]:
        if not self._item:
            if char != '"':
                return Reading.WRONG, []
            self._scan = _Scan()
        self._item.append(char)
        if not self._scan.add(char):
            return Reading.GOES_ON, []
        key = _parse("".join(self._item))
        self._item.clear()
        if key == "name":
            is_known = self._name is None
        elif key in _ARGUMENTS:
            is_known = not self._has_arguments
        else:
            is_known = key in _IGNORED
        if not is_known:
            return Reading.WRONG, []
        assert isinstance(key, str)
        self._key, self._at = key, _At.COLON
        return Reading.GOES_ON, []

    def _read_value(self, char: str) -> tuple[Reading, list[CallEvent]]:
        if not self._item:
            wanted = '"' if self._key == "name" else "{" if self._key in _ARGUMENTS else char
            if char != wanted or char in ",:}]":
                return Reading.WRONG, []
            self._scan = _Scan()
        is_done = self._scan.add(char)
        if is_done and self._scan.is_scalar:
            # A number ends with what comes after it.
            self._end_item()
            return self.read(char)
        self._item.append(char)
        events: list[CallEvent] = []
        if self._key in _ARGUMENTS:
            self._has_arguments = True
            events = self._give(char)
        if is_done:
            if self._key == "name":
                name = _parse("".join(self._item))
                if name not in self._names:
                    return Reading.WRONG, []
                assert isinstance(name, str)
                self._name = name
                events = self._give("") if self._has_arguments else []
            self._end_item()
        return Reading.GOES_ON, events

    def _end_item(self) -> None:
        self._item.clear()
        self._at = _At.COMMA

    def _give(self, text: str) -> list[CallEvent]:
        """More of the arguments, and of the call what can be told by now."""
        if self._name is None:
            self._arguments.append(text)
            return []
        if self.has_begun:
            return [CallArguments(text)]
        self.has_begun = True
        return [CallBegin(self._name), CallArguments("".join(self._arguments) + text)]

    def _close(self) -> tuple[Reading, list[CallEvent]]:
        if self._name is None:
            return Reading.WRONG, []
        return Reading.COMPLETE, [] if self.has_begun else self._give("{}")


class _Scan:
    """Finds the end of one value of JSON. Only brackets and quotes are looked at."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._num_chars = 0
        self.is_scalar = False

    def add(self, char: str) -> bool:
        """Whether the value is complete: with this character, or before it if it is a scalar."""
        self._num_chars += 1
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._in_string = False
                return self._depth == 0
        elif self._num_chars > 1 and self._depth == 0:
            self.is_scalar = True
            return char in WHITE_SPACE or char in ",}"
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth == 0
        return False


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
