"""`dijiang serve` as an operator runs it: a process, a port, signals."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

START_SECONDS = 60


class ServerProcess:
    """A running server. Ends with the `with` block, whatever state it is in."""

    def __init__(self, model: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "server.cli", "serve", str(model), "--port", "0", *flags]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._listening = threading.Event()
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def wait_listening(self) -> str:
        """The server's URL, as soon as it listens."""
        assert self._listening.wait(START_SECONDS), self.text
        [url] = re.findall(r"Listening on (https?://\S+),", self.text)
        return str(url)

    def wait_ready(self) -> str:
        """The server's URL, when it has printed its summary."""
        assert self._ready.wait(START_SECONDS), self.text
        return self.wait_listening()

    @property
    def text(self) -> str:
        """Everything that it has logged."""
        return "".join(self.log)

    @property
    def engine(self) -> psutil.Process:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        [engine] = [p for p in children if "dijiang_runtime.engine.process" in p.cmdline()]
        return engine

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes that answer the API, where there are several."""
        workers = []
        for child in psutil.Process(self.process.pid).children():
            # One may end while it is looked at.
            with contextlib.suppress(psutil.NoSuchProcess):
                if "server.workers.process" in child.cmdline():
                    workers.append(child)
        return workers

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if line.startswith("Listening on"):
                self._listening.set()
            if line.startswith("Ready"):
                self._ready.set()
        # Whoever waits learns from the log that it will never come.
        self._listening.set()
        self._ready.set()


def metrics(client: httpx.Client) -> dict[str, float]:
    """The samples of `/metrics` by name, those with the same name added up."""
    totals: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def wait_for(
    client: httpx.Client, name: str, value: float, *, seconds: float = 10, at_least: bool = False
) -> None:
    """Read `/metrics` until a sample has this value, or at least this one."""
    deadline = time.monotonic() + seconds
    while (now := metrics(client)[name]) != value and not (at_least and now > value):
        assert time.monotonic() < deadline, f"{name} is {now}, not {value}"
