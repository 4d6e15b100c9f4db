"""What every campaign prints, and what the machine says of a process."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

import psutil


class Report:
    """Figures and violations of one campaign. Lines are printed as they come."""

    def __init__(self, name: str) -> None:
        self.violations: list[str] = []
        self._started = time.monotonic()
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        print(f"{name}, commit {commit or 'unknown'}", flush=True)

    def figure(self, name: str, value: object) -> None:
        print(f"{name:<44} {value}", flush=True)

    def spread(self, name: str, seconds: Sequence[float]) -> None:
        """The middle and the upper end of some times."""
        if not seconds:
            self.figure(name, "never measured")
            return
        cuts = quantiles([*seconds, seconds[-1]], n=100)
        self.figure(
            name,
            f"p50 {1e3 * cuts[49]:.0f} ms, p99 {1e3 * cuts[98]:.0f} ms, "
            f"most {1e3 * max(seconds):.0f} ms",
        )

    def check(self, holds: bool, what: str) -> None:
        """Note a violation unless this holds."""
        if not holds:
            print(f"VIOLATION: {what}", flush=True)
            self.violations.append(what)

    def end(self) -> int:
        """Print the verdict, and return the exit status."""
        self.figure("seconds", f"{time.monotonic() - self._started:.0f}")
        self.figure("violations", len(self.violations))
        return 1 if self.violations else 0


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is its own, resident or swapped: RssAnon + VmSwap."""
    if sys.platform != "linux":
        return int(psutil.Process(pid).memory_info().rss)
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * sum(int(kib) for kib in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+)", text, re.M))
