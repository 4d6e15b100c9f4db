"""What every campaign prints and leaves in a file, and what the machine says of a process."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil


class Report:
    """Figures and violations of one campaign. Lines are printed as they come.

    With a file, everything is kept there as JSON too, and what a campaign saves on its way is
    found there by the next run of the same name, which goes on from it.
    """

    def __init__(self, name: str, out: Path | None = None) -> None:
        self.violations: list[str] = []
        self._name, self._out = name, out
        self._figures: dict[str, str] = {}
        self._started = time.monotonic()
        self._commits = [_commit()]
        self.saved: dict[str, Any] = {}
        """What an earlier run of this campaign has saved, or nothing."""
        self._seconds_before = 0.0
        if out is not None and out.exists():
            self._resume(json.loads(out.read_text(encoding="utf-8")))
        print(f"{name}, commit {', '.join(self._commits)}", flush=True)

    def _resume(self, earlier: dict[str, Any]) -> None:
        if earlier["campaign"] != self._name or earlier["is_over"]:
            return
        self.saved = earlier["saved"]
        self.violations = earlier["violations"]
        self._seconds_before = earlier["seconds"]
        self._commits = list(dict.fromkeys([*earlier["commits"], *self._commits]))

    def figure(self, name: str, value: object) -> None:
        self._figures[name] = str(value)
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

    def save(self, saved: Mapping[str, Any], *, is_over: bool = False) -> None:
        """Write the file, if there is one, with what the next run needs in order to go on."""
        if self._out is None:
            return
        document = {
            "campaign": self._name,
            "is_over": is_over,
            "commits": self._commits,
            "machine": f"{os.cpu_count()} CPUs, {platform.processor() or platform.machine()}",
            "ended_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(self._seconds_before + time.monotonic() - self._started, 1),
            "figures": self._figures,
            "violations": self.violations,
            "saved": saved,
        }
        # Replaced as a whole: whoever reads it meanwhile never sees half of it.
        part = self._out.with_name(f"{self._out.name}.part")
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        part.replace(self._out)

    def end(self, saved: Mapping[str, Any] | None = None) -> int:
        """Print the verdict, and return the exit status."""
        seconds = self._seconds_before + time.monotonic() - self._started
        self.figure("seconds", f"{seconds:.0f}")
        self.figure("violations", len(self.violations))
        self.save(saved or {}, is_over=True)
        return 1 if self.violations else 0


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option that every campaign has."""
    parser.add_argument(
        "--out", type=Path, help="a file for the results, as JSON; a cut-off run goes on from it"
    )


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is its own, resident or swapped: RssAnon + VmSwap."""
    if sys.platform != "linux":
        return int(psutil.Process(pid).memory_info().rss)
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * sum(int(kib) for kib in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+)", text, re.M))


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
