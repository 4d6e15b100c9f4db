"""Restart the server under load, again and again: `python -m tests.campaigns.drain_loop`.

Every stream that has begun when SIGTERM comes must run to its end, what comes later must be refused
or find nobody, and the server must leave with status 0. Its successor takes over the port. With
`--out FILE`, a run that was cut off goes on.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.campaigns import patience
from tests.campaigns.report import Report, add_out
from tests.campaigns.wire import DONE, Connection, CutOff, NoAnswer, until_ready
from tests.conftest import save_tiny_model
from tests.e2e.server_process import ServerProcess

RETRY_SECONDS = 0.05


@dataclass
class Tally:
    """What has been seen in all restarts so far."""

    num_restarts: int = 0
    num_whole: int = 0
    num_refused: int = 0
    num_unanswered: int = 0
    lost: list[str] = field(default_factory=list)
    drains: list[float] = field(default_factory=list)
    """Seconds from each SIGTERM to the end of the process."""
    running: list[int] = field(default_factory=list)
    """Streams that ran at each SIGTERM."""


class Load:
    """Clients that stream without a pause, each answer of a length of its own."""

    def __init__(self, url: str, tally: Tally) -> None:
        self.url, self.tally = url, tally
        self.num_running = 0

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
            self.tally.num_unanswered += 1
            await asyncio.sleep(RETRY_SECONDS)
            return
        except CutOff:
            last = "cut off"
        finally:
            self.num_running -= num_events > 0
        if last == DONE and json.loads(previous)["choices"][0]["finish_reason"] == "length":
            self.tally.num_whole += 1
        elif num_events == 1 and json.loads(last)["error"]["code"] in REFUSALS:
            self.tally.num_refused += 1
            await asyncio.sleep(RETRY_SECONDS)
        else:
            self.tally.lost.append(last)


REFUSALS = ("server_draining", "engine_dead")
"""What says, before a stream begins, that another replica should be asked."""


async def campaign(options: argparse.Namespace) -> int:
    clients = options.clients
    report = Report(f"drain-loop: {options.restarts} restarts, {clients} clients", options.out)
    tally = Tally(**report.saved)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    load = Load(f"http://127.0.0.1:{port}", tally)
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder))
        flags = ("--port", str(port), "--max-slots", str(clients), *patience.FLAGS)
        flags += ("--drain-seconds", f"{patience.SECONDS:g}")
        tasks = [asyncio.create_task(load.client(i)) for i in range(clients)]
        while tally.num_restarts < options.restarts:
            with ServerProcess(model, *flags) as server:
                status = await stop_under_load(server, load, clients // 2)
            tally.num_restarts += 1
            report.check(status == 0, f"restart {tally.num_restarts}: exit status {status}")
            report.save(asdict(tally))
            if tally.num_restarts % 10 == 0:
                report.figure("restarts so far, lost", f"{tally.num_restarts}, {len(tally.lost)}")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    report.figure("streams running at each SIGTERM, least", min(tally.running))
    report.figure("streams to their end", f"{tally.num_whole:,}")
    report.figure("refused, found nobody", f"{tally.num_refused:,}, {tally.num_unanswered:,}")
    report.spread("SIGTERM to exit", tally.drains)
    report.check(not tally.lost, f"{len(tally.lost)} streams lost: {tally.lost[:3]}")
    report.check(tally.num_whole >= tally.num_restarts, "too few streams ran")
    return report.end(asdict(tally))


async def stop_under_load(server: ServerProcess, load: Load, num_streams: int) -> int:
    """Send SIGTERM while at least so many streams run. Returns the exit status."""
    await until_ready(load.url)
    async with asyncio.timeout(patience.SECONDS):
        while load.num_running < num_streams:
            await asyncio.sleep(0.005)
    load.tally.running.append(load.num_running)
    stopped_at = time.monotonic()
    server.signal(signal.SIGTERM)
    status = await asyncio.to_thread(server.process.wait, patience.SECONDS)
    load.tally.drains.append(time.monotonic() - stopped_at)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--clients", type=int, default=16)
    add_out(parser)
    return asyncio.run(campaign(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
