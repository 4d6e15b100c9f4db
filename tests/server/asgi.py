"""A client at the level of ASGI: it can read slowly, and leave in the middle."""

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


def events(body: str | bytes) -> list[Any]:
    """The data of each event of a stream, as JSON; `[DONE]` as it is. Comments are dropped."""
    text = body.decode() if isinstance(body, bytes) else body
    assert text.endswith("\n\n")
    blocks = [block for block in text.split("\n\n")[:-1] if not block.startswith(":")]
    data = [block.removeprefix("data: ") for block in blocks]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


class Visitor:
    """One POST to an app, whose messages are collected in `received`."""

    def __init__(self, app: ASGIApp, path: str, body: dict[str, Any]) -> None:
        self.received: list[Message] = []
        self.got_body = asyncio.Event()
        """Set by every message with a body."""
        self.may_send = asyncio.Event()
        """Cleared: the client does not read, and the server's sending blocks."""
        self.may_send.set()
        self._left = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))  # type: ignore[arg-type]

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()
        self.may_send.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)

    @property
    def is_complete(self) -> bool:
        """Whether the server has sent all of its answer."""
        last = self.received[-1] if self.received else {"type": ""}
        return last["type"] == "http.response.body" and not last.get("more_body")

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.may_send.wait()
        if self._left.is_set():
            return
        self.received.append(message)
        if message.get("body"):
            self.got_body.set()
