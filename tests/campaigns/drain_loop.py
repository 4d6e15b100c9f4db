"""Restart the server under load, again and again: `python -m tests.campaigns.drain_loop`.

Every stream that has begun when SIGTERM comes must run to its end, what comes later must be refused
or find nobody, and the server must leave with status 0. Its successor takes over the port.
"""

import argparse
import asyncio
import json
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.campaigns import patience
from tests.campaigns.report import Report
from tests.campaigns.wire import DONE, Connection, CutOff, NoAnswer, until_ready
from tests.conftest import save_tiny_model
from tests.e2e.server_process import ServerProcess

RETRY_SECONDS = 0.05


class Load:
    """Clients that stream without a pause, each answer of a length of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.num_running = self.num_whole = self.num_refused = self.num_unanswered = 0
        self.lost: list[str] = []

    async def client(self, number: int) -> None:
        rng = random.Random(number)
        async with Connection(self.url) as connection:
            while True:
                await self._stream(connection, rng.choice((5, 50, 500)))

    async def _stream(self, connection: Connection, max_tokens: int) -> None:
        """One stream, counted by how it ended."""
        body = {"prompt": "the quick", "max_tokens": max_tokens, "ignore_eos": True}
        num_events, last, previous = 0, "", ""
        try:
            async for data in connection.events(body):
                previous, last, num_events = last, data, num_events + 1
                self.num_running += num_events == 1
        except (NoAnswer, OSError):
            # Nobody was listening, or left before it had read the request.
            self.num_unanswered += 1
            await asyncio.sleep(RETRY_SECONDS)
            return
        except CutOff:
            last = "cut off"
        finally:
            self.num_running -= num_events > 0
        if last == DONE and json.loads(previous)["choices"][0]["finish_reason"] == "length":
            self.num_whole += 1
        elif num_events == 1 and json.loads(last)["error"]["code"] in REFUSALS:
            self.num_refused += 1
            await asyncio.sleep(RETRY_SECONDS)
        else:
            self.lost.append(last)


REFUSALS = ("server_draining", "engine_dead")
"""What says, before a stream begins, that another replica should be asked."""


async def campaign(restarts: int, clients: int) -> int:
    report = Report(f"drain-loop: {restarts} restarts, {clients} clients")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    load = Load(url)
    drains, running = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder))
        flags = ("--port", str(port), "--max-slots", str(clients), *patience.FLAGS)
        flags += ("--drain-seconds", f"{patience.SECONDS:g}")
        tasks = [asyncio.create_task(load.client(i)) for i in range(clients)]
        for number in range(1, restarts + 1):
            with ServerProcess(model, *flags) as server:
                await until_ready(url)
                async with asyncio.timeout(patience.SECONDS):
                    while load.num_running < clients // 2:
                        await asyncio.sleep(0.005)
                running.append(load.num_running)
                stopped_at = time.monotonic()
                server.signal(signal.SIGTERM)
                status = await asyncio.to_thread(server.process.wait, patience.SECONDS)
                drains.append(time.monotonic() - stopped_at)
                report.check(status == 0, f"restart {number}: exit status {status}")
            if number % 10 == 0:
                report.figure("restarts so far, lost", f"{number}, {len(load.lost)}")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    report.figure("streams running at each SIGTERM, least", min(running))
    report.figure("streams to their end", f"{load.num_whole:,}")
    report.figure("refused, found nobody", f"{load.num_refused:,}, {load.num_unanswered:,}")
    report.spread("SIGTERM to exit", drains)
    report.check(not load.lost, f"{len(load.lost)} streams lost: {load.lost[:3]}")
    report.check(load.num_whole >= restarts, "too few streams ran")
    return report.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    return asyncio.run(campaign(options.restarts, options.clients))


if __name__ == "__main__":
    sys.exit(main())
