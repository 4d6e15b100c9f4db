"""What every child process of a server does, and what is said of how one ended."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """On Linux, be killed when the parent dies, even while stopped or deep in a computation."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_text(status: int | None) -> str:
    """How a process ended, from the status that `subprocess` gives it."""
    return (
        f"was ended by signal {-status}" if status and status < 0 else f"left with status {status}"
    )
