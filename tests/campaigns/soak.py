"""The real server for a long time: `python -m tests.campaigns.soak --requests 1000000`.

One request in ten is left in the middle, one in a hundred is at fault. Nothing may grow with the
number of requests: anonymous memory, tasks, file descriptors, threads, the page of metrics. What is
held after a warm-up is the beginning: caches, pools and the allocators' arenas fill up until then.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import linear_regression

import psutil
import torch
from safetensors.torch import load_file, save_file

from tests.campaigns import patience
from tests.campaigns.report import Report, add_out, anonymous_bytes
from tests.campaigns.wire import DONE, Connection, request_bytes
from tests.conftest import save_tiny_model
from tests.e2e.server_process import ServerProcess

MAX_GROWTH = 2**20
"""Bytes of anonymous memory for every 100,000 requests."""

POISON = 382
"""A token whose embedding is so large that the model's sums overflow: a request with it fails."""

GOLDEN = {"prompt": "the quick", "max_tokens": 12, "temperature": 0}
ENDLESS = 5000
"""Tokens of an answer that is left: more than anyone waits for."""

WARM_UP = 50_000
"""Requests whose growth is not judged. Allocators settle within some 20,000."""

SAMPLE_EVERY = 5000
"""Requests between two looks at the server."""


@dataclass(frozen=True)
class Sample:
    """What the server holds at one moment."""

    num_requests: int
    memory_mib: float
    engine_memory_mib: float
    fds: int
    threads: int
    tasks: int
    metrics_kib: float


def poisoned_model(folder: Path) -> Path:
    save_tiny_model(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["embed_tokens.weight"][POISON] = torch.finfo(torch.float32).max
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


class Load:
    """Clients that ask in every way."""

    def __init__(self, url: str, num_requests: int) -> None:
        self.url = url
        self.left = num_requests
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def client(self, number: int) -> None:
        rng = random.Random(number)
        async with Connection(self.url) as connection:
            while self.left > 0:
                self.left -= 1
                kind = await self._ask(connection, rng)
                self.seen[kind] += 1

    async def _ask(self, connection: Connection, rng: random.Random) -> str:
        body = {
            "prompt": [rng.randrange(2, 300) for _ in range(rng.choice((1, 2, 5, 70)))],
            "max_tokens": rng.choice((1, 2, 4)),
            # Nobody else says it by chance.
            "logit_bias": {str(POISON): -100},
        }
        draw = rng.random()
        if draw < 0.1:
            return await self._leave(connection, body, rng)
        if draw < 0.11:
            return await self._fault(connection, body, rng)
        if draw < 0.5:
            last = [data async for data in connection.events(body)][-1]
            self._check(last == DONE, last)
            return "streamed"
        reply = await connection.post("/v1/completions", body)
        self._check(reply.status == 200, f"{reply.status}: {reply.body!r}")
        return "whole"

    async def _leave(
        self, connection: Connection, body: dict[str, object], rng: random.Random
    ) -> str:
        """Close the connection: at once, or after the first event, or after a moment."""
        endless = {**body, "max_tokens": ENDLESS, "ignore_eos": True, "stream": rng.random() < 0.7}
        await connection.send(request_bytes("/v1/completions", endless))
        if endless["stream"] and rng.random() < 0.5:
            await connection.head()
        else:
            await asyncio.sleep(rng.random() * 0.02)
        connection.close()
        return "left"

    async def _fault(
        self, connection: Connection, body: dict[str, object], rng: random.Random
    ) -> str:
        """A request that the model, or the server, cannot answer."""
        match rng.randrange(3):
            case 0:
                reply = await connection.post("/v1/completions", {**body, "prompt": [5, POISON]})
                self._check(b"numerical_error" in reply.body, repr(reply.body))
                return "poisoned"
            case 1:
                reply = await connection.post("/v1/completions", b'{"prompt": "x"')
                self._check(reply.status == 400, repr(reply.body))
                return "malformed"
            case _:
                await connection.send(request_bytes("/v1/completions", body)[:-3])
                connection.close()
                return "cut off"

    def _check(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what[:200])


async def sample(server: ServerProcess, url: str, num_requests: int) -> Sample:
    # With `--api-workers` there are several that answer.
    processes = [psutil.Process(server.process.pid), *server.workers]
    async with Connection(url) as connection:
        page = (await connection.get("/metrics")).body
    tasks = [line.split()[-1] for line in page.splitlines() if line.startswith(b"dijiang_tasks{")]
    return Sample(
        num_requests,
        sum(anonymous_bytes(process.pid) for process in processes) / 2**20,
        anonymous_bytes(server.engine.pid) / 2**20,
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
        int(float(tasks[0])) if tasks else 0,
        len(page) / 1024,
    )


async def campaign(options: argparse.Namespace) -> int:
    if options.out is not None:
        # A server that was stopped cannot go on growing: each run begins anew.
        options.out.unlink(missing_ok=True)
    name = f"soak: {options.requests:,} requests or {options.hours:g} hours"
    report = Report(f"{name}, {options.clients} clients", options.out)
    flags = ("--max-slots", str(options.clients), "--log-level", "error", *patience.FLAGS)
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(poisoned_model(Path(folder)), *flags) as server,
    ):
        url = await asyncio.to_thread(server.wait_ready)
        golden = await ask_golden(url)
        load = Load(url, 0)
        samples = await drive(report, load, server, options)
        report.check(await ask_golden(url) == golden, "the golden answer changed")
    for kind, count in sorted(load.seen.items()):
        report.figure(f"requests: {kind}", f"{count:,}")
    judge(report, samples, options.warm_up)
    return report.end({"samples": [asdict(s) for s in samples]})


