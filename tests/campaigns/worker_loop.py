"""Kill API workers under load, again and again: `python -m tests.campaigns.worker_loop`.

A killed worker may cut off the streams on its own connections and nothing else: every other answer
is whole, and bit for bit the one that the same request had before. In the end nothing is left
running, every request is counted once, and the engine has lived through it all.
"""

import argparse
import asyncio
import random
import re
import sys
import time
from dataclasses import dataclass, field

import httpx
import psutil

from server.commands.common import demo_model_folder
from tests.campaigns import patience
from tests.campaigns.report import Report, add_out
from tests.campaigns.wire import DONE, Connection, CutOff, NoAnswer
from tests.e2e.server_process import ServerProcess, metrics

PROMPTS = ("Once upon a time", "The little dog", "Tom and Mia", "In the garden", "It was cold")
MAX_READY_SECONDS = 5.0


@dataclass
class Tally:
    """What has been seen."""

    num_whole: int = 0
    num_cut: int = 0
    num_unanswered: int = 0
    """Requests whose worker was killed before it began to answer."""
    wrong: list[str] = field(default_factory=list)
    replacements: list[float] = field(default_factory=list)
    """Seconds from each kill until there were as many workers as before."""


class Load:
    """Clients that stream greedy answers without a pause."""

    def __init__(self, url: str, golden: dict[str, str], tally: Tally) -> None:
        self.url, self.golden, self.tally = url, golden, tally
        self.num_streaming = 0
        self.may_be_cut: set[int] = set()
        """Local ports of the connections whose worker was killed."""

    async def client(self, number: int) -> None:
        """Ask until cancelled, with a connection of its own for every few answers."""
        rng = random.Random(number)
        while True:
            async with Connection(self.url) as connection:
                for _ in range(rng.choice((1, 3, 10))):
                    await self._ask(connection, rng.choice(PROMPTS))

    async def _ask(self, connection: Connection, prompt: str) -> None:
        events: list[str] = []
        try:
            async for data in connection.events(body_of(prompt)):
                self.num_streaming += not events
                events.append(data)
        except NoAnswer:
            self.tally.num_unanswered += 1
        except (CutOff, OSError) as exc:
            self.tally.num_cut += 1
            if connection.local_port not in self.may_be_cut:
                self.tally.wrong.append(f"{type(exc).__name__} at a worker that was not killed")
        else:
            self._judge(prompt, events)
        finally:
            self.num_streaming -= bool(events)

    def _judge(self, prompt: str, events: list[str]) -> None:
        if events[-1:] == [DONE] and text_of(events[:-1]) == self.golden[prompt]:
            self.tally.num_whole += 1
        else:
            self.tally.wrong.append(f"another answer: {events[-1:]}")


def body_of(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": 150, "temperature": 0, "ignore_eos": True}


def text_of(events: list[str]) -> str:
    """What the events of a stream say, told apart by nothing else than their text."""
    return "".join(re.findall(r'"text":"((?:[^"\\]|\\.)*)"', "".join(events)))


async def campaign(options: argparse.Namespace) -> int:
    report = Report(f"worker-loop: {options.kills} kills, {options.clients} clients", options.out)
    tally = Tally()
    flags = ("--api-workers", str(options.workers), "--max-slots", str(options.clients))
    flags += ("--log-level", "error", *patience.FLAGS)
    with ServerProcess(demo_model_folder(), *flags) as server:
        url = await asyncio.to_thread(server.wait_ready)
        await until_complete(server, options.workers)
        golden = {prompt: await ask_golden(url, prompt) for prompt in PROMPTS}
        load = Load(url, golden, tally)
        tasks = [asyncio.create_task(load.client(i)) for i in range(options.clients)]
        for number in range(1, options.kills + 1):
            num_whole = tally.num_whole
            async with asyncio.timeout(patience.SECONDS):
                # Each has answered somebody: one that does nothing but die comes back later.
                while (
                    load.num_streaming < options.clients // 2
                    or tally.num_whole < num_whole + 4 * options.clients
                ):
                    await asyncio.sleep(0.005)
            await kill(server, load, random.Random(number))
            if number % 10 == 0:
                report.figure("kills so far, wrong", f"{number}, {len(tally.wrong)}")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.5)
        with httpx.Client(base_url=url) as client:
            now = metrics(client)
    judge(report, tally, now)
    return report.end({})


async def ask_golden(url: str, prompt: str) -> str:
    async with Connection(url) as connection:
        return text_of([data async for data in connection.events(body_of(prompt))])


async def until_complete(server: ServerProcess, num_workers: int) -> None:
    """Return when there are so many workers, and each has connections of its own."""
    async with asyncio.timeout(patience.SECONDS):
        while len(server.workers) < num_workers:
            await asyncio.sleep(0.01)


async def kill(server: ServerProcess, load: Load, rng: random.Random) -> None:
    """Kill one worker, and wait until another has taken its place and serves."""
    workers = server.workers
    victim = rng.choice(workers)
    # It takes no connection between being looked at and being killed.
    victim.suspend()
    load.may_be_cut |= {c.raddr.port for c in victim.net_connections("tcp") if c.raddr}
    killed_at = time.monotonic()
    victim.kill()
    before = {worker.pid for worker in workers}
    async with asyncio.timeout(patience.SECONDS):
        while not any(serves(worker) for worker in server.workers if worker.pid not in before):
            await asyncio.sleep(0.02)
    load.tally.replacements.append(time.monotonic() - killed_at)


def serves(worker: psutil.Process) -> bool:
    try:
        return any(c.status == psutil.CONN_ESTABLISHED for c in worker.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False


def judge(report: Report, tally: Tally, now: dict[str, float]) -> None:
    report.figure(
        "streams whole, cut off, not begun",
        f"{tally.num_whole:,}, {tally.num_cut:,}, {tally.num_unanswered:,}",
    )
    report.spread("kill to another worker in its place", tally.replacements)
    wrong = tally.wrong
    report.check(not wrong, f"{len(wrong)} streams that no kill explains: {wrong[:3]}")
    report.check(tally.num_whole > 0 and tally.num_cut > 0, "nothing was tested")
    report.check(max(tally.replacements) <= MAX_READY_SECONDS, "a worker came late")
    report.check(now["dijiang_num_requests_running"] == 0, "something is left running")
    received, ended = (now[f"dijiang_requests_{x}_total"] for x in ("received", "finished"))
    report.check(received == ended, f"{received:g} requests received, {ended:g} ended")
    seen = tally.num_whole + tally.num_cut
    report.check(received >= seen, f"{received:g} requests counted of {seen} or more")
    report.check(now["dijiang_engine_restarts"] == 0, "the engine was started again")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=3)
    add_out(parser)
    return asyncio.run(campaign(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
