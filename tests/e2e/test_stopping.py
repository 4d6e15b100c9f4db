"""SIGTERM: what runs finishes, what comes is refused, and the status is 0."""

import asyncio
import json
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

LONG = {"prompt": "the", "ignore_eos": True, "stream": True}
SHORT = {"prompt": "the", "max_tokens": 1}


async def test_a_draining_server_finishes_what_runs_and_refuses_the_rest(
    tiny_model: Path,
) -> None:
    with ServerProcess(tiny_model, "--drain-seconds", "30") as server:
        url = await asyncio.to_thread(server.wait_ready)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            body = {**LONG, "max_tokens": 1500}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                await anext(lines)

                server.signal(signal.SIGTERM)
                async with asyncio.timeout(5):
                    while (await client.get("/readyz")).status_code == 200:
                        pass
                refused = await client.post("/v1/completions", json=SHORT)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "server_draining"
                assert refused.headers["retry-after"] == "1"
                assert (await client.get("/livez")).status_code == 200

                data = [line async for line in lines if line]
        assert data[-1] == "data: [DONE]"
        assert (
            json.loads(data[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        )
        assert await asyncio.to_thread(server.process.wait, 10) == 0


@pytest.mark.slow
def test_who_reads_slowly_is_given_the_whole_grace_period(tiny_model: Path) -> None:
    body = json.dumps({**LONG, "max_tokens": 800}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with ServerProcess(tiny_model, "--drain-seconds", "60") as server, socket.socket() as client:
        address = urlsplit(server.wait_ready())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((address.hostname, address.port))
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        received = client.recv(4096)
        server.signal(signal.SIGTERM)
        # So slowly that what waits to be sent takes longer than idle connections are given.
        while data := client.recv(4096):
            received += data
            time.sleep(0.5)
        assert b"data: [DONE]" in received
        assert received.endswith(b"0\r\n\r\n")
        assert server.process.wait(10) == 0


async def test_what_does_not_finish_in_time_ends_with_an_error(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, "--drain-seconds", "0.2") as server:
        url = await asyncio.to_thread(server.wait_ready)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            body = {**LONG, "max_tokens": 500_000}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                await anext(lines)
                server.signal(signal.SIGTERM)
                data = [line async for line in lines if line]
        error = json.loads(data[-1].removeprefix("data: "))["error"]
        assert error["code"] == "server_draining"
        assert await asyncio.to_thread(server.process.wait, 10) == 0


async def test_a_second_signal_ends_the_server_at_once(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, "--drain-seconds", "600") as server:
        url = await asyncio.to_thread(server.wait_ready)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            body = {**LONG, "max_tokens": 500_000}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                await anext(response.aiter_lines())
                server.signal(signal.SIGTERM)
                async with asyncio.timeout(5):
                    while (await client.get("/readyz")).status_code == 200:
                        pass
                server.signal(signal.SIGTERM)
                assert await asyncio.to_thread(server.process.wait, 10) == 1


async def test_probes_are_answered_while_the_model_loads(tiny_model: Path) -> None:
    with ServerProcess(tiny_model) as server:
        url = await asyncio.to_thread(server.wait_listening)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).json()["status"] == "loading"
            refused = await client.post("/v1/completions", json=SHORT)
            assert refused.status_code == 503
            # It can be stopped before it was ever ready.
            server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 10) == 0
