"""A client that closes its connection stops its work."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.conftest import NUM_SLOTS
from tests.e2e.server_process import ServerProcess, metrics, wait_for

ENDLESS = {"prompt": "the", "max_tokens": 100_000, "ignore_eos": True, "stream": True}


@contextmanager
def endless_stream(http: httpx.Client, **changes: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream that would run for minutes."""
    with http.stream("POST", "/v1/completions", json={**ENDLESS, **changes}) as response:
        assert response.status_code == 200
        # Held here: httpx closes the response when its iterator is dropped.
        lines = response.iter_lines()
        yield lines


def test_a_closed_stream_frees_its_slot_within_two_steps(http: httpx.Client) -> None:
    before = metrics(http)["dijiang_disconnects_total"]
    with endless_stream(http) as other:
        next(other)
        with endless_stream(http) as lines:
            next(lines)
            wait_for(http, "dijiang_state_slots_used", 2)
        # The other stream keeps the engine stepping, so that steps can be counted.
        step_of_abort = None
        for _ in other:
            now = metrics(http)
            num_steps = now["dijiang_step_seconds_count"]
            if step_of_abort is None and now["dijiang_disconnects_total"] > before:
                step_of_abort = num_steps
            elif step_of_abort is not None and num_steps >= step_of_abort + 2:
                break
        assert now["dijiang_state_slots_used"] == 1
    wait_for(http, "dijiang_state_slots_used", 0)


def test_a_request_that_waits_for_a_slot_leaves_the_queue(http: httpx.Client) -> None:
    with ExitStack() as stack:
        for _ in range(NUM_SLOTS):
            next(stack.enter_context(endless_stream(http)))
        with endless_stream(http):
            wait_for(http, "dijiang_num_requests_waiting", 1)
        wait_for(http, "dijiang_num_requests_waiting", 0)
        assert metrics(http)["dijiang_num_requests_running"] == NUM_SLOTS
    wait_for(http, "dijiang_state_slots_used", 0)


@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_that_is_not_streamed_is_given_up_too(
    server: ServerProcess, http: httpx.Client, n: int
) -> None:
    url = urlsplit(server.wait_ready())
    body = json.dumps({**ENDLESS, "stream": False, "n": n}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_for(http, "dijiang_state_slots_used", n)
    wait_for(http, "dijiang_state_slots_used", 0)


def test_everything_is_accounted_for(http: httpx.Client) -> None:
    with endless_stream(http) as lines:
        next(lines)
    http.post("/v1/completions", json={"prompt": "the"}).raise_for_status()
    assert http.post("/v1/completions", json={"prompt": ""}).status_code == 400
    wait_for(http, "dijiang_state_slots_used", 0)
    now = metrics(http)
    assert now["dijiang_requests_received_total"] == now["dijiang_requests_finished_total"]
