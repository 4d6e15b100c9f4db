"""The fake server in a process of its own, and load tests of it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from clients.loadtest.options import Load, LoadOptions, ServerOptions
from clients.loadtest.run import run
from tests.clients.loadtest import fake_server
from tests.clients.loadtest.fake_server import Settings, as_argument


class Fake:
    """A running fake server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def counts(self, num_requests: int = 0) -> dict[str, Any]:
        """What it has seen, once so many requests have come: `bodies`, `keys`, `num_requests`,
        `num_connections`, `max_running`, `lateness`."""
        with urlopen(f"{self.url}/counts/{num_requests}", timeout=30) as response:
            counts: dict[str, Any] = json.load(response)
        return counts

    def load(self, load: Load, **options: Any) -> dict[str, Any]:
        """The result of one run without warm-up."""
        return self.report(loads=(load,), **options)["servers"][0]["runs"][0]

    def report(self, **options: Any) -> dict[str, Any]:
        given = {"warmup_seconds": 0.0, "num_requests": 10, **options}
        return run([ServerOptions(self.url)], LoadOptions(**given))


@contextmanager
def starting_fakes() -> Iterator[Callable[..., Fake]]:
    """What starts fake servers; all are stopped at the end."""
    processes = []

    def start(**settings: Any) -> Fake:
        process = subprocess.Popen(
            [sys.executable, str(Path(fake_server.__file__)), as_argument(Settings(**settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return Fake(f"http://127.0.0.1:{int(process.stdout.readline())}")

    yield start
    for process in processes:
        process.communicate(timeout=20)
        assert process.returncode == 0


QUICK = {"ttft_seconds": [0.002], "itl_seconds": [0.001], "num_tokens": 4}


@pytest.fixture
def start_fake() -> Iterator[Callable[..., Fake]]:
    with starting_fakes() as start:
        yield start


@pytest.fixture
def quick(start_fake: Callable[..., Fake]) -> Fake:
    """A fake server for tests in which delays mean nothing."""
    return start_fake(**QUICK)
