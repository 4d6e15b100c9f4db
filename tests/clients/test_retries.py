"""When a request is sent again, and when it is not."""

import asyncio
import time
from email.utils import formatdate
from typing import Any

import pytest

from clients.async_client import AsyncClient
from clients.client import Client
from clients.errors import (
    APIError,
    ClientError,
    ConnectionLostError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    ServerUnreachableError,
    ServiceUnavailableError,
    parse_retry_after,
)
from clients.messages import Message
from clients.retries import Retries
from clients.timeouts import Timeouts

HELLO = [Message("user", "Hello")]
BUSY = {"error": {"message": "Busy."}}
QUICK = Retries(max_retries=2, base_seconds=0.02)


def refusal(cls: type[RateLimitError], **fields: Any) -> RateLimitError:
    return cls("No.", status_code=429, **fields)


def ask(kind: str, url: str, **options: Any) -> str:
    """The answer to a streamed chat, of either client."""
    options = {"model": "m", "retries": QUICK, **options}

    async def ask_async() -> str:
        async with AsyncClient(url, **options) as client, await client.stream_chat(HELLO) as stream:
            return "".join([delta.text async for delta in stream])

    if kind == "async":
        return asyncio.run(ask_async())
    with Client(url, **options) as client, client.stream_chat(HELLO) as stream:
        return "".join(delta.text for delta in stream)


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_refusal_is_tried_again_until_there_is_room(
    fake_server: Any, kind: str, status: int
) -> None:
    fake_server.refusal, fake_server.num_refusals = (status, BUSY), 2
    assert ask(kind, fake_server.url) == "Once upon a time."
    assert len(fake_server.bodies) == 3


@both
def test_the_last_refusal_is_raised(fake_server: Any, kind: str) -> None:
    fake_server.refusal = (429, BUSY)
    with pytest.raises(RateLimitError, match=r"Busy\."):
        ask(kind, fake_server.url)
    assert len(fake_server.bodies) == 3


@both
@pytest.mark.parametrize("status", [400, 401, 404, 409, 500, 501])
def test_other_refusals_are_not_tried_again(fake_server: Any, kind: str, status: int) -> None:
    fake_server.refusal = (status, BUSY)
    with pytest.raises(ClientError):
        ask(kind, fake_server.url)
    assert len(fake_server.bodies) == 1


@both
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_how_long_to_wait(fake_server: Any, kind: str, form: str) -> None:
    # A date has whole seconds: between one and two of them are left.
    fake_server.retry_after = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    fake_server.refusal, fake_server.num_refusals = (503, BUSY), 1
    assert ask(kind, fake_server.url)
    first, second = fake_server.times
    assert 0.9 < second - first < 2.5


@both
def test_a_wait_beyond_the_time_limit_is_not_begun(fake_server: Any, kind: str) -> None:
    fake_server.retry_after, fake_server.refusal = "30", (429, BUSY)
    start = time.monotonic()
    with pytest.raises(RateLimitError):
        ask(kind, fake_server.url, timeouts=Timeouts(total=5))
    assert time.monotonic() - start < 3
    assert len(fake_server.bodies) == 1


def test_pauses_double_and_are_spread() -> None:
    retries = Retries(max_retries=6, base_seconds=0.5, max_seconds=4)
    error = ServerUnreachableError("gone")
    assert [retries.pause(n, error, 1.0) for n in range(7)] == [0.5, 1, 2, 4, 4, 4, None]
    assert [retries.pause(n, error, 0.0) for n in range(7)] == [0.25, 0.5, 1, 2, 2, 2, None]


def test_what_the_server_asks_for_is_the_least() -> None:
    retries = Retries(base_seconds=0.5, max_retry_after_seconds=60)
    assert retries.pause(0, refusal(RateLimitError, retry_after_seconds=3), 0.0) == 3.0
    assert retries.pause(0, refusal(RateLimitError, retry_after_seconds=3), 1.0) == 3.25
    assert retries.pause(0, refusal(RateLimitError, retry_after_seconds=61), 0.0) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerUnreachableError("gone"), True),
        (RateLimitError("no", status_code=429), True),
        (ServiceUnavailableError("no", status_code=503), True),
        (ServerError("no", status_code=502), True),
        (ServerError("no", status_code=504), True),
        (APIError("no", status_code=408), True),
        (ServerError("no", status_code=500), False),
        (APIError("no", status_code=409), False),
        (ConnectionLostError("cut"), False),
        (RequestTimeoutError("total", 1.0), False),
    ],
)
def test_only_what_may_help_is_tried_again(error: ClientError, expected: bool) -> None:
    assert (Retries().pause(0, error, 0.5) is not None) == expected


NOON = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("7", 7.0),
        ("2.5", 2.5),
        ("-3", 0.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after_holds_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOON) == seconds
