"""The asynchronous client: `Client` with `await`. What the two share does no I/O.

async with AsyncClient("http://127.0.0.1:8000") as client:
    async with await client.stream_chat([Message("user", "Tell me a story.")]) as stream:
        async for delta in stream:
            print(delta.text, end="", flush=True)
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from clients import wire
from clients.async_stream import AsyncStream, by, read_error_body, read_whole
from clients.errors import ClientError, ServerUnreachableError, error_from_response
from clients.http import (
    DEFAULT_BASE_URL,
    build_request,
    check_event_stream,
    lift_read_timeout,
    parse_base_url,
    request_headers,
    sending_errors,
)
from clients.messages import Answer, Message, Model, Sampling, Tokens
from clients.retries import DEFAULT_RETRIES, Retries
from clients.timeouts import DEFAULT_TIMEOUTS, Deadlines, Timeouts
from clients.wire import Call

T = TypeVar("T")


class AsyncClient:
    """One server, one connection pool. Close it, or use it in an `async with` block.

    Takes what `Client` takes.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = parse_base_url(base_url)
        self._model = model
        self._timeouts = timeouts
        self._retries = retries
        headers = request_headers(api_key)
        self._http = httpx.AsyncClient(base_url=self.base_url, headers=headers, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def model_name(self) -> str:
        """The model that requests name. The server is asked once if none was given."""
        if self._model is None:
            models = await self.models()
            if not models:
                raise ServerUnreachableError(f"The server at {self.base_url} serves no model.")
            self._model = models[0].id
        return self._model

    async def models(self) -> list[Model]:
        """The models that the server serves."""
        return await self._call(wire.list_models())

    async def complete(self, prompt: str, **sampling: Unpack[Sampling]) -> Answer:
        """Continue a text and return when the whole answer is there."""
        return await self._call(wire.complete(await self.model_name(), prompt, sampling))

    async def chat(self, messages: Sequence[Message], **sampling: Unpack[Sampling]) -> Answer:
        """Answer a conversation and return when the whole answer is there."""
        return await self._call(wire.chat(await self.model_name(), messages, sampling))

    async def stream_completion(
        self, prompt: str, *, continuous_usage: bool = False, **sampling: Unpack[Sampling]
    ) -> AsyncStream:
        """Continue a text, delta by delta. Returns when the server has accepted the request.

        `continuous_usage` asks for the usage so far with every event, which not every server knows.
        """
        call = wire.complete(await self.model_name(), prompt, sampling)
        return await self._stream(call.streamed(continuous_usage=continuous_usage))

    async def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        continuous_usage: bool = False,
        **sampling: Unpack[Sampling],
    ) -> AsyncStream:
        """Answer a conversation, delta by delta. Returns when the server has accepted it."""
        call = wire.chat(await self.model_name(), messages, sampling)
        return await self._stream(call.streamed(continuous_usage=continuous_usage))

    async def tokenize(self, text: str | Sequence[Message]) -> Tokens:
        """The tokens of a text, or of the prompt that a conversation becomes."""
        return await self._call(wire.tokenize(await self.model_name(), text))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return await self._call(wire.detokenize(await self.model_name(), tokens))

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """A vector for each text, in their order: the closer two are, the more alike the texts."""
        return await self._call(wire.embed(await self.model_name(), texts))

    async def metrics(self) -> dict[str, float]:
        """The server's metrics by name, those that differ in their labels added up."""
        return await self._call(wire.metrics())

    async def _call(self, call: Call[T]) -> T:
        deadlines = Deadlines(self._timeouts, time.monotonic())
        response, _ = await self._send(call, deadlines, is_streamed=False)
        return call.read(await read_whole(response, deadlines.total))

    async def _stream(self, call: Call[Any]) -> AsyncStream:
        deadlines = Deadlines(self._timeouts, time.monotonic())
        response, sent = await self._send(call, deadlines, is_streamed=True)
        return AsyncStream(response, deadlines, sent)

    async def _send(
        self, call: Call[Any], deadlines: Deadlines, *, is_streamed: bool
    ) -> tuple[httpx.Response, float]:
        """Send a request until it is accepted; return the open response, and when it was sent."""
        num_retries = 0
        while True:
            sent = time.monotonic()
            try:
                return await self._send_once(call, deadlines, sent, is_streamed), sent
            except ClientError as exc:
                pause = self._retries.pause(num_retries, exc, random.random())
                if pause is None or time.monotonic() + pause >= deadlines.total.at:
                    raise
            num_retries += 1
            await asyncio.sleep(pause)

    async def _send_once(
        self, call: Call[Any], deadlines: Deadlines, now: float, is_streamed: bool
    ) -> httpx.Response:
        timeout, limit = deadlines.of_request(now, is_streamed=is_streamed)
        with sending_errors(self.base_url, limit):
            async with by(limit):
                request = build_request(self._http, call, timeout)
                response = await self._http.send(request, stream=True)
        lift_read_timeout(response)
        async with contextlib.AsyncExitStack() as on_failure:
            on_failure.push_async_callback(response.aclose)
            if response.is_error:
                body = await read_error_body(response, deadlines.total)
                raise error_from_response(response, body)
            if is_streamed:
                check_event_stream(response)
            on_failure.pop_all()
        return response
