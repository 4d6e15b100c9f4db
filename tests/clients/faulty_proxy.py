"""A TCP proxy that does to the answers of a server what networks do to them.

    with FaultyProxy(server_url, [Fault("reset", after_events=3)]) as proxy:
        ...  # The first connection to proxy.url meets the fault; later ones meet none.

Each connection takes the next fault; `forever` gives every one the first.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Kind = Literal["pass", "close", "reset", "half-close", "stall", "garbage", "comments"]
EVENT = b"data: "


@dataclass(frozen=True)
class Fault:
    """What happens to one connection's answer.

    Args:
        kind: What happens at the chosen place; `pass` is nothing, `comments` is nothing but
            keep-alive comments from there on, in HTTP chunks.
        after_events: The place: before the first byte for 0, else inside event number N + 1.
        delay_seconds: Before the first byte.
        chunk_size: Pass at most so many bytes at once, each in a packet of its own.
        pause_seconds: After each of them.
    """

    kind: Kind = "pass"
    after_events: int = 0
    delay_seconds: float = 0.0
    chunk_size: int = 65536
    pause_seconds: float = 0.0

    def place(self, answer: bytes) -> int | None:
        """Where in the answer so far the fault strikes; None if it has not come that far."""
        if self.kind == "pass":
            return None
        if self.kind == "comments":
            return self._between_chunks(answer)
        if self.after_events == 0:
            return 0
        parts = answer.split(EVENT, self.after_events + 1)
        # A few bytes into the next event, so that it is cut.
        is_there = len(parts) == self.after_events + 2 and len(parts[-1]) > 12
        return len(answer) - len(parts[-1]) + 12 if is_there else None

    def _between_chunks(self, answer: bytes) -> int | None:
        """Where comments may follow: after the head, or where the server ended a packet."""
        head, found, _ = answer.partition(b"\r\n\r\n")
        if self.after_events == 0:
            return len(head) + 4 if found else None
        is_there = answer.count(EVENT) >= self.after_events and answer.endswith(b"\r\n")
        return len(answer) if is_there else None


class FaultyProxy:
    """Listens on a port of its own, in a thread of its own, while its `with` block runs."""

    def __init__(self, server_url: str, faults: Sequence[Fault] = (), *, forever: bool = False):
        address = urlsplit(server_url)
        self._server = (str(address.hostname), int(address.port or 80))
        self._faults, self._forever = list(faults), forever
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.num_connections = 0
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._listener = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._listener.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports close in the steps of the loop after they were told to.
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index = 0 if self._forever else self.num_connections
        self.num_connections += 1
        fault = self._faults[index] if index < len(self._faults) else Fault()
        # Cancelled is what `_close` does to a connection that stalls.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._server)
            ends = [
                asyncio.create_task(self._pass_requests(reader, upstream_writer)),
                asyncio.create_task(self._pass_answers(upstream_reader, writer, fault)),
            ]
            try:
                # When one side is gone, so is the other: a server must notice who has left.
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                # First, because `_close` may cancel this task again while it waits for the ends.
                upstream_writer.close()
                writer.close()
                for end in ends:
                    end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)

    async def _pass_requests(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            server.write(data)
            await server.drain()

    async def _pass_answers(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault
    ) -> None:
        answer, num_passed = b"", 0
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := await server.read(65536):
            if not answer:
                await asyncio.sleep(fault.delay_seconds)
            answer += data
            place = fault.place(answer)
            end = len(answer) if place is None else place
            for begin in range(num_passed, end, fault.chunk_size):
                writer.write(answer[begin : min(begin + fault.chunk_size, end)])
                await writer.drain()
                await asyncio.sleep(fault.pause_seconds)
            num_passed = len(answer)
            if place is not None:
                return await self._strike(fault.kind, writer)

    async def _strike(self, kind: Kind, writer: asyncio.StreamWriter) -> None:
        match kind:
            case "reset":
                # To close with unsent data to be thrown away is to send RST instead of FIN.
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                writer.transport.abort()
            case "half-close":
                writer.write_eof()
                await asyncio.sleep(60)
            case "stall":
                await asyncio.sleep(60)
            case "garbage":
                writer.write(bytes(range(256)) * 4)
                await writer.drain()
            case "comments":
                while True:
                    writer.write(b"8\r\n: here\n\n\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.05)
