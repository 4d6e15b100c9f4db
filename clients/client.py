"""The synchronous client of the OpenAI-compatible API.

with Client("http://127.0.0.1:8000") as client:
    with client.stream_chat([Message("user", "Tell me a story.")], max_tokens=100) as stream:
        for delta in stream:
            print(delta.text, end="", flush=True)
"""

import contextlib
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from clients import wire
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
from clients.stream import Stream, read_error_body, read_whole
from clients.timeouts import DEFAULT_TIMEOUTS, Deadlines, Timeouts
from clients.wire import Call

T = TypeVar("T")


class Client:
    """One server, one connection pool. Close it, or use it in a `with` block.

    Args:
        base_url: Address of the server, with or without `/v1`.
        api_key: Sent as a bearer token.
        model: Name of the model to ask; None asks the first that the server lists.
        transport: What sends the requests; tests put an application here.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = parse_base_url(base_url)
        self._model = model
        self._timeouts = timeouts
        self._retries = retries
        headers = request_headers(api_key)
        self._http = httpx.Client(base_url=self.base_url, headers=headers, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def model_name(self) -> str:
        """The model that requests name. The server is asked once if none was given."""
        if self._model is None:
            models = self.models()
            if not models:
                raise ServerUnreachableError(f"The server at {self.base_url} serves no model.")
            self._model = models[0].id
        return self._model

    def models(self) -> list[Model]:
        """The models that the server serves."""
        return self._call(wire.list_models())

    def complete(self, prompt: str, **sampling: Unpack[Sampling]) -> Answer:
        """Continue a text and return when the whole answer is there."""
        return self._call(wire.complete(self.model_name(), prompt, sampling))

    def chat(self, messages: Sequence[Message], **sampling: Unpack[Sampling]) -> Answer:
        """Answer a conversation and return when the whole answer is there."""
        return self._call(wire.chat(self.model_name(), messages, sampling))

    def stream_completion(
        self, prompt: str, *, continuous_usage: bool = False, **sampling: Unpack[Sampling]
    ) -> Stream:
        """Continue a text, delta by delta. Returns when the server has accepted the request.

        `continuous_usage` asks for the usage so far with every event, which not every server knows.
        """
        call = wire.complete(self.model_name(), prompt, sampling)
        return self._stream(call.streamed(continuous_usage=continuous_usage))

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        continuous_usage: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Answer a conversation, delta by delta. Returns when the server has accepted it."""
        call = wire.chat(self.model_name(), messages, sampling)
        return self._stream(call.streamed(continuous_usage=continuous_usage))

    def tokenize(self, text: str | Sequence[Message]) -> Tokens:
        """The tokens of a text, or of the prompt that a conversation becomes."""
        return self._call(wire.tokenize(self.model_name(), text))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return self._call(wire.detokenize(self.model_name(), tokens))

    def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """A vector for each text, in their order: the closer two are, the more alike the texts."""
        return self._call(wire.embed(self.model_name(), texts))

    def metrics(self) -> dict[str, float]:
        """The server's metrics by name, those that differ in their labels added up."""
        return self._call(wire.metrics())

    def _call(self, call: Call[T]) -> T:
        deadlines = Deadlines(self._timeouts, time.monotonic())
        response, _ = self._send(call, deadlines, is_streamed=False)
        return call.read(read_whole(response, deadlines.total))

    def _stream(self, call: Call[Any]) -> Stream:
        deadlines = Deadlines(self._timeouts, time.monotonic())
        response, sent = self._send(call, deadlines, is_streamed=True)
        return Stream(response, deadlines, sent)

    def _send(
        self, call: Call[Any], deadlines: Deadlines, *, is_streamed: bool
    ) -> tuple[httpx.Response, float]:
        """Send a request until it is accepted; return the open response, and when it was sent."""
        num_retries = 0
        while True:
            sent = time.monotonic()
            try:
                return self._send_once(call, deadlines, sent, is_streamed), sent
            except ClientError as exc:
                pause = self._retries.pause(num_retries, exc, random.random())
                if pause is None or time.monotonic() + pause >= deadlines.total.at:
                    raise
            num_retries += 1
            time.sleep(pause)

    def _send_once(
        self, call: Call[Any], deadlines: Deadlines, now: float, is_streamed: bool
    ) -> httpx.Response:
        timeout, limit = deadlines.of_request(now, is_streamed=is_streamed)
        with sending_errors(self.base_url, limit):
            response = self._http.send(build_request(self._http, call, timeout), stream=True)
        lift_read_timeout(response)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(response.close)
            if response.is_error:
                raise error_from_response(response, read_error_body(response, deadlines.total))
            if is_streamed:
                check_event_stream(response)
            on_failure.pop_all()
        return response
