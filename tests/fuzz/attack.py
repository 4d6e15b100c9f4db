"""Sends malformed requests to a server, and checks what comes of each."""

import asyncio
import json
from collections import Counter
from typing import Any

from tests.campaigns.wire import Connection, CutOff, NoAnswer

GOLDEN = {"prompt": "the quick brown", "max_tokens": 6, "temperature": 0, "logprobs": 1}


class Attack:
    """One client. `wrong` says what should not have happened."""

    def __init__(self, url: str, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._connection = Connection(url)
        self._golden: Any = None
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []

    async def begin(self) -> None:
        self._golden = await self._ask_golden()

    async def _ask_golden(self) -> Any:
        reply = await self._connection.post("/v1/completions", GOLDEN)
        return reply.json().get("choices", reply.body)

    async def check_golden(self, after: str) -> None:
        """The server must answer a good request as it did in the beginning."""
        try:
            async with asyncio.timeout(self._seconds):
                if await self._ask_golden() != self._golden:
                    self.wrong.append(f"after {after}: the golden answer changed")
        except (NoAnswer, CutOff, OSError, TimeoutError) as exc:
            self.wrong.append(f"after {after}: {type(exc).__name__} for the golden request")
            self._connection.close()

    async def send(self, name: str, data: bytes) -> None:
        """Send a malformed request: it must be answered with a 4xx and an error in JSON."""
        try:
            async with asyncio.timeout(self._seconds):
                reply = await self._connection.exchange(data)
        except (NoAnswer, CutOff, OSError, TimeoutError) as exc:
            self.wrong.append(f"{name}: {type(exc).__name__}")
            self._connection.close()
            return
        self.statuses[reply.status] += 1
        if complaint := complaint_about(reply.status, reply.headers, reply.body):
            self.wrong.append(f"{name}: {complaint}")
        if reply.status == 400 and b"bad_http" in reply.body:
            self._connection.close()

    def close(self) -> None:
        self._connection.close()


def complaint_about(status: int, headers: Any, body: bytes) -> str | None:
    """What is wrong with a refusal, or None."""
    if not 400 <= status < 500:
        return f"status {status}: {body[:200]!r}"
    if headers.get("content-type") != "application/json":
        return f"content type {headers.get('content-type')}"
    try:
        error = json.loads(body)["error"]
        if set(error) != {"message", "type", "param", "code"} or not error["message"]:
            return f"not an OpenAI error: {body[:200]!r}"
    except (ValueError, KeyError, TypeError):
        return f"no error in JSON: {body[:200]!r}"
    if any(leak in body for leak in (b"Traceback", b"0x", b".py", b"/home", b"pydantic")):
        return f"tells of the inside: {body[:200]!r}"
    return None
