"""A long campaign against a real server: `python -m tests.fuzz --requests 100000`."""

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.campaigns import patience
from tests.campaigns.report import Report, add_out
from tests.campaigns.wire import Connection
from tests.conftest import save_tiny_model
from tests.e2e.server_process import ServerProcess
from tests.fuzz import generate
from tests.fuzz.attack import Attack
from tests.fuzz.kinds import all_kinds

GOLDEN_EVERY = 50


async def campaign(options: argparse.Namespace) -> int:
    num_requests, first, clients = options.requests, options.first, options.clients
    kinds = all_kinds()
    report = Report(
        f"fuzz: {len(kinds)} kinds and {num_requests:,} generated from {first:,}", options.out
    )
    numbers = iter(range(first, first + num_requests))
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(
            save_tiny_model(Path(folder)), "--log-level", "error", *patience.FLAGS
        ) as server,
    ):
        url = await asyncio.to_thread(server.wait_ready)
        engine = server.engine.pid
        attacks = [Attack(url, patience.SECONDS) for _ in range(clients)]
        for attack in attacks:
            await attack.begin()
        for name, data in kinds.items():
            await attacks[0].send(name, data)
            await attacks[0].check_golden(name)

        async def send_all(attack: Attack) -> None:
            for number in numbers:
                await attack.send(str(number), generate.request(number))
                if number % GOLDEN_EVERY == 0:
                    await attack.check_golden(str(number))
                if number % 10_000 == 0:
                    report.figure("requests so far, wrong", f"{number}, {len(attack.wrong)}")

        await asyncio.gather(*map(send_all, attacks))
        async with Connection(url) as observer:
            page = (await observer.get("/metrics")).body.decode()
        report.check('dijiang_engine_restarts{model_name="' in page, "no count of restarts")
        report.check(server.engine.pid == engine, "the engine was started again")
        report.check("Traceback" not in server.text, "a traceback was logged")
    statuses: Counter[int] = Counter()
    for attack in attacks:
        statuses += attack.statuses
        for what in attack.wrong:
            report.check(False, what)
    report.figure("answers by status", dict(sorted(statuses.items())))
    return report.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--clients", type=int, default=4)
    add_out(parser)
    return asyncio.run(campaign(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
