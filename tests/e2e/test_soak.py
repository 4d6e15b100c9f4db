"""Many requests of every kind, with clients that leave: nothing is left behind."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, metrics, wait_for

NUM_REQUESTS = 2000
NUM_CLIENTS = 48
GOLDEN = {"prompt": "the quick", "max_tokens": 12, "temperature": 0}


async def visit(client: httpx.AsyncClient, rng: random.Random) -> None:
    """One request: whole, streamed, left in the middle, or wrong."""
    body: dict[str, Any] = {
        "prompt": "fox " * rng.randint(1, 60),
        "max_tokens": rng.randint(1, 24),
        "n": rng.choice([1, 1, 1, 3]),
    }
    kind = rng.random()
    if kind < 0.1:
        response = await client.post("/v1/completions", json={**body, "temperature": -1})
        assert response.status_code == 400
    elif kind < 0.5:
        response = await client.post("/v1/completions", json=body)
        assert response.status_code == 200
    else:
        leaves_after = rng.randint(0, 5) if kind < 0.7 else 1000
        async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as r:
            assert r.status_code == 200
            lines = r.aiter_lines()
            async for line in lines:
                if leaves_after == 0:
                    break
                leaves_after -= bool(line)
            else:
                assert line == "" or line == "data: [DONE]"


@pytest.mark.slow
async def test_nothing_is_left_behind(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, "--max-slots", "16") as server:
        url = await asyncio.to_thread(server.wait_ready)
        with httpx.Client(base_url=url, timeout=60) as observer:
            golden = observer.post("/v1/completions", json=GOLDEN).json()["choices"]
            before = metrics(observer)

            rngs = [random.Random(i) for i in range(NUM_CLIENTS)]

            async def stay(rng: random.Random) -> None:
                async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                    for _ in range(NUM_REQUESTS // NUM_CLIENTS):
                        await visit(client, rng)

            await asyncio.gather(*map(stay, rngs))

            wait_for(observer, "dijiang_state_slots_used", 0)
            wait_for(observer, "process_open_fds", before["process_open_fds"])
            after = metrics(observer)
            assert observer.post("/v1/completions", json=GOLDEN).json()["choices"] == golden
        assert after["dijiang_requests_received_total"] == after["dijiang_requests_finished_total"]
        assert after["dijiang_engine_restarts"] == 0
        assert after["dijiang_disconnects_total"] > NUM_REQUESTS / 20
        # Warm caches aside, memory does not grow with the number of requests.
        growth = after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
        assert growth < 32 * 2**20
