"""What the machine, or the container, lets this process use."""

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """Memory that can be allocated now without swapping, within the container's limit."""
    available: int = psutil.virtual_memory().available
    limit, used = _read_int("memory.max"), _read_int("memory.current")
    if limit is None or used is None:
        return available
    return max(0, min(available, limit - used + _page_cache_bytes()))


def available_cpus() -> int:
    """Cores this process may use, within the container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(cpus, int(quota))) if quota is not None else cpus


def _read_int(name: str) -> int | None:
    """A number from the control group of this process, or None for no limit."""
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return None


def _page_cache_bytes() -> int:
    """Files' pages that count as the group's memory until someone needs it: those of mapped weights
    stay there when an engine dies, and must not cost its successor slots."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        found = {name: int(value) for name, value in map(str.split, lines)}
        return found["file"] - found["shmem"]
    except (OSError, ValueError, KeyError):
        return 0


def _cpu_quota() -> float | None:
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None
