"""A limit on how long a thread may wait for a connection to say something useful."""

import contextlib
import math
import socket
import threading
import time
from types import TracebackType
from typing import Self

import httpx

from clients.timeouts import Limit


class Watchdog:
    """Shuts a response's connection down when a limit passes, which ends the read that waits.

    httpx bounds every read alone, so a server that sends a keep-alive comment now and then would
    never be late. Used by one reader; its own thread sleeps until the earliest limit.
    """

    def __init__(self, response: httpx.Response) -> None:
        stream = response.extensions.get("network_stream")
        # A transport without a network, as in tests, has no socket.
        self._socket: socket.socket | None = stream and stream.get_extra_info("socket")
        self._changed = threading.Condition()
        self._at = math.inf
        self._wakes_at = math.inf
        self._is_closed = False
        self.has_bitten = False

    def __enter__(self) -> Self:
        if self._socket is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def arm(self, limit: Limit) -> None:
        with self._changed:
            self._at = limit.at
            # A later limit needs no waking: the thread looks at it when the former one passes.
            if self._at < self._wakes_at:
                self._changed.notify()

    def disarm(self) -> None:
        with self._changed:
            self._at = math.inf

    def _watch(self) -> None:
        assert self._socket is not None
        with self._changed:
            while not self._is_closed:
                left = self._at - time.monotonic()
                if left <= 0:
                    self.has_bitten = True
                    with contextlib.suppress(OSError):
                        self._socket.shutdown(socket.SHUT_RDWR)
                    return
                self._wakes_at = self._at
                self._changed.wait(None if left == math.inf else min(left, threading.TIMEOUT_MAX))
