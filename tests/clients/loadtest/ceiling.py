"""How many events per second one process of the load tester can take.

python -m tests.clients.loadtest.ceiling [STREAMS]

Prints CPU time per event, which does not depend on what else the machine does, for the load
tester's own connections and for httpx, with either event loop.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import uvloop

from clients.loadtest.connections import open_pool, parse_address
from clients.loadtest.monitor import undisturbed
from clients.loadtest.records import Recorder, RequestRecord
from clients.loadtest.sender import RequestBuilder, Sender
from clients.sse import SSEDecoder
from tests.clients.loadtest.conftest import starting_fakes

NUM_TOKENS = 100
TTFT_SECONDS, ITL_SECONDS = 0.5, 0.05
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def own(url: str, num_streams: int) -> int:
    """All streams at once, as the load tester reads them. Returns the number of events."""
    address = parse_address(url)
    pool, recorder = await open_pool(address), Recorder()
    sender = Sender(pool, recorder, timeout_seconds=600.0, keep_text=False)
    request = RequestBuilder(address, "chat", "m", {}, None).build("", ["word " * 100], NUM_TOKENS)
    records = [RequestRecord(i, 0, NUM_TOKENS, intended=0.0) for i in range(num_streams)]
    await asyncio.gather(*(sender.send(request, record) for record in records))
    pool.close()
    assert recorder.errors() == {}
    return recorder.num_events


async def with_httpx(url: str, num_streams: int) -> int:
    """The same through httpx, doing as little as possible with each event."""
    num_events = 0

    async def stream(client: httpx.AsyncClient) -> None:
        nonlocal num_events
        body = {"stream": True, "messages": [{"role": "user", "content": "word " * 100}]}
        decoder = SSEDecoder()
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            async for data in response.aiter_bytes():
                for event in decoder.feed(data):
                    if event.data != "[DONE]":
                        choices = json.loads(event.data)["choices"]
                        num_events += bool(choices and choices[0]["delta"].get("content"))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=600.0) as client:
        await asyncio.gather(*(stream(client) for _ in range(num_streams)))
    return num_events


def measure(
    how: Callable[[str, int], Coroutine[Any, Any, int]], loop: str, num_streams: int
) -> float:
    """CPU seconds for one event."""
    with starting_fakes() as start:
        fake = start(ttft_seconds=[TTFT_SECONDS], itl_seconds=[ITL_SECONDS], num_tokens=NUM_TOKENS)
        with undisturbed(), asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            before = time.process_time()
            num_events = runner.run(how(fake.url, num_streams))
            return (time.process_time() - before) / num_events


def main() -> None:
    num_streams = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    for name, how in (("own", own), ("httpx", with_httpx)):
        for loop in LOOPS:
            seconds = min(measure(how, loop, num_streams) for _ in range(3))
            print(
                f"{name:5} {loop:7} {num_streams} streams: {1e6 * seconds:5.1f} us per event, "
                f"{1 / seconds:7,.0f} events per second and core",
                flush=True,
            )


if __name__ == "__main__":
    main()
