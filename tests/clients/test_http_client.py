"""The HTTP client against a fake server on a real socket."""

import json
import socket
from typing import Any

import httpx
import pytest

from clients.client import Client
from clients.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConnectionLostError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RequestTooLargeError,
    ServerError,
    ServerUnreachableError,
    ServiceUnavailableError,
    StreamError,
)
from clients.messages import Delta, Message, Model, Usage
from clients.retries import Retries

HELLO = [Message("user", "Hello")]
NO_RETRIES = Retries(max_retries=0)


@pytest.fixture
def client(fake_server: Any) -> Any:
    with Client(fake_server.url) as client:
        yield client


def test_a_chat_streams_delta_by_delta(client: Client) -> None:
    with client.stream_chat(HELLO) as stream:
        deltas = list(stream)
    assert deltas == [
        Delta(text="Once"),
        Delta(text=" upon"),
        Delta(text=" a time."),
        Delta(finish_reason="stop"),
        Delta(usage=Usage(7, 3)),
    ]


def test_a_completion_streams_delta_by_delta(client: Client) -> None:
    with client.stream_completion("Hello") as stream:
        assert "".join(delta.text for delta in stream) == "Once upon a time."


def test_a_chat_is_answered_whole(client: Client) -> None:
    answer = client.chat(HELLO)
    assert answer.text == "Once upon a time."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage == Usage(7, 3)


def test_a_completion_is_answered_whole(client: Client) -> None:
    assert client.complete("Hello").text == "Once upon a time."


def test_the_first_model_that_is_served_is_asked(client: Client, fake_server: Any) -> None:
    client.complete("Hello")
    assert client.models() == [Model("fake-model"), Model("another")]
    assert fake_server.bodies[0]["model"] == "fake-model"


def test_sampling_parameters_reach_the_server(client: Client, fake_server: Any) -> None:
    client.chat(HELLO, max_tokens=5, temperature=0.0, seed=3, stop=["."])
    assert fake_server.bodies == [
        {
            "model": "fake-model",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 5,
            "temperature": 0.0,
            "seed": 3,
            "stop": ["."],
        }
    ]


def test_the_key_is_sent_as_a_bearer_token(fake_server: Any) -> None:
    with Client(fake_server.url, api_key="secret", model="m") as client:
        client.complete("Hello")
    assert fake_server.headers[0]["Authorization"] == "Bearer secret"


def test_an_address_may_end_with_v1(fake_server: Any) -> None:
    with Client(fake_server.url + "/v1/") as client:
        assert client.complete("Hello").text


def test_leaving_a_stream_early_closes_the_connection(client: Client, fake_server: Any) -> None:
    fake_server.hangs = True
    with client.stream_chat(HELLO) as stream:
        next(iter(stream))
    assert fake_server.client_left.wait(5)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (413, RequestTooLargeError),
        (418, APIError),
        (422, BadRequestError),
        (429, RateLimitError),
        (500, ServerError),
        (502, ServerError),
        (503, ServiceUnavailableError),
    ],
)
def test_every_error_status_has_its_class(
    fake_server: Any, status: int, error_type: type[APIError], stream: bool
) -> None:
    error = {"message": "No.", "type": "some_error", "param": "n", "code": "some_code"}
    fake_server.refusal = (status, {"error": error})
    fake_server.retry_after = "3"
    with (
        Client(fake_server.url, model="m", retries=NO_RETRIES) as client,
        pytest.raises(APIError) as caught,
    ):
        _ = client.stream_chat(HELLO) if stream else client.chat(HELLO)
    exc = caught.value
    assert type(exc) is error_type
    assert str(exc) == "No."
    assert (exc.status_code, exc.type, exc.param, exc.code) == (
        status,
        "some_error",
        "n",
        "some_code",
    )
    assert exc.request_id == "request-7"
    assert exc.retry_after_seconds == 3.0


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"[]", b'{"error": null}', b"\xff"])
def test_an_error_without_an_openai_body_still_says_its_status(
    fake_server: Any, body: bytes
) -> None:
    fake_server.refusal = (502, body)
    with (
        Client(fake_server.url, retries=NO_RETRIES) as client,
        pytest.raises(ServerError) as caught,
    ):
        client.models()
    assert caught.value.status_code == 502
    assert str(caught.value)


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def test_an_error_event_ends_a_stream_with_its_message(client: Client, fake_server: Any) -> None:
    error = {"message": "The engine stopped.", "type": "server_error", "code": "engine_dead"}
    fake_server.raw = sse(piece("Once"), {"error": error})
    seen = []
    with pytest.raises(StreamError, match="The engine stopped") as caught:
        for delta in client.stream_chat(HELLO):
            seen.append(delta.text)
    assert seen == ["Once"]
    assert caught.value.code == "engine_dead"


def test_a_stream_without_its_end_mark_is_an_error(client: Client, fake_server: Any) -> None:
    fake_server.raw = sse(piece("Once"))
    with pytest.raises(ConnectionLostError, match="ended before"):
        list(client.stream_chat(HELLO))


def test_a_connection_that_breaks_in_mid_answer_is_a_stream_error() -> None:
    class Breaks(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            yield sse(piece("Once"))
            raise httpx.ReadError("connection reset")

    headers = {"Content-Type": "text/event-stream"}
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, headers=headers, stream=Breaks())
    )
    with Client(model="m", transport=transport) as client:
        with pytest.raises(ConnectionLostError, match="connection reset"):
            list(client.stream_chat(HELLO))


@pytest.mark.parametrize("raw", [b"data: {}\n\n", b"data: what\n\n", b"data: []\n\n"])
def test_a_stream_of_another_protocol_is_a_clear_error(
    client: Client, fake_server: Any, raw: bytes
) -> None:
    fake_server.raw = raw
    with pytest.raises(ProtocolError, match="not an OpenAI-compatible API"):
        list(client.stream_chat(HELLO))


def test_a_server_of_another_kind_is_a_clear_error(fake_server: Any) -> None:
    fake_server.refusal = (200, b"<html>It works!</html>")
    with Client(fake_server.url) as client, pytest.raises(ProtocolError):
        client.models()


def test_nobody_listening_is_a_clear_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url, retries=NO_RETRIES) as client:
            with pytest.raises(ServerUnreachableError, match=url):
                client.models()


@pytest.mark.parametrize("url", ["localhost:8000", "http://[", "ftp://x", "http://x:y"])
def test_an_address_that_is_none_is_a_clear_error(url: str) -> None:
    with pytest.raises(ServerUnreachableError, match="is not an address"):
        Client(url)