async def ask_golden(url: str) -> object:
    async with Connection(url) as observer:
        return (await observer.post("/v1/completions", GOLDEN)).json()["choices"]


async def drive(
    report: Report, load: Load, server: ServerProcess, options: argparse.Namespace
) -> list[Sample]:
    """Run the load, and look at the server now and then, while nobody is there."""
    samples: list[Sample] = []
    until = time.monotonic() + 3600 * options.hours
    clients = options.clients
    print(*(field.name for field in fields(Sample)))
    while (num_done := load.seen.total()) < options.requests and time.monotonic() < until:
        load.left = min(SAMPLE_EVERY, options.requests - num_done)
        await asyncio.gather(*(load.client(len(samples) * clients + i) for i in range(clients)))
        # Everybody has left: whatever remains is held for nobody.
        await asyncio.sleep(0.5)
        server.log.clear()
        samples.append(await sample(server, load.url, load.seen.total()))
        print(*(f"{value:.7g}" for value in astuple(samples[-1])), flush=True)
        report.check(not load.wrong, f"{load.wrong[:3]}")
        load.wrong.clear()
        report.save({"requests": dict(load.seen), "samples": [asdict(s) for s in samples]})
    return samples


def judge(report: Report, samples: list[Sample], warm_up: int) -> None:
    """Check the slopes of all that comes after the warm-up."""
    steady = [s for s in samples if s.num_requests >= warm_up]
    report.figure(
        "requests judged, after a warm-up of", f"{len(steady) * SAMPLE_EVERY:,}, {warm_up:,}"
    )
    report.check(len(steady) >= 5, "too few samples for a slope")
    if len(steady) < 2:
        return
    requests = [s.num_requests for s in steady]
    for name, values in (
        ("memory of the API process", [s.memory_mib for s in steady]),
        ("memory of the engine", [s.engine_memory_mib for s in steady]),
    ):
        slope = linear_regression(requests, values).slope * 100_000
        report.figure(f"{name}, first and last", f"{values[0]:.2f}, {values[-1]:.2f} MiB")
        report.figure(f"{name}, growth per 100,000", f"{slope:+.3f} MiB")
        report.check(slope * 2**20 <= MAX_GROWTH, f"{name} grows")
    first, last = steady[0], steady[-1]
    for name in ("fds", "threads", "tasks"):
        report.figure(f"{name}, first and last", f"{getattr(first, name)}, {getattr(last, name)}")
        report.check(getattr(last, name) <= getattr(first, name) + 2, f"{name} grow")
    report.check(last.metrics_kib <= 1.1 * first.metrics_kib, "/metrics grows")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="requests that are not judged")
    add_out(parser)
    return asyncio.run(campaign(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
