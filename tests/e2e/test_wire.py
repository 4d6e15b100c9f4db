"""Bytes on a socket that no HTTP library would send."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from dijiang_runtime.errors import EngineDeadError
from dijiang_runtime.tokenizer import Tokenizer
from server.config import ConfigError, ServerConfig
from server.listening import listen
from server.run import serve
from tests.server.fake_engine import FakeEngine

REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt": "the", "max_tokens": 3}'


@pytest.fixture
async def port(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a server in this process, impatient, around a fake engine."""
    config = ServerConfig(
        model=tiny_model, port=0, header_timeout_seconds=0.2, body_timeout_seconds=0.3
    )
    listener = listen(config)
    monkeypatch.setattr("server.run.listen", lambda config: listener)
    engine = FakeEngine(Tokenizer.load(tiny_model))
    serving = asyncio.create_task(serve(engine, config))  # type: ignore[arg-type]
    yield listener.getsockname()[1]
    engine.give_up(EngineDeadError("test is over"))
    assert await serving == 1


async def talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send the parts, with pauses between, and return all that is answered until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
        answer = b""
        # A server that closes with bytes unread resets the connection.
        with suppress(ConnectionError):
            async with asyncio.timeout(5):
                while data := await reader.read(65536):
                    answer += data
        return answer
    finally:
        writer.close()


async def check_answers(port: int) -> None:
    head = REQUEST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    answer = await talk(port, head + BODY)
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"P"],
        [REQUEST[i : i + 1] for i in range(len(REQUEST))],
        [REQUEST + b"Content-Length: 34\r\n\r\n", *(BODY[i : i + 1] for i in range(len(BODY)))],
        [REQUEST + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 100],
    ],
    ids=["silence", "one byte", "slow headers", "slow body", "slow chunks"],
)
async def test_a_request_that_trickles_in_is_cut_off(port: int, parts: list[bytes]) -> None:
    async with asyncio.timeout(5):
        answer = await talk(port, *parts, pause=0.02)
    assert b"200 OK" not in answer
    await check_answers(port)


async def test_a_connection_may_be_used_again_after_a_pause(port: int) -> None:
    """The limit is on a request's arrival, not on the time between two requests."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(REQUEST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert b'"text_completion"' in await reader.readuntil(b"}}")
        await asyncio.sleep(0.4)
    writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"garbage\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: a\r\n\tContent-Length: 5\r\n\r\n",
        REQUEST + b"Content-Length: -1\r\n\r\n",
        REQUEST + b"Content-Length: +5\r\n\r\n",
        REQUEST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}{}",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
    ids=lambda head: repr(head[-24:]),
)
async def test_what_is_no_http_is_refused_in_json(port: int, head: bytes) -> None:
    answer = await talk(port, head)
    status, _, rest = answer.partition(b"\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    body = json.loads(rest.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] == "bad_http"
    await check_answers(port)


async def test_headers_without_end_are_not_read_to_the_end(port: int) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 2_000_000 + b"\r\n\r\n"
    assert b"200 OK" not in await talk(port, head)
    await check_answers(port)


async def test_a_body_with_two_lengths_smuggles_no_second_request(port: int) -> None:
    inner = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    head = REQUEST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = await talk(port, head + inner)
    assert b'"version"' not in answer
    await check_answers(port)


async def test_the_software_is_not_advertised(port: int) -> None:
    answer = await talk(port, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    headers = answer.lower().partition(b"\r\n\r\n")[0]
    assert b"\r\nserver:" not in headers


async def test_a_port_that_is_taken_is_told_to_the_operator(port: int, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: Address already in use"):
        listen(ServerConfig(model=tiny_model, port=port))


def test_connections_send_small_events_at_once(tiny_model: Path) -> None:
    with listen(ServerConfig(model=tiny_model, port=0)) as listener:
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
