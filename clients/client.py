"""A small synchronous client of the OpenAI-compatible API.

with Client("http://127.0.0.1:8000") as client:
    with client.stream_chat([Message("user", "Tell me a story.")], max_tokens=100) as stream:
        for delta in stream:
            print(delta.text, end="", flush=True)
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import httpx

from clients.errors import (
    ProtocolError,
    ServerUnreachableError,
    StreamError,
    error_from_event,
    error_from_response,
)
from clients.sse import SSEDecoder

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
# A long answer that is not streamed says nothing until it is done.
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


class Sampling(TypedDict, total=False):
    """Sampling parameters as the API spells them; what is left out keeps the server's default."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[str, float]
    seed: int
    stop: str | Sequence[str]
    n: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished answer."""

    index: int
    text: str
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a request that was not streamed."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event of a stream adds to one choice. `usage` comes alone, with the last event."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


class Stream:
    """The deltas of one streamed answer, to be iterated once.

    Leaving its `with` block closes the connection, which stops the answer on the server.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

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
        self._response.close()

    def __iter__(self) -> Iterator[Delta]:
        """Yield the deltas.

        Raises:
            StreamError: the server ended the stream with an error, or it broke off before its end.
        """
        decoder = SSEDecoder()
        try:
            for chunk in self._response.iter_bytes():
                for event in decoder.feed(chunk):
                    if event.data == "[DONE]":
                        return
                    yield from _deltas(event.data)
        except httpx.TransportError as exc:
            raise StreamError(f"The connection broke in mid-answer: {exc}") from exc
        finally:
            self.close()
        # Without the end mark the answer may be cut short; that must not look like success.
        raise StreamError("The stream ended before the answer did.")


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
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._model = model
        try:
            self._http = httpx.Client(
                base_url=self.base_url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=timeout,
                transport=transport,
            )
        except httpx.InvalidURL as exc:
            raise ServerUnreachableError(f"{base_url!r} is not an address: {exc}.") from exc

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

    @property
    def model(self) -> str:
        """The model that requests name. The server is asked once if none was given."""
        if self._model is None:
            names = self.models()
            if not names:
                raise ServerUnreachableError(f"The server at {self.base_url} serves no model.")
            self._model = names[0]
        return self._model

    def models(self) -> list[str]:
        """The names of the models that the server serves."""
        response = self._send("GET", "/v1/models", None)
        with _openai_shape():
            return [model["id"] for model in response.json()["data"]]

    def complete(self, prompt: str, **sampling: Unpack[Sampling]) -> Answer:
        """Continue a text and return when the whole answer is there."""
        return _answer(self._send("POST", "/v1/completions", self._completion(prompt, sampling)))

    def chat(self, messages: Sequence[Message], **sampling: Unpack[Sampling]) -> Answer:
        """Answer a conversation and return when the whole answer is there."""
        return _answer(self._send("POST", "/v1/chat/completions", self._chat(messages, sampling)))

    def stream_completion(self, prompt: str, **sampling: Unpack[Sampling]) -> Stream:
        """Continue a text, delta by delta. Returns when the server has accepted the request."""
        return self._stream("/v1/completions", self._completion(prompt, sampling))

    def stream_chat(self, messages: Sequence[Message], **sampling: Unpack[Sampling]) -> Stream:
        """Answer a conversation, delta by delta. Returns when the server has accepted it."""
        return self._stream("/v1/chat/completions", self._chat(messages, sampling))

    def _completion(self, prompt: str, sampling: Sampling) -> dict[str, Any]:
        return {"model": self.model, "prompt": prompt, **sampling}

    def _chat(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        turns = [dataclasses.asdict(message) for message in messages]
        return {"model": self.model, "messages": turns, **sampling}

    def _stream(self, path: str, body: Mapping[str, Any]) -> Stream:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return Stream(self._send("POST", path, {**body, **options}, stream=True))

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, stream: bool = False
    ) -> httpx.Response:
        """Send one request and return its response, whose status is a success.

        Raises:
            ServerUnreachableError: nobody answered.
            APIError: the server refused.
        """
        request = self._http.build_request(method, path, json=body)
        try:
            response = self._http.send(request, stream=stream)
            if response.is_error:
                response.read()
        except httpx.TransportError as exc:
            raise ServerUnreachableError(f"No server answers at {self.base_url} ({exc}).") from exc
        if response.is_error:
            raise error_from_response(response)
        return response


@contextlib.contextmanager
def _openai_shape() -> Iterator[None]:
    """Turn the failure to read a body into one error that says what it means."""
    try:
        yield
    except (ValueError, TypeError, LookupError) as exc:
        raise ProtocolError(
            "What answers at this address is not an OpenAI-compatible API."
        ) from exc


def _usage(body: Mapping[str, Any]) -> Usage | None:
    usage = body.get("usage")
    return Usage(usage["prompt_tokens"], usage["completion_tokens"]) if usage else None


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a choice, which chat and completions, streamed or not, put in three places."""
    for name in ("delta", "message"):
        if name in choice:
            return choice[name].get("content") or ""
    return choice["text"] or ""


def _answer(response: httpx.Response) -> Answer:
    with _openai_shape():
        body = response.json()
        choices = (
            Choice(choice["index"], _text(choice), choice["finish_reason"])
            for choice in body["choices"]
        )
        return Answer(body["id"], body["model"], tuple(choices), _usage(body))


def _deltas(data: str) -> list[Delta]:
    """What one event of a stream adds, choice by choice."""
    with _openai_shape():
        body = json.loads(data)
        if "error" in body:
            raise error_from_event(body["error"])
        deltas = [
            Delta(choice["index"], _text(choice), choice.get("finish_reason"))
            for choice in body["choices"]
        ]
        usage = _usage(body)
    return [*deltas, Delta(usage=usage)] if usage else deltas
