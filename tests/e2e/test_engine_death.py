"""The engine dies: clients learn it at once, and service returns by itself."""

import asyncio
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.server_process import START_SECONDS, ServerProcess

NUM_STREAMS = 16
GREEDY = {"prompt": "the quick", "max_tokens": 16, "temperature": 0}
ENDLESS = {"prompt": "the", "max_tokens": 100_000, "ignore_eos": True}


async def last_event(
    client: httpx.AsyncClient, started: asyncio.Semaphore, is_stream: bool
) -> tuple[dict[str, Any], float]:
    """The last thing that a long request says, and when it said it."""
    body = {**ENDLESS, "stream": is_stream}
    if not is_stream:
        started.release()
        response = await client.post("/v1/completions", json=body)
        return response.json(), time.monotonic()
    data = ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            # It came when the engine was dead already.
            return json.loads(await response.aread()), time.monotonic()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                if not data:
                    started.release()
                data = line.removeprefix("data: ")
    return json.loads(data), time.monotonic()


async def test_all_requests_end_and_the_server_recovers(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, "--max-slots", "8") as server:
        url = await asyncio.to_thread(server.wait_ready)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            golden = (await client.post("/v1/completions", json=GREEDY)).json()["choices"]
            started = asyncio.Semaphore(0)
            # More than there are slots, so that some are still waiting.
            tasks = [
                asyncio.create_task(last_event(client, started, is_stream=i % 4 != 0))
                for i in range(NUM_STREAMS)
            ]
            for _ in range(NUM_STREAMS // 2):
                await started.acquire()
            engine = server.engine

            killed_at = time.monotonic()
            engine.send_signal(signal.SIGKILL)
            endings = await asyncio.gather(*tasks)

            for ending, at in endings:
                assert ending["error"]["code"] == "engine_dead"
                assert at - killed_at < 1.0
            await until_ready(client)
            again = (await client.post("/v1/completions", json=GREEDY)).json()["choices"]
        assert again == golden
        assert server.engine.pid != engine.pid


async def until_ready(client: httpx.AsyncClient) -> None:
    """Ask until the server is ready; while it is not, it says when to come back."""
    async with asyncio.timeout(START_SECONDS):
        while (await client.get("/readyz")).status_code != 200:
            assert (await client.get("/livez")).status_code == 200
            refused = await client.post("/v1/completions", json=GREEDY)
            if refused.status_code != 200:
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
            await asyncio.sleep(0.05)


def test_a_model_that_cannot_be_loaded_ends_the_server(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    for weights in broken.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    with ServerProcess(broken) as server:
        assert server.process.wait(timeout=START_SECONDS) == 1
    assert "Traceback" not in server.text
