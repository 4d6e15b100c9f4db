"""The line that a user types into: editing, history, completion of commands."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.vt100 import Vt100_Output


class Reader(Protocol):
    """Reads one message. Ctrl-C is KeyboardInterrupt, Ctrl-D is EOFError."""

    def __call__(self, draft: str = "") -> str: ...


def message_reader(out: TextIO, history: History, commands: Sequence[str]) -> Reader:
    """A prompt with editing and history, for any terminal."""
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    def size() -> Size:
        columns, rows = shutil.get_terminal_size()
        return Size(rows=rows, columns=columns)

    # No cursor position requests: a terminal that does not answer them would get a warning.
    output = Vt100_Output(out, size, term=os.environ.get("TERM"), enable_cpr=False)
    session: PromptSession[str] = PromptSession(
        output=output,
        key_bindings=bindings,
        history=history,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
    )
    return lambda draft="": session.prompt("> ", default=draft).strip()


def default_history_file() -> Path:
    """Where programs keep what they remember: XDG's folder for state."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "dijiang" / "chat_history"


def open_history(file: Path | None) -> History:
    """What was typed in earlier chats, in a file that only its owner can read.

    Without a file, or where it cannot be written, this chat is all that is remembered.
    """
    if file is None:
        return InMemoryHistory()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
    except OSError:
        return InMemoryHistory()
    return FileHistory(file)
