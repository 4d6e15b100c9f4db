"""A fake OpenAI server on a real socket, told by each test what to answer."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.clients.terminal import Terminal
from tests.e2e.server_process import ServerProcess


class FakeServer(ThreadingHTTPServer):
    """Answers every chat with `pieces`, or with `refusal` if that is set."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.pieces = ["Once", " upon", " a time."]
        self.refusal: tuple[int, Any] | None = None
        self.num_refusals = 1_000_000
        """After so many refusals it answers."""
        self.retry_after: str | None = None
        self.times: list[float] = []
        """When each request came, on the monotonic clock."""
        self.raw: bytes | None = None
        self.metrics = b""
        self.hangs = False
        """Send the pieces, then nothing more until the client goes away."""
        self.client_left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.refusal:
            return self._json(*self.server.refusal)
        if self.path == "/metrics":
            return self._send(200, "text/plain", self.server.metrics)
        self._json(200, {"object": "list", "data": [{"id": "fake-model"}, {"id": "another"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        self.server.times.append(time.monotonic())
        if self.server.refusal and self.server.num_refusals > 0:
            self.server.num_refusals -= 1
            self._json(*self.server.refusal)
        elif self.server.raw is not None:
            self._send(200, "text/event-stream", self.server.raw)
        elif body.get("stream"):
            try:
                self._stream(body)
            except ConnectionError:
                self.server.client_left.set()
        else:
            self._json(200, self._answer(body))

    def _stream(self, body: dict[str, Any]) -> None:
        is_chat = self.path.endswith("/chat/completions")
        self._send(200, "text/event-stream", b": ping\n\n")
        for piece in self.server.pieces:
            part = {"delta": {"content": piece}} if is_chat else {"text": piece}
            self._event({"choices": [{"index": 0, **part, "finish_reason": None}]})
        if self.server.hangs:
            self.connection.recv(1)
            self.server.client_left.set()
            return
        last: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        self._event({"choices": [{"index": 0, **last, "finish_reason": "stop"}]})
        if body.get("stream_options", {}).get("include_usage"):
            self._event({"choices": [], "usage": self._usage()})
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text = "".join(self.server.pieces)
        is_chat = self.path.endswith("/chat/completions")
        part = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choice = {"index": 0, **part, "finish_reason": "stop"}
        return {"id": "x-1", "model": body["model"], "choices": [choice], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        num_output = len(self.server.pieces)
        return {"prompt_tokens": 7, "completion_tokens": num_output, "total_tokens": 7 + num_output}

    def _event(self, body: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._send(status, "application/json", data)

    def _send(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("X-Request-Id", "request-7")
        if self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def server_url(endless_model: Path) -> Iterator[str]:
    """The address of a real server, whose answers are all as long as was asked for."""
    flags = ("--served-model-name", "tiny", "--max-slots", "4")
    with ServerProcess(endless_model, *flags) as process:
        yield process.wait_ready()


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens `dijiang chat` at a server. What it remembers is in `tmp_path / "state"`."""
    terminals: list[Terminal] = []

    def open_one(url: str, *args: str, **options: Any) -> Terminal:
        terminals.append(Terminal(url, tmp_path / "state", *args, **options))
        return terminals[-1]

    yield open_one
    for terminal in terminals:
        terminal.close()
