"""The proxies that `deploy/proxies` has configurations for, run on ports of our own."""

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

CONFIGS = Path(__file__).parents[2] / "deploy" / "proxies"
COMMANDS = {
    "nginx": ("nginx.conf", ["nginx", "-e", "stderr", "-g", "daemon off; pid {pid};", "-c"]),
    "haproxy": ("haproxy.cfg", ["haproxy", "-db", "-f"]),
    "envoy": (
        "envoy.yaml",
        ["envoy", "--concurrency", "1", "-l", "error", "--use-dynamic-base-id", "-c"],
    ),
}
START_SECONDS = 30


def is_installed(kind: str) -> bool:
    return shutil.which(kind) is not None


class Proxy:
    """A running proxy in front of three replicas. Ends with the `with` block."""

    def __init__(self, kind: str, replicas: list[str], folder: Path) -> None:
        name, command = COMMANDS[kind]
        self.port = free_port()
        config = folder / name
        config.write_text(self._on_our_ports((CONFIGS / name).read_text("utf-8"), replicas))
        arguments = [word.replace("{pid}", str(folder / "pid")) for word in command]
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [*arguments, config], stdout=self._log, stderr=self._log, cwd=folder
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                self._log.seek(0)
                assert self._process.poll() is None, self._log.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)  # Nothing tells when a proxy listens.

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _on_our_ports(self, config: str, replicas: list[str]) -> str:
        """The shipped configuration, with its ports 8000 to 8003 replaced and nothing else."""
        ports = {8000: self.port} | {
            8001 + index: int(url.rpartition(":")[2]) for index, url in enumerate(replicas)
        }
        config, count = re.subn(
            r"(127\.0\.0\.1:|port_value: )(800[0-3])",
            lambda match: f"{match[1]}{ports[int(match[2])]}",
            config,
        )
        assert count == 4
        return config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
