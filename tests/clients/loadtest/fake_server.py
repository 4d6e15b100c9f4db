"""A fake streaming server with known delays, lean enough to be far from its limit.

`python fake_server.py SETTINGS` runs it in a process of its own and prints its port: in the
process of the load tester it would take the event loop whose delays are being measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Settings:
    """How the fake server behaves. The lists are gone through request by request, over and over."""

    ttft_seconds: list[float] = field(default_factory=lambda: [0.05])
    itl_seconds: list[float] = field(default_factory=lambda: [0.02])
    num_tokens: int = 10
    tokens_per_event: int = 1
    statuses: list[int] = field(default_factory=lambda: [200])
    """200 answers, another status is an error, 0 cuts the stream in the middle, 1 sends an error
    event in the middle, 2 never answers."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(body: Any) -> bytes:
    return chunk(b"data: " + json.dumps(body).encode() + b"\n\n")


def text_event(text: str, is_chat: bool, finish_reason: str | None = None) -> bytes:
    part = {"delta": {"content": text}} if is_chat else {"text": text}
    choice = {"index": 0, **part, "finish_reason": finish_reason}
    return event({"id": "x", "object": "chunk", "model": "fake", "choices": [choice]})


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT_ERROR = {"error": {"message": "The engine died.", "type": "server_error", "code": None}}


class FakeServer:
    """Answers on one port. `bodies` holds what was asked, oldest first."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.waiting: list[tuple[int, Peer]] = []
        """Who wants the counts once so many requests have come."""
        self.lateness: list[float] = []
        """How late each event was sent, in seconds: what the machine adds to the delays."""
        self.num_connections = 0
        self.num_requests = 0
        self.num_running = 0
        self.max_running = 0

    async def start(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: Peer(self), "127.0.0.1", 0, backlog=4096)

    def answer_waiting(self) -> None:
        names = ("num_connections", "num_requests", "max_running", "bodies", "keys", "lateness")
        for number, peer in [one for one in self.waiting if one[0] <= self.num_requests]:
            self.waiting.remove((number, peer))
            peer.json(200, {name: getattr(self, name) for name in names})


class Peer(asyncio.Protocol):
    """One connection of a client."""

    transport: asyncio.Transport

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.num_connections += 1

    def data_received(self, data: bytes) -> None:
        arrived = asyncio.get_running_loop().time()
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        lines = (line.partition(": ") for line in head.decode().split("\r\n"))
        headers = {name.lower(): value for name, _, value in lines}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        if (key := headers.get("authorization")) and key not in self.server.keys:
            self.server.keys.append(key)
        self.answer(head.decode().split(" ")[1], rest[:length], arrived)

    def answer(self, path: str, body: bytes, arrived: float) -> None:
        if path.endswith("/models"):
            self.json(200, {"object": "list", "data": [{"id": "fake-model"}]})
        elif path.startswith("/counts/"):
            self.server.waiting.append((int(path.removeprefix("/counts/")), self))
            self.server.answer_waiting()
        elif path.endswith("completions"):
            self.complete(path, json.loads(body), arrived)
        else:
            self.json(404, {"error": {"message": "There is nothing here."}})

    def complete(self, path: str, body: dict[str, Any], arrived: float) -> None:
        is_chat = "/chat/" in path
        if not body.get("stream"):
            part = {"message": {"content": "word"}} if is_chat else {"text": "word"}
            choice = {"index": 0, **part, "finish_reason": "length"}
            answer = {"id": "x", "model": "fake-model", "choices": [choice]}
            self.json(200, {**answer, "usage": usage(body, 1)})
            return
        settings, number = self.server.settings, self.server.num_requests
        self.server.num_requests += 1
        if len(self.server.bodies) < 100:
            self.server.bodies.append(body)
        self.server.answer_waiting()
        status = settings.statuses[number % len(settings.statuses)]
        if status >= 100 and status != 200:
            self.json(status, {"error": {"message": f"Told to answer {status}."}})
        elif status != 2:
            self.stream(body, is_chat, arrived, number, status)

    def stream(
        self, body: dict[str, Any], is_chat: bool, arrived: float, number: int, status: int
    ) -> None:
        settings, loop = self.server.settings, asyncio.get_running_loop()
        self.server.num_running += 1
        self.server.max_running = max(self.server.max_running, self.server.num_running)
        ttft = settings.ttft_seconds[number % len(settings.ttft_seconds)]
        itl = settings.itl_seconds[number % len(settings.itl_seconds)]
        num_events = settings.num_tokens // settings.tokens_per_event
        if status in (0, 1):
            num_events = num_events // 2 or 1
        piece = text_event(" word" * settings.tokens_per_event, is_chat)
        self.transport.write(HEAD + (event(ROLE) if is_chat else b""))
        # On a schedule of its own, so that one late event does not delay those after it.
        for i in range(num_events - 1):
            at = arrived + ttft + i * itl
            loop.call_at(at, self.write, at, piece)
        last = arrived + ttft + (num_events - 1) * itl
        loop.call_at(last, self.finish, last, body, is_chat, piece, status)

    def write(self, at: float, data: bytes) -> None:
        self.server.lateness.append(asyncio.get_running_loop().time() - at)
        self.transport.write(data)

    def finish(
        self, at: float, body: dict[str, Any], is_chat: bool, piece: bytes, status: int
    ) -> None:
        self.server.lateness.append(asyncio.get_running_loop().time() - at)
        self.server.num_running -= 1
        if status == 0:
            self.transport.write(piece)
            self.transport.close()
        elif status == 1:
            self.transport.write(piece + event(EVENT_ERROR) + chunk(b""))
        else:
            counted = event({"choices": [], "usage": usage(body, self.server.settings.num_tokens)})
            end = text_event("", is_chat, "length") + counted + chunk(b"data: [DONE]\n\n")
            self.transport.write(piece + end + b"0\r\n\r\n")

    def json(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}


def usage(body: dict[str, Any], num_output: int) -> dict[str, int]:
    """A word is two tokens here, a message three more, so that a client can find that out."""
    texts = [message["content"] for message in body.get("messages", [])] or [body.get("prompt", "")]
    num_prompt = sum(2 * len(text.split()) + 3 for text in texts)
    return {"prompt_tokens": num_prompt, "completion_tokens": num_output}


async def main() -> None:
    server = FakeServer(Settings(**json.loads(sys.argv[1])))
    listening = await server.start()
    print(listening.sockets[0].getsockname()[1], flush=True)
    # Whoever started this closes the pipe to stop it.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def as_argument(settings: Settings) -> str:
    return json.dumps(asdict(settings))


if __name__ == "__main__":
    asyncio.run(main())
