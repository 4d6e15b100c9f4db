"""A `dijiang chat` in a pseudo-terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

# Makes the pseudo-terminal the controlling one, so that Ctrl-C becomes SIGINT as it does in life.
IN_TERMINAL = (
    "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "sys.argv[0] = 'dijiang'; from server.cli import main; main()"
)


class Terminal:
    """A `dijiang chat` in a pseudo-terminal: type into it, read what it shows."""

    def __init__(
        self,
        url: str,
        state: Path,
        *args: str,
        term: str = "xterm",
        columns: int = 120,
        **environ: str,
    ) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, columns))
        variables = {"TERM": term, "PYTHONUNBUFFERED": "1", "XDG_STATE_HOME": str(state)}
        # The terminal says how large it is, whatever the one around it says.
        left_out = ("NO_COLOR", "COLUMNS", "LINES")
        inherited = {name: value for name, value in os.environ.items() if name not in left_out}
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, "chat", "--base-url", url, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**inherited, **variables, **environ},
        )
        os.close(slave)
        self._unread = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def enter(self, keys: str, answer: str) -> str:
        """Type a line, wait for `answer` and for the next prompt; return what was shown."""
        self.type(keys)
        return self.wait_for(f"{answer}(.|\\n)*>")

    def wait_for_prompt(self) -> None:
        # What follows ">" differs from terminal to terminal.
        self.wait_for("leaves(.|\\n)*>")

    def wait_for(self, pattern: str, *, timeout_seconds: float = 20.0) -> str:
        """Return what was shown up to the end of `pattern`; later calls read on from there."""
        deadline = time.monotonic() + timeout_seconds
        while not (match := re.search(pattern, self._unread)):
            remaining = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._master], [], [], remaining)
            chunk = self._read() if ready else ""
            assert chunk, f"{pattern!r} was not shown: {self._unread!r}"
            self._unread += chunk
        shown, self._unread = self._unread[: match.end()], self._unread[match.end() :]
        return shown

    def wait_for_exit(self) -> int:
        # A full pseudo-terminal would block the program, so it is read until its end.
        while chunk := self._read():
            self._unread += chunk
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self) -> str:
        try:
            return os.read(self._master, 65536).decode()
        except OSError:  # Linux reports the end of a pseudo-terminal so.
            return ""
