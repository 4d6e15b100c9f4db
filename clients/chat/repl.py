"""The loop of a chat: read a message, stream its answer, tell how it went."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TextIO

from clients.chat.commands import run_command
from clients.chat.conversation import Conversation
from clients.chat.figures import Timing
from clients.chat.prompt import Reader
from clients.errors import ClientError, ServerUnreachableError, StreamError
from clients.terminal import Screen, without_echo


class View(Protocol):
    """Where one answer is shown while it grows."""

    def write(self, text: str) -> None: ...
    def close(self) -> None: ...


class PlainView:
    """An answer as it comes, in a terminal that can do no more."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def write(self, text: str) -> None:
        self._screen.write(text)

    def close(self) -> None:
        self._screen.end_line()


class Chat:
    """A conversation with a user in front of it. `run` returns when they leave."""

    def __init__(
        self,
        conversation: Conversation,
        screen: Screen,
        read: Reader,
        new_view: Callable[[], View],
    ) -> None:
        self.conversation = conversation
        self.screen = screen
        self.read = read
        self._new_view = new_view
        self.file: Path | None = None
        """Where the conversation was saved, or came from; `/save` may write there again."""
        self.last_answer = ""

    def run(self) -> None:
        # Asked for now, so that it takes nothing from the time of the first answer.
        _ = self.conversation.memory
        while True:
            try:
                message = self.read()
                if message.startswith("/"):
                    run_command(self, message)
                elif message:
                    self.answer(message)
            except KeyboardInterrupt:
                self.screen.note("Ctrl-D leaves, /help lists the commands.")
            except ClientError as exc:
                self.screen.note(f"Error: {exc}")
            except EOFError:
                return

    def answer(self, question: str, *, again: bool = False) -> None:
        """Stream one answer to the screen, then a line of figures. Ctrl-C stops it."""
        timing = Timing()
        outcome = ""
        view = self._new_view()
        try:
            pieces = self.conversation.ask(question, timing, again=again)
            with (
                without_echo(),
                contextlib.closing(view),
                prompt_interrupts(),
                contextlib.closing(pieces),
            ):
                for piece in pieces:
                    view.write(piece)
        except KeyboardInterrupt:
            outcome = "stopped · "
        except ClientError as exc:
            self.screen.note(f"Error: {explain(exc)}")
            if timing.first is None:
                return
            outcome = "incomplete · "
        self.last_answer = outcome + timing.summary()
        memory, usage = self.conversation.memory, timing.usage
        state = f" · {memory.summary(usage.total_tokens)}" if memory and usage else ""
        self.screen.note(self.last_answer + state)


def explain(error: ClientError) -> str:
    """What happened, and what the user can do about it."""
    match error:
        case StreamError():
            return f"{error} What came of the answer is kept; /retry asks again."
        case ServerUnreachableError():
            return f"{error} The conversation is kept; /retry asks again."
    return str(error)


def answer_once(conversation: Conversation, message: str, out: TextIO) -> None:
    """Print the answer to one message and nothing else.

    Raises:
        BrokenPipeError: whoever read it has left. The answer is stopped, as it is by Ctrl-C.
    """
    screen = Screen(out)
    pieces = conversation.ask(message, Timing())
    try:
        with prompt_interrupts(), contextlib.closing(pieces):
            for piece in pieces:
                screen.write(piece)
    except (ClientError, KeyboardInterrupt):
        screen.end_line()
        raise
    screen.end_line()


@contextlib.contextmanager
def prompt_interrupts() -> Iterator[None]:
    """Have Ctrl-C noticed within a fifth of a second, whatever the program waits for.

    Python looks for signals between its own instructions. One that comes after the last of them,
    just before a read begins to wait, would be seen when the server says something next; a timer
    that interrupts the wait lets it be seen at once.
    """
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
