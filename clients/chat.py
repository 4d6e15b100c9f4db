"""`dijiang chat`: a conversation in the terminal, answers streamed as they are made.

`converse` needs a terminal on both sides; `answer_once` is for pipes and prints just the answer.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.data_structures import Size
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.vt100 import Vt100_Output

from clients.client import Client, Delta, Message, Sampling, Usage
from clients.errors import ClientError
from clients.terminal import Screen

HELP = """\
/system TEXT  set the system prompt; without TEXT, remove it
/reset        forget the conversation, keep the system prompt
/help         show this
/quit         leave; so does Ctrl-D
Ctrl-C stops an answer. Alt-Enter starts a new line."""


@dataclass(slots=True)
class Timing:
    """When the text of one answer arrived, as `time.perf_counter` seconds."""

    start: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float | None = None
    num_deltas: int = 0
    usage: Usage | None = None

    def saw(self, delta: Delta) -> None:
        self.usage = delta.usage or self.usage
        if delta.text:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.num_deltas += 1

    def summary(self) -> str:
        """TTFT and decode throughput, fit for one dim line under the answer."""
        if self.first is None or self.last is None:
            return "no text"
        # An answer that was stopped has no usage; its events are then the best count there is.
        num_tokens = self.usage.completion_tokens if self.usage else self.num_deltas
        parts = [f"{num_tokens} tokens", f"TTFT {self.first - self.start:.2f} s"]
        if num_tokens > 1 and self.last > self.first:
            parts.append(f"{(num_tokens - 1) / (self.last - self.first):.0f} tokens/s")
        return " · ".join(parts)


class Conversation:
    """The turns so far and the client that continues them."""

    def __init__(self, client: Client, sampling: Sampling, *, system: str | None = None) -> None:
        self._client = client
        self._sampling = sampling
        self.system = system
        self.turns: list[Message] = []

    def reset(self) -> None:
        self.turns.clear()

    def ask(self, text: str, timing: Timing) -> Generator[str]:
        """Yield the answer to `text` piece by piece, and remember both.

        An answer that is stopped early is remembered as far as it was seen, so that the
        conversation goes on from what the user read. A turn that got no answer is forgotten.
        """
        question = Message("user", text)
        head = [Message("system", self.system)] if self.system else []
        seen: list[str] = []
        try:
            with self._client.stream_chat(
                [*head, *self.turns, question], **self._sampling
            ) as stream:
                for delta in stream:
                    timing.saw(delta)
                    if delta.text:
                        seen.append(delta.text)
                        yield delta.text
        finally:
            if seen:
                self.turns += [question, Message("assistant", "".join(seen))]


def answer_once(conversation: Conversation, message: str, out: TextIO) -> None:
    """Print the answer to one message and nothing else."""
    screen = Screen(out)
    try:
        for piece in conversation.ask(message, Timing()):
            screen.write(piece)
    finally:
        screen.end_line()


def converse(conversation: Conversation, out: TextIO) -> None:
    """Read messages and stream answers until the user leaves."""
    screen = Screen(out)
    read_message = message_reader(out)
    while True:
        try:
            message = read_message()
            if message.startswith("/"):
                if not run_command(message, conversation, screen):
                    return
            elif message:
                show_answer(conversation, message, screen)
        except KeyboardInterrupt:
            screen.note("Ctrl-D leaves, /help lists the commands.")
        except EOFError:
            return


def show_answer(conversation: Conversation, message: str, screen: Screen) -> None:
    """Stream one answer to the screen, then a line of figures. Ctrl-C stops it."""
    timing = Timing()
    try:
        with prompt_interrupts(), contextlib.closing(conversation.ask(message, timing)) as pieces:
            for piece in pieces:
                screen.write(piece)
    except KeyboardInterrupt:
        screen.note(f"stopped · {timing.summary()}")
    except ClientError as exc:
        screen.note(f"Error: {exc}")
    else:
        screen.note(timing.summary())


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


def run_command(message: str, conversation: Conversation, screen: Screen) -> bool:
    """Obey one /command. Returns whether the conversation goes on."""
    name, _, argument = message.partition(" ")
    match name:
        case "/quit" | "/exit":
            return False
        case "/reset":
            conversation.reset()
            screen.note("The conversation starts afresh.")
        case "/system":
            conversation.system = argument.strip() or None
            screen.note("System prompt set." if conversation.system else "No system prompt.")
        case "/help":
            screen.note(HELP)
        case _:
            screen.note(f"No such command: {name}\n{HELP}")
    return True


def message_reader(out: TextIO) -> Callable[[], str]:
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
    session: PromptSession[str] = PromptSession(output=output, key_bindings=bindings)
    return lambda: session.prompt("> ").strip()
