"""One engine for several API processes. Knows no torch.

The process that supervises the engine hosts it: each API process is a guest with a line of its
own. Requests of all guests pass the one `StreamTable` of the engine's handle, so that its limits
hold for all of them together, and what a step brings leaves as one message for each guest.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from dijiang_runtime.engine.endpoint import Endpoint
from dijiang_runtime.engine.handle import EngineHandle
from dijiang_runtime.engine.messages import (
    Abort,
    AddRequest,
    EngineStats,
    EngineStatus,
    Hello,
    HostMessage,
    HostNews,
    decode_guest_message,
    encode,
)
from dijiang_runtime.engine.stream import OWN_ENDS, RequestStream, failure
from dijiang_runtime.errors import DiJiangError
from dijiang_runtime.request import Request, RequestOutput

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.05
"""How soon a guest that does not keep up is tried again."""


class EngineHost:
    """Shares an engine out. Used from the event loop of the engine's handle."""

    def __init__(self, engine: EngineHandle) -> None:
        self._engine = engine
        self.guests: list[Guest] = []
        engine.subscribe(self._tell_stats)
        engine.watch(self._tell_status)

    def open(self) -> "Guest":
        """A line for one more process. It is open until `Guest.close`."""
        guest = Guest(self._engine, self.guests.remove)
        self.guests.append(guest)
        return guest

    @property
    def num_running(self) -> int:
        """Requests of all guests that have not ended."""
        return sum(guest.num_running for guest in self.guests)

    def _tell_status(self) -> None:
        for guest in self.guests:
            guest.tell_status()

    def _tell_stats(self, stats: EngineStats) -> None:
        gauges = stats.gauges()
        # What is counted must be counted once.
        connected = [guest for guest in self.guests if guest.is_connected]
        for index, guest in enumerate(connected):
            guest.tell_stats(gauges if index else stats)


class Guest:
    """The host's side of one process that uses the engine: its requests, and the line to it."""

    def __init__(self, engine: EngineHandle, on_close: Callable[["Guest"], None]) -> None:
        self._engine = engine
        self._on_close = on_close
        self._endpoint = Endpoint()
        self._streams: dict[str, RequestStream] = {}
        self._with_news: dict[str, RequestStream] = {}
        """Those of them that have outputs, the longest waiting first."""
        self._admitted: list[str] = []
        self._refusals: list[RequestOutput] = []
        self._stats: EngineStats | None = None
        self._unsent: list[HostMessage] = []
        self._flush: asyncio.Handle | None = None
        self.num_finished = 0
        """Requests of it that came to an end of their own."""
        self.is_connected = False
        """Whether the process has come."""
        self._reader = asyncio.create_task(self._read())

    @property
    def address(self) -> str:
        """What the process connects to."""
        return self._endpoint.address

    @property
    def num_running(self) -> int:
        """Requests of it that have not ended."""
        return len(self._streams)

    def tell_status(self) -> None:
        """Tell whether the engine is ready, after all that was before."""
        if not self.is_connected:
            return
        self._gather()
        engine = self._engine
        self._unsent.append(EngineStatus(engine.last_info, engine.is_ready, engine.num_restarts))
        self._schedule()

    def tell_stats(self, stats: EngineStats) -> None:
        self._stats = stats if self._stats is None else stats.after(self._stats)
        self._schedule()

    async def close(self) -> None:
        """End the requests of the process, which is gone, and the line to it."""
        self._on_close(self)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        for stream in list(self._streams.values()):
            stream.on_news = None
            stream.abort()
        if self._flush is not None:
            self._flush.cancel()
        self._endpoint.close()

    async def _read(self) -> None:
        """Listen to the process until cancelled."""
        while True:
            message = decode_guest_message(await self._endpoint.receive())
            match message:
                case Hello():
                    self._endpoint.hide()
                    self.is_connected = True
                    self.tell_status()
                case AddRequest():
                    self._add(message.request)
                case Abort() if message.request_id in self._streams:
                    self._streams[message.request_id].abort()

    def _add(self, request: Request) -> None:
        try:
            stream = self._engine.generate(request)
        except DiJiangError as exc:
            self._refusals.append(failure(request.request_id, exc))
        else:
            stream.on_news = partial(self._note, stream)
            self._streams[request.request_id] = stream
            self._admitted.append(request.request_id)
        self._schedule()

    def _note(self, stream: RequestStream) -> None:
        self._with_news[stream.request_id] = stream
        self._schedule()

    def _schedule(self) -> None:
        """Send what there is when everything that is ready has been looked at."""
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._flush = None
        # What a guest does not take stays in the streams, where it is merged: it takes no more
        # memory than the answers.
        if not self._unsent:
            self._gather()
        while self._unsent:
            if not self._endpoint.send(encode(self._unsent[0])):
                self._flush = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._send)
                return
            del self._unsent[0]
        if self._with_news or self._admitted or self._refusals or self._stats:
            self._schedule()

    def _gather(self) -> None:
        """Make one message of what is new."""
        outputs = self._refusals
        for stream in self._with_news.values():
            outputs += stream.take()
            if outputs[-1].finished:
                self.num_finished += outputs[-1].finish_reason in OWN_ENDS
                del self._streams[stream.request_id]
        if outputs or self._admitted or self._stats:
            self._unsent.append(HostNews(tuple(self._admitted), tuple(outputs), self._stats))
        self._refusals, self._admitted, self._stats = [], [], None
        self._with_news.clear()
