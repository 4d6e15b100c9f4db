"""Many streams open at once: `python -m tests.campaigns.streams --streams 10000`.

The clients are a process of their own. Measured are the memory that each stream costs the server,
its engine included, and how long a probe takes meanwhile.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.campaigns.report import Report, add_out, anonymous_bytes
from tests.campaigns.wire import Connection, request_bytes
from tests.conftest import save_tiny_model
from tests.e2e.server_process import ServerProcess

MAX_BYTES, MAX_P99_SECONDS = 64 * 1024, 0.1
BATCH = 50
"""Connections that are opened at once."""


async def hold(url: str, num_streams: int) -> None:
    """Open so many streams, say so, and read them until standard input ends."""
    body = {"prompt": "the", "max_tokens": 1_000_000, "ignore_eos": True, "stream": True}
    data = request_bytes("/v1/completions", body)
    connections = [Connection(url) for _ in range(num_streams)]
    ended = 0

    async def open_one(connection: Connection) -> None:
        await connection.send(data)
        head = await connection.head()
        assert head.status == 200, head

    async def drink(connection: Connection) -> None:
        nonlocal ended
        assert connection._reader is not None
        while await connection._reader.read(65536):
            pass
        ended += 1

    tasks = []
    for start in range(0, num_streams, BATCH):
        some = connections[start : start + BATCH]
        await asyncio.gather(*map(open_one, some))
        tasks += [asyncio.create_task(drink(connection)) for connection in some]
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(ended, flush=True)
    for task in tasks:
        task.cancel()


async def probe(url: str, seconds: float) -> list[float]:
    """How long /livez takes, asked fifty times a second."""
    times = []
    async with Connection(url) as connection:
        until = time.monotonic() + seconds
        while (started := time.monotonic()) < until:
            assert (await connection.get("/livez")).status == 200
            times.append(time.monotonic() - started)
            await asyncio.sleep(0.02)
    return times


async def campaign(options: argparse.Namespace) -> int:
    num_streams, slots, seconds = options.streams, options.slots, options.seconds
    report = Report(f"streams: {num_streams:,} at once, {slots} of them running", options.out)
    flags = ("--max-slots", str(slots), "--max-queued-requests", str(num_streams))
    flags += ("--max-queue-seconds", "0", "--max-request-seconds", "0")
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(save_tiny_model(Path(folder)), *flags) as server,
    ):
        url = await asyncio.to_thread(server.wait_ready)
        pids = {"API process": server.process.pid, "engine": server.engine.pid}
        await probe(url, 1.0)
        before = {name: anonymous_bytes(pid) for name, pid in pids.items()}
        started = time.monotonic()
        clients = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.campaigns.streams", "--hold", url),
            *("--streams", str(num_streams)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert clients.stdin is not None and clients.stdout is not None
        while_opening = []
        opened = asyncio.create_task(clients.stdout.readline())
        while not opened.done():
            while_opening += await probe(url, 0.5)
        assert opened.result() == b"open\n"
        report.figure("seconds to open them", f"{time.monotonic() - started:.1f}")
        times = await probe(url, seconds)
        total = 0
        for name, pid in pids.items():
            grown = anonymous_bytes(pid) - before[name]
            total += grown
            report.figure(f"memory of a stream, {name}", f"{grown / num_streams / 1024:.1f} KiB")
        clients.stdin.write(b"\n")
        ended = int(await clients.stdout.readline())
        clients.stdin.close()
        await clients.wait()
    report.spread("/livez while they are opened", while_opening)
    report.spread("/livez while they are open", times)
    report.check(ended == 0, f"{ended} streams ended early")
    report.check(total <= MAX_BYTES * num_streams, "a stream costs more than 64 KiB")
    if not options.untimed:
        p99 = sorted(times)[int(0.99 * len(times))]
        report.check(p99 < MAX_P99_SECONDS, "the p99 of /livez is not below 100 ms")
    return report.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--untimed", action="store_true", help="on a machine that is busy")
    parser.add_argument("--hold", metavar="URL", help=argparse.SUPPRESS)
    add_out(parser)
    options = parser.parse_args()
    if options.hold:
        asyncio.run(hold(options.hold, options.streams))
        return 0
    return asyncio.run(campaign(options))


if __name__ == "__main__":
    sys.exit(main())
