"""Many streams read at the least cost there is, for measuring a server on the machine it shares.

One thread, no event loop, nothing decoded: a read is timed and its events are counted. Where client
and server share cores, every microsecond of the client is missing from the server.
"""

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from clients.loadtest.connections import Address
from clients.loadtest.errors import LoadTestError

READ_BYTES = 65536
_DONE = b"data: [DONE]"
_ENDING_BYTES = 32
"""Of a stream's last bytes, so many are kept: `_DONE`, and the end of the response after it."""


@dataclass(slots=True)
class StreamTimes:
    """When the events of one stream arrived, by `time.perf_counter`; `[DONE]` is left out."""

    times: list[float] = field(default_factory=list)
    _ending: bytes = b""

    def feed(self, data: bytes, now: float) -> None:
        """Count the events that `data` completes. Each ends with an empty line."""
        last = self._ending[-1:]
        num_events = data.count(b"\n\n") + (last == b"\n" and data[:1] == b"\n")
        self.times += [now] * num_events
        self._ending = (self._ending + data)[-_ENDING_BYTES:]

    def finish(self) -> None:
        """Say that the connection is closed. Raises `LoadTestError` if the stream was cut."""
        if _DONE not in self._ending:
            raise LoadTestError(f"A stream was refused or cut after {len(self.times)} events.")
        self.times.pop()


def read_streams(
    address: Address, requests: Sequence[bytes], *, timeout_seconds: float
) -> list[StreamTimes]:
    """Send every request over a connection of its own, and read all streams to their end.

    Args:
        requests: Whole HTTP requests for streams, with `Connection: close`.

    Raises:
        LoadTestError: a stream was refused or cut, or they take longer than they may.
        OSError: the server cannot be reached.
    """
    streams = [StreamTimes() for _ in requests]
    deadline = time.perf_counter() + timeout_seconds
    connections = {}
    selector = selectors.DefaultSelector()
    try:
        for request, stream in zip(requests, streams, strict=True):
            connection = socket.create_connection((address.host, address.port), timeout=10.0)
            connections[connection] = stream
            selector.register(connection, selectors.EVENT_READ, connection)
            connection.sendall(request)
            connection.setblocking(False)
        while connections:
            if time.perf_counter() > deadline:
                raise LoadTestError(f"The streams did not end within {timeout_seconds:g} s.")
            for key, _ in selector.select(timeout=1.0):
                connection = key.data
                if data := connection.recv(READ_BYTES):
                    connections[connection].feed(data, time.perf_counter())
                    continue
                selector.unregister(connection)
                connection.close()
                connections.pop(connection).finish()
    finally:
        selector.close()
        for connection in connections:
            connection.close()
    return streams
