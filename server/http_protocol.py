"""uvicorn's HTTP/1.1 protocol, with a limit on the time a request takes to arrive.

Without one, a client that sends a byte a second holds a connection for ever: uvicorn limits only
the idle time between requests.
"""

import asyncio
import re
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.config import MAX_HEADER_BYTES
from server.errors import ErrorBody, encode_error

Phase = Literal["idle", "headers", "body"]


_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"

_HEAD_END = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\n[ \t]")


class StrictConnection(h11.Connection):
    """Refuses two things that h11 accepts and that proxies may read otherwise: versions other than
    1.0 and 1.1 (RFC 9112 2.3), and header lines folded into the next (RFC 9112 5.2).

    Writes the chunks of a stream itself, which is most of what a stream costs in h11.
    """

    _sends_chunks = False

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        # A chunk changes no state, so h11 need not know of it.
        if self._sends_chunks and type(event) is h11.Data:
            data = event.data
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        sent = super().send(event)
        self._sends_chunks = (
            type(event) is h11.Response and sent is not None and _CHUNKED in sent.lower()
        )
        return sent

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE:
            data, _ = self.trailing_data
            end = _HEAD_END.search(data)
            if _FOLD.search(data, 0, end.start() if end else len(data)):
                raise h11.RemoteProtocolError("folded header line")
        event = super().next_event()
        if isinstance(event, h11.Request) and event.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("unknown HTTP version", error_status_hint=505)
        return event


class ReceiptProtocol(H11Protocol):
    """Closes connections whose request does not arrive in time, and answers bad HTTP in JSON."""

    def __init__(
        self, *args: Any, header_seconds: float, body_seconds: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        limit = self.config.h11_max_incomplete_event_size or MAX_HEADER_BYTES
        self.conn = StrictConnection(h11.SERVER, limit)
        self._limits = {"headers": header_seconds, "body": body_seconds}
        self._phase: Phase = "idle"
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._enter("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("idle")
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._enter(self._current_phase())

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP. Once an answer has begun, there is no way left to say so."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = encode_error(ErrorBody(msg, "invalid_request_error", None, "bad_http"))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _current_phase(self) -> Phase:
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        # Between two requests uvicorn's own keep-alive timer runs, until a byte has come.
        is_receiving = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        return "headers" if is_receiving else "idle"

    def _enter(self, phase: Phase) -> None:
        """Start the clock of a phase, unless it runs already: more bytes buy no more time."""
        if phase == self._phase or self.transport is None:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._phase = phase
        if limit := self._limits.get(phase):
            self._deadline = self.loop.call_later(limit, self.transport.close)
