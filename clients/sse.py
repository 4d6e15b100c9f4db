"""Server-sent events: bytes in, events out, no I/O.

Follows the WHATWG "event stream interpretation": https://html.spec.whatwg.org/#parsing-an-event-stream
"""

from dataclasses import dataclass

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event."""

    data: str
    event: str = "message"


class SSEDecoder:
    """Turns the bytes of an event stream, cut anywhere, into events.

    Comments, which servers send as pings, and fields without a meaning for us (`id`, `retry`) are
    dropped. An event that the stream's end leaves incomplete is never returned.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._is_first_line = True
        self._skip_newline = False
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completed, oldest first."""
        if not chunk:
            return []
        if self._skip_newline:
            chunk = chunk.removeprefix(b"\n")
        # The line ends at "\r" already; a "\n" that follows in the next chunk belongs to it.
        self._skip_newline = chunk.endswith(b"\r")
        # For bytes, splitlines knows exactly the three line ends of the format.
        lines = (self._buffer + chunk).splitlines(keepends=True)
        self._buffer = b""
        events = []
        for line in lines:
            if not line.endswith((b"\n", b"\r")):
                self._buffer = line
            elif (event := self._take(line.rstrip(b"\r\n"))) is not None:
                events.append(event)
        return events

    def _take(self, line: bytes) -> Event | None:
        """Apply one complete line; a blank one completes the event before it."""
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(BOM)
        if not line:
            return self._dispatch()
        # A whole line is decoded at once, so a character is never cut.
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        return None

    def _dispatch(self) -> Event | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        return Event("\n".join(data), event or "message") if data else None
