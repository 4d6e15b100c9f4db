"""One key cannot have the server to itself."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.server.fake_engine import FakeEngine

URL = "/v1/completions"
BODY = {"prompt": "Once"}
KEYS = ("sk-first", "sk-second")
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in KEYS)


def ask(client: httpx.AsyncClient, key: str, **changes: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"}
    return client.post(URL, json={**BODY, **changes}, headers=headers)


@asynccontextmanager
async def running(client: httpx.AsyncClient, engine: FakeEngine, key: str, n: int) -> Any:
    """So many requests of a key that do not end before the block does."""
    before = len(engine.requests)
    engine.gate.clear()
    tasks = [asyncio.create_task(ask(client, key)) for _ in range(n)]
    async with asyncio.timeout(5):
        while len(engine.requests) < before + n:
            await asyncio.sleep(0.01)
    yield tasks
    engine.gate.set()
    for task in tasks:
        assert (await task).status_code == 200


async def test_a_key_beyond_its_limit_is_refused_and_others_are_not(
    client_for: Any, engine: FakeEngine
) -> None:
    client = client_for(api_key_hashes=HASHES, max_requests_per_key=2)
    async with running(client, engine, KEYS[0], 2):
        refused = await ask(client, KEYS[0])
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_requests"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        async with running(client, engine, KEYS[1], 2):
            assert (await ask(client, KEYS[1])).status_code == 429
            headers = {"Authorization": f"Bearer {KEYS[0]}"}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
    assert (await ask(client, KEYS[0])).status_code == 200


async def test_without_keys_all_clients_share_the_limit(
    client_for: Any, engine: FakeEngine
) -> None:
    client = client_for(max_requests_per_key=1)
    async with running(client, engine, "any", 1):
        assert (await ask(client, "other")).status_code == 429
    assert (await ask(client, "other")).status_code == 200


@pytest.mark.parametrize(
    "changes", [{"prompt": ""}, {"stream": True}, {"n": 99}], ids=["bad", "stream", "many"]
)
async def test_what_ended_in_any_way_counts_no_more(client_for: Any, changes: Any) -> None:
    client = client_for(api_key_hashes=HASHES, max_requests_per_key=1)
    for _ in range(3):
        assert (await ask(client, KEYS[0], **changes)).status_code in (200, 400)


async def test_a_body_that_trickles_in_counts(client_for: Any) -> None:
    client = client_for(max_requests_per_key=1)
    more = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"prompt":'
        await more.wait()
        yield b'"Once"}'

    headers = {"content-type": "application/json"}
    slow = asyncio.create_task(client.post(URL, content=body(), headers=headers))
    await asyncio.sleep(0.05)
    assert (await ask(client, "any")).status_code == 429
    more.set()
    assert (await slow).status_code == 200


async def test_there_is_no_limit_unless_one_is_set(client_for: Any, engine: FakeEngine) -> None:
    async with running(client_for(), engine, "any", 40):
        pass


async def test_refusals_are_counted(client_for: Any, engine: FakeEngine) -> None:
    client = client_for(max_requests_per_key=1)
    async with running(client, engine, "any", 1):
        await ask(client, "any")
    exported = (await client.get("/metrics")).text
    assert (
        'dijiang_admission_rejections_total{model_name="tiny",reason="key_limit"} 1.0' in exported
    )
