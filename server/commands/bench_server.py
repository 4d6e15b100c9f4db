"""A server that a benchmark starts, and what it takes of the machine."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.commands.common import fail

if TYPE_CHECKING:
    import psutil

START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server under test."""

    url: str
    pid: int
    ready_seconds: float
    """From the start of its process until it was ready."""

    def cpu_seconds(self) -> dict[str, float]:
        """What its processes have computed, those for the API alone: the engine is left out."""
        import psutil

        main = psutil.Process(self.pid)
        children = main.children()
        workers = [child for child in children if "server.workers.process" in child.cmdline()]
        if not workers:
            return {"API process": _cpu_seconds(main)}
        return {"main process": _cpu_seconds(main), "workers": sum(map(_cpu_seconds, workers))}


def _cpu_seconds(process: "psutil.Process") -> float:
    times = process.cpu_times()
    seconds: float = times.user + times.system
    return seconds


@contextlib.contextmanager
def running_server(folder: Path, flags: list[str]) -> Iterator[RunningServer]:
    """A server that is ready."""
    command = [sys.executable, "-m", "server.cli", "serve", str(folder), "--port=0", *flags]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        started = time.perf_counter()
        server = subprocess.Popen(command, stderr=log)
        try:
            url = wait_ready(server, log.fileno())
            yield RunningServer(url, server.pid, time.perf_counter() - started)
        finally:
            server.terminate()
            server.wait()


def wait_ready(server: subprocess.Popen[bytes], log: int) -> str:
    """The address of a server, once it answers that it is ready."""
    import httpx

    deadline = time.perf_counter() + START_SECONDS
    url = None
    while time.perf_counter() < deadline and server.poll() is None:
        if url is None:
            text = os.pread(log, 65536, 0).decode(errors="replace")
            found = re.search(r"Listening on (http://\S+),", text)
            url = found[1] if found else None
        elif httpx.get(f"{url}/readyz").status_code == 200:
            return url
        time.sleep(0.005)
    fail("the server did not become ready:\n" + os.pread(log, 65536, 0).decode(errors="replace"))
