"""What a request looks like, and sending one and seeing it to its end."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from clients.loadtest.connections import Address, Pool
from clients.loadtest.exchange import Exchange
from clients.loadtest.records import Recorder, RequestRecord

Endpoint = Literal["chat", "completions"]
PATHS: Mapping[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
}


class RequestBuilder:
    """Turns a conversation so far into the bytes of a request.

    Args:
        extra: Fields of the body that every request has.
        api_key: Sent as a bearer token; kept nowhere else.
    """

    def __init__(
        self,
        address: Address,
        endpoint: Endpoint,
        model: str,
        extra: Mapping[str, Any],
        api_key: str | None,
    ) -> None:
        self._endpoint = endpoint
        self._fixed = {
            "model": model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra,
        }
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"POST {address.path}{PATHS[endpoint]} HTTP/1.1\r\nHost: {address.authority}\r\n"
            f"{authorization}Content-Type: application/json\r\nAccept: text/event-stream\r\n"
        )

    def build(self, prefix: str, said: list[str], max_tokens: int) -> bytes:
        """The request for the next answer. `said` holds user and assistant texts in turn."""
        body = {**self._fixed, "max_tokens": max_tokens, **self._prompt(prefix, said)}
        data = json.dumps(body, ensure_ascii=False).encode()
        return f"{self._head}Content-Length: {len(data)}\r\n\r\n".encode() + data

    def _prompt(self, prefix: str, said: list[str]) -> dict[str, Any]:
        if self._endpoint == "completions":
            return {"prompt": "\n\n".join([prefix, *said] if prefix else said)}
        messages = [{"role": "system", "content": prefix}] if prefix else []
        roles = ("user", "assistant")
        messages += [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
        return {"messages": messages}


class Sender:
    """Sends requests over one pool and sees each to its end.

    Args:
        timeout_seconds: For one request, from its send to its last byte.
        keep_text: Whether answers are returned, which turns after the first need.
    """

    def __init__(
        self,
        pool: Pool,
        recorder: Recorder,
        *,
        timeout_seconds: float,
        keep_text: bool,
    ) -> None:
        self._pool, self._recorder = pool, recorder
        self._timeout_seconds, self._keep_text = timeout_seconds, keep_text

    async def send(self, request: bytes, record: RequestRecord) -> str:
        """Send a request and return its answer's text, if that is kept, when it has ended.

        A failure is put down in the record, not raised. Being cancelled drops the connection.
        """
        clock = self._pool.clock
        self._recorder.begin(record)
        record.sent = clock()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._exchange(request, record)
        except TimeoutError:
            _fail(record, "timeout", f"No complete answer within {self._timeout_seconds:g} s.")
        except ConnectionRefusedError as exc:
            _fail(record, "refused", str(exc))
        except OSError as exc:
            _fail(record, "connect", str(exc))
        except asyncio.CancelledError:
            _fail(record, "cancelled", "The load test was stopped.")
            raise
        finally:
            self._recorder.end(record, clock())
        return ""

    async def _exchange(self, request: bytes, record: RequestRecord) -> str:
        while True:
            connection, was_used = await self._pool.acquire()
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            exchange = Exchange(
                record, self._recorder, keep_text=self._keep_text, on_end=_resolver(ended)
            )
            try:
                connection.send(request, exchange)
                await ended
            except BaseException:
                connection.close()
                raise
            if was_used and record.error == "cut" and not exchange.has_begun:
                # The server had closed an idle connection: every client then takes another.
                record.error, record.error_message = None, ""
                continue
            return "".join(exchange.pieces)


def _fail(record: RequestRecord, kind: str, message: str) -> None:
    record.error, record.error_message = kind, message


def _resolver(future: "asyncio.Future[None]") -> Callable[[], None]:
    def resolve() -> None:
        # A request that ran out of time has left its future cancelled.
        if not future.done():
            future.set_result(None)

    return resolve
