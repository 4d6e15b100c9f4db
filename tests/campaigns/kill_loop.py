"""Kill the engine under load, again and again: `python -m tests.campaigns.kill_loop --kills 1000`.

Every request must end with an answer or an error, the errors within a second of the kill, and the
server must be ready again within three.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from server.commands.common import demo_model_folder
from tests.campaigns import patience
from tests.campaigns.report import Report
from tests.campaigns.wire import DONE, Connection, CutOff, NoAnswer, until_ready
from tests.e2e.server_process import ServerProcess

MAX_ENDING_SECONDS, MAX_READY_SECONDS = 1.0, 3.0


class Load:
    """Clients that keep asking: for short answers, for endless ones, streamed and not."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.num_requests = self.num_answers = self.num_errors = self.num_refused = 0
        self.lost: list[str] = []
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
                    self.lost.append(type(exc).__name__)
                    connection.close()

    async def _ask(self, connection: Connection, body: dict, *, is_stream: bool) -> None:
        last, num_events = "", 0
        self.num_requests += 1
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
                self.lost.append("no end")
            self.num_answers += 1
        elif error["message"].startswith(("The engine is not", "The model is not")):
            self.num_refused += 1
            await asyncio.sleep(0.2)
        else:
            self.num_errors += 1
            self.endings.append(time.monotonic())
            if error["code"] != "engine_dead":
                self.lost.append(error["code"])


async def campaign(model: Path, kills: int, clients: int, *, timed: bool) -> int:
    report = Report(f"kill-loop: {kills} kills, {clients} clients")
    # Endless requests do not take every slot, so that some are finished as well.
    flags = ("--max-slots", str(max(1, clients * 3 // 4)), "--log-level", "error", *patience.FLAGS)
    endings, noticed, recoveries = [], [], []
    with ServerProcess(model, *flags) as server:
        url = await asyncio.to_thread(server.wait_ready)
        load = Load(url)
        tasks = [asyncio.create_task(load.client(i)) for i in range(clients)]
        for number in range(1, kills + 1):
            load.num_streaming = 0
            load.endings.clear()
            num_answers = load.num_answers
            async with asyncio.timeout(patience.SECONDS):
                # Several streams have begun, so the engine is under load; and some answers have
                # ended, so it is not one that does nothing but die, which comes back later.
                while load.num_streaming < min(4, clients // 2) or num_answers == load.num_answers:
                    await asyncio.sleep(0.005)
            killed_at = time.monotonic()
            os.kill(server.engine.pid, signal.SIGKILL)
            await until_ready(url, ready=False)
            noticed.append(time.monotonic() - killed_at)
            await until_ready(url)
            recoveries.append(time.monotonic() - killed_at)
            endings += [at - killed_at for at in load.endings]
            if number % 50 == 0:
                report.figure("kills so far, lost", f"{number}, {len(load.lost)}")
                server.log.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    report.figure("requests", f"{load.num_requests:,}")
    report.figure(
        "answered, ended by a kill, refused",
        (f"{load.num_answers:,}, {load.num_errors:,}, {load.num_refused:,}"),
    )
    report.spread("kill to unready", noticed)
    report.spread("kill to the last event of each request", endings)
    report.spread("kill to ready again", recoveries)
    report.check(not load.lost, f"{len(load.lost)} requests without a proper end: {load.lost[:5]}")
    report.check(load.num_errors >= kills, "too few requests ran when the engine was killed")
    report.check(load.num_answers > 0, "no request was ever answered")
    if timed:
        report.check(max(endings) <= MAX_ENDING_SECONDS, "an ending came late")
        report.check(max(recoveries) <= MAX_READY_SECONDS, "the server was not ready in time")
    return report.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", type=Path, default=demo_model_folder())
    parser.add_argument("--untimed", action="store_true", help="on a machine that is busy")
    options = parser.parse_args()
    timed = not options.untimed
    return asyncio.run(campaign(options.model, options.kills, options.clients, timed=timed))


if __name__ == "__main__":
    sys.exit(main())
