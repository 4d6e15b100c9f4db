"""Writing a model's text to a terminal."""

import contextlib
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterator
from typing import TextIO

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]


def printable(text: str) -> str:
    """Drop control characters, so that a model cannot drive the user's terminal, and surrogates."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))


def wrapped(text: str) -> str:
    """Break lines between words where the terminal would break them anywhere."""
    columns = max(20, shutil.get_terminal_size().columns)
    lines = (
        textwrap.wrap(line, columns, subsequent_indent="  ", break_on_hyphens=False) or [""]
        for line in text.split("\n")
    )
    return "\n".join(line for group in lines for line in group)


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Have the terminal not show what is typed while something is being drawn in it.

    Even the `^C` of Ctrl-C, after a line that fills the screen's width, would move the cursor to
    another line than the one from which the drawing is to be erased.
    """
    if termios is None or not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


class Screen:
    """Where answers and notes go. Knows whether the cursor stands at the start of a line.

    Text is cleaned for a terminal and left as it is for a pipe or a file.

    Args:
        is_dim: Whether notes are dim, in a terminal.
    """

    def __init__(self, out: TextIO, *, is_dim: bool = True) -> None:
        self._out = out
        self._is_dim = is_dim and out.isatty()
        self._is_terminal = out.isatty()
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Write a piece of text and show it at once."""
        if self._is_terminal:
            text = printable(text)
        if text:
            self._out.write(text)
            self._out.flush()
            self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Move to the start of a line, unless the cursor is there."""
        if not self._at_line_start:
            self.write("\n")

    def note(self, text: str) -> None:
        """Write dim lines of our own, below what stands there."""
        self.end_line()
        text = wrapped(printable(text)) if self._is_terminal else printable(text)
        self._out.write(f"\x1b[2m{text}\x1b[0m\n" if self._is_dim else f"{text}\n")
        self._out.flush()
