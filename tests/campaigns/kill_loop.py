"""Kill the engine under load, again and again: `python -m tests.campaigns.kill_loop --kills 1000`.

Every request must end with an answer or an error, the errors within a second of the kill, and the
server must be ready again within three. With `--out FILE`, a run that was cut off goes on.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from server.commands.common import demo_model_folder
from tests.campaigns import patience
from tests.campaigns.report import Report, add_out
from tests.campaigns.wire import DONE, Connection, CutOff, NoAnswer, until_ready
from tests.e2e.server_process import ServerProcess

MAX_ENDING_SECONDS, MAX_READY_SECONDS = 1.0, 3.0
CHECKPOINT = 10
"""Kills between two checkpoints."""


@dataclass
class Tally:
    """What has been seen in all kills so far. Times are seconds since the kill."""

    num_kills: int = 0
    num_requests: int = 0
    num_answers: int = 0
    num_errors: int = 0
    num_refused: int = 0
    lost: list[str] = field(default_factory=list)
    noticed: list[float] = field(default_factory=list)
    endings: list[float] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)


class Load:
    """Clients that keep asking: for short answers, for endless ones, streamed and not."""

    def __init__(self, url: str, tally: Tally) -> None:
        self.url, self.tally = url, tally
        self.num_streaming = 0
        """Endless streams that have begun."""
        self.endings: list[float] = []
        """When each error came."""

    async def client(self, number: int) -> None:
        """Ask until cancelled. Every third asks for short answers, every fourth is not streamed."""
        body = {"prompt": "Once upon a time", "ignore_eos": True}
        body |= {"max_tokens": 3} if number % 3 == 0 else {"max_tokens": 100_000}
        async with Connection(self.url) as connection:
            while True:
                try:
                    async with asyncio.timeout(patience.SECONDS):
                        await self._ask(connection, body, is_stream=number % 4 != 1)
                except (CutOff, NoAnswer, OSError, TimeoutError) as exc:
                    self.tally.lost.append(type(exc).__name__)
                    connection.close()
                    await asyncio.sleep(0.2)  # A server that is gone answers at once.

    async def _ask(self, connection: Connection, body: dict, *, is_stream: bool) -> None:
        last, num_events = "", 0
        self.tally.num_requests += 1
        is_endless = body["max_tokens"] > 3
        if is_stream:
            async for data in connection.events(body):
                last, num_events = data, num_events + 1
                self.num_streaming += is_endless and num_events == 1 and '"error"' not in data
        else:
            last = (await connection.post("/v1/completions", body)).body.decode()
        answer = {} if last == DONE else json.loads(last)
        error = answer.get("error")
        if error is None:
            if last != DONE and answer["choices"][0]["finish_reason"] != "length":
                self.tally.lost.append("no end")
            self.tally.num_answers += 1
        elif error["message"].startswith(("The engine is not", "The model is not")):
            self.tally.num_refused += 1
            await asyncio.sleep(0.2)
        else:
            self.tally.num_errors += 1
            self.endings.append(time.monotonic())
            if error["code"] != "engine_dead":
                self.tally.lost.append(error["code"])


async def campaign(options: argparse.Namespace) -> int:
    clients = options.clients
    timed = "" if not options.untimed else ", untimed"
    report = Report(f"kill-loop: {options.kills} kills, {clients} clients{timed}", options.out)
    tally = Tally(**report.saved)
    # Endless requests do not take every slot, so that some are finished as well.
    flags = ("--max-slots", str(max(1, clients * 3 // 4)), "--log-level", "error", *patience.FLAGS)
    with ServerProcess(options.model, *flags) as server:
        url = await asyncio.to_thread(server.wait_ready)
        load = Load(url, tally)
        tasks = [asyncio.create_task(load.client(i)) for i in range(clients)]
        while tally.num_kills < options.kills:
            await kill(server, load, min(4, clients // 2))
            if tally.num_kills % CHECKPOINT == 0:
                report.figure("kills so far, lost", f"{tally.num_kills}, {len(tally.lost)}")
                report.save(asdict(tally))
                server.log.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    judge(report, tally, timed=not options.untimed)
    return report.end(asdict(tally))


async def kill(server: ServerProcess, load: Load, num_streams: int) -> None:
    """Kill the engine while so many endless streams run, and wait until it is back."""
    tally, url = load.tally, load.url
    load.num_streaming = 0
    load.endings.clear()
    num_answers = tally.num_answers
    async with asyncio.timeout(patience.SECONDS):
        # Several streams have begun, so the engine is under load; and some answers have ended, so
        # it is not one that does nothing but die, which comes back later.
        while load.num_streaming < num_streams or num_answers == tally.num_answers:
            await asyncio.sleep(0.005)
    killed_at = time.monotonic()
    os.kill(server.engine.pid, signal.SIGKILL)
    await until_ready(url, ready=False)
    tally.noticed.append(time.monotonic() - killed_at)
    await until_ready(url)
    tally.recoveries.append(time.monotonic() - killed_at)
    tally.endings += [at - killed_at for at in load.endings]
    tally.num_kills += 1


def judge(report: Report, tally: Tally, *, timed: bool) -> None:
    report.figure("requests", f"{tally.num_requests:,}")
    report.figure(
        "answered, ended by a kill, refused",
        f"{tally.num_answers:,}, {tally.num_errors:,}, {tally.num_refused:,}",
    )
    report.spread("kill to unready", tally.noticed)
    report.spread("kill to the last event of each request", tally.endings)
    report.spread("kill to ready again", tally.recoveries)
    lost = tally.lost
    report.check(not lost, f"{len(lost)} requests without a proper end: {lost[:5]}")
    report.check(tally.num_errors >= tally.num_kills, "too few ran when the engine was killed")
    report.check(tally.num_answers > 0, "no request was ever answered")
    if timed:
        report.check(max(tally.endings) <= MAX_ENDING_SECONDS, "an ending came late")
        report.check(max(tally.recoveries) <= MAX_READY_SECONDS, "it was not ready in time")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", type=Path, default=demo_model_folder())
    parser.add_argument("--untimed", action="store_true", help="on a machine that is busy")
    add_out(parser)
    return asyncio.run(campaign(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
