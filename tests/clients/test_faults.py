"""Both clients against a real server, through a proxy that spoils its answers."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from clients.async_client import AsyncClient
from clients.client import Client
from clients.errors import (
    ClientError,
    ConnectionLostError,
    ProtocolError,
    RequestTimeoutError,
    ServerUnreachableError,
)
from clients.messages import Message, Sampling
from clients.retries import Retries
from clients.timeouts import Timeouts
from tests.clients.faulty_proxy import Fault, FaultyProxy
from tests.e2e.server_process import wait_for

PROMPT = [Message("user", "the quick brown")]
SAMPLING: Sampling = {"max_tokens": 120, "seed": 7, "ignore_eos": True}
RETRIES = Retries(max_retries=2, base_seconds=0.02)


@dataclass(frozen=True)
class Outcome:
    """What a program that asks sees: a text, perhaps an error, and how long it took."""

    text: str
    error: ClientError | None
    seconds: float


def ask(kind: str, url: str, *, stream: bool = True, **timeouts: float) -> Outcome:
    """Ask with one of the two clients, and never hang for longer than 20 s."""
    options: dict[str, Any] = {"model": "tiny", "retries": RETRIES}
    options["timeouts"] = Timeouts(**{"total": 20.0, **timeouts})
    pieces: list[str] = []

    def ask_sync() -> None:
        with Client(url, **options) as client:
            if not stream:
                return pieces.append(client.chat(PROMPT, **SAMPLING).text)
            with client.stream_chat(PROMPT, **SAMPLING) as deltas:
                pieces.extend(delta.text for delta in deltas)

    async def ask_async() -> None:
        async with AsyncClient(url, **options) as client:
            if not stream:
                return pieces.append((await client.chat(PROMPT, **SAMPLING)).text)
            async with await client.stream_chat(PROMPT, **SAMPLING) as deltas:
                async for delta in deltas:
                    pieces.append(delta.text)

    start = time.monotonic()
    error = None
    try:
        asyncio.run(ask_async()) if kind == "async" else ask_sync()
    except ClientError as exc:
        error = exc
    return Outcome("".join(pieces), error, time.monotonic() - start)


@pytest.fixture(scope="module")
def whole(server_url: str) -> str:
    """The answer without a proxy."""
    outcome = ask("sync", server_url)
    assert outcome.error is None and len(outcome.text) > 10
    return outcome.text


@pytest.fixture
def spoil(server_url: str) -> Iterator[Callable[..., FaultyProxy]]:
    """Makes proxies. However a test went, the server has nothing left to do after it."""
    proxies: list[FaultyProxy] = []

    def make(*faults: Fault, forever: bool = False) -> FaultyProxy:
        proxies.append(FaultyProxy(server_url, faults, forever=forever))
        return proxies[-1].__enter__()

    yield make
    for proxy in proxies:
        proxy.__exit__(None, None, None)
    with httpx.Client(base_url=server_url) as http:
        wait_for(http, "dijiang_num_requests_running", 0)


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
@pytest.mark.parametrize("stream", [True, False], ids=["sse", "json"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(delay_seconds=0.4),
        Fault(chunk_size=1),
        Fault(chunk_size=50, pause_seconds=0.001),
    ],
    ids=["delay", "bytes", "drip"],
)
def test_a_slow_network_changes_nothing(
    spoil: Any, whole: str, kind: str, stream: bool, fault: Fault
) -> None:
    proxy = spoil(fault)
    outcome = ask(kind, proxy.url, stream=stream)
    assert (outcome.text, outcome.error) == (whole, None)
    assert proxy.num_connections == 1
    assert outcome.seconds >= fault.delay_seconds


@both
@pytest.mark.parametrize("stream", [True, False], ids=["sse", "json"])
@pytest.mark.parametrize("fault", ["close", "reset", "half-close"])
def test_a_connection_that_fails_before_the_answer_is_made_again(
    spoil: Any, whole: str, kind: str, stream: bool, fault: Any
) -> None:
    proxy = spoil(Fault(fault), Fault(fault))
    outcome = ask(kind, proxy.url, stream=stream)
    assert (outcome.text, outcome.error) == (whole, None)
    assert proxy.num_connections == 3


@both
@pytest.mark.parametrize("fault", ["close", "reset", "half-close"])
def test_a_server_that_always_hangs_up_is_unreachable(spoil: Any, kind: str, fault: Any) -> None:
    proxy = spoil(Fault(fault), forever=True)
    outcome = ask(kind, proxy.url)
    assert type(outcome.error) is ServerUnreachableError
    assert (outcome.text, proxy.num_connections) == ("", 3)


@both
@pytest.mark.parametrize("fault", ["close", "reset", "half-close", "garbage"])
@pytest.mark.parametrize("after_events", [2, 4])
def test_an_answer_that_is_cut_off_ends_with_an_error_and_is_not_asked_for_again(
    spoil: Any, whole: str, kind: str, fault: Any, after_events: int
) -> None:
    proxy = spoil(Fault(fault, after_events=after_events))
    outcome = ask(kind, proxy.url)
    assert type(outcome.error) is ConnectionLostError, outcome.error
    assert proxy.num_connections == 1
    assert whole.startswith(outcome.text) and outcome.text != whole
    # What RST overtakes is lost, what came before anything else is not.
    assert outcome.text or fault == "reset"


@both
@pytest.mark.parametrize("fault", ["close", "reset"])
def test_a_body_that_is_cut_off_is_no_answer(spoil: Any, kind: str, fault: Any) -> None:
    class InMidBody(Fault):
        def place(self, answer: bytes) -> int | None:
            begin = answer.find(b'"choices"')
            return begin if begin > 0 else None

    proxy = spoil(InMidBody(fault))
    outcome = ask(kind, proxy.url, stream=False)
    assert type(outcome.error) is ConnectionLostError
    assert (outcome.text, proxy.num_connections) == ("", 1)


@both
def test_garbage_in_place_of_an_answer_is_told(spoil: Any, kind: str) -> None:
    proxy = spoil(Fault("garbage"))
    outcome = ask(kind, proxy.url)
    assert type(outcome.error) is ProtocolError and "does not speak HTTP" in str(outcome.error)
    assert proxy.num_connections == 1


@both
@pytest.mark.parametrize(
    ("fault", "timeouts", "limit"),
    [
        (Fault("stall"), {"first_token": 0.5}, "first_token"),
        (Fault("comments"), {"first_token": 0.5}, "first_token"),
        (Fault("stall", after_events=3), {"between_tokens": 0.5}, "between_tokens"),
        (Fault("comments", after_events=3), {"between_tokens": 0.5}, "between_tokens"),
        (Fault("stall", after_events=3), {"total": 0.7}, "total"),
        (Fault(chunk_size=1, pause_seconds=0.01), {"total": 0.7}, "total"),
    ],
    ids=["no-head", "no-text", "stall", "keep-alive", "total", "drip"],
)
def test_waiting_has_an_end(
    spoil: Any, whole: str, kind: str, fault: Fault, timeouts: dict[str, float], limit: str
) -> None:
    proxy = spoil(fault)
    outcome = ask(kind, proxy.url, **timeouts)
    assert isinstance(outcome.error, RequestTimeoutError), outcome.error
    assert outcome.error.limit == limit
    assert whole.startswith(outcome.text) and outcome.text != whole
    assert 0.4 < outcome.seconds < 5
    assert proxy.num_connections == 1


@both
def test_a_limit_for_the_first_token_is_none_for_the_others(
    spoil: Any, whole: str, kind: str
) -> None:
    # The first events come at once, and all of them take longer than the first may.
    slow = spoil(Fault(chunk_size=1500, pause_seconds=0.3))
    outcome = ask(kind, slow.url, first_token=1.0, between_tokens=10.0)
    assert (outcome.text, outcome.error) == (whole, None)
    assert outcome.seconds > 1.0


@both
def test_an_answer_in_one_piece_is_waited_for_up_to_the_whole_limit(spoil: Any, kind: str) -> None:
    outcome = ask(kind, spoil(Fault("stall")).url, stream=False, total=0.6, first_token=0.1)
    assert isinstance(outcome.error, RequestTimeoutError) and outcome.error.limit == "total"
    assert 0.5 < outcome.seconds < 5
