"""What a user can tell the program instead of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clients.chat import parameters

if TYPE_CHECKING:
    from clients.chat.repl import Chat


@dataclass(frozen=True, slots=True)
class Command:
    usage: str
    help: str
    run: Callable[["Chat", str], None]


def run_command(chat: "Chat", line: str) -> None:
    """Obey one /command.

    Raises:
        EOFError: it was to leave.
        ClientError: it cannot be done.
    """
    name, _, argument = line.partition(" ")
    if (command := COMMANDS.get(name)) is None:
        chat.screen.note(f"No such command: {name}\n{HELP}")
    else:
        command.run(chat, argument.strip())


def system(chat: "Chat", text: str) -> None:
    chat.conversation.system = text or None
    chat.screen.note("System prompt set." if text else "No system prompt.")


def retry(chat: "Chat", _: str) -> None:
    question = chat.conversation.last_question
    if question is None:
        chat.screen.note("There is nothing to ask again.")
    else:
        chat.answer(question, again=True)


def edit(chat: "Chat", _: str) -> None:
    question = chat.conversation.last_question
    if question is None:
        chat.screen.note("There is nothing to edit.")
    elif edited := chat.read(question):
        chat.answer(edited, again=True)


def save(chat: "Chat", name: str) -> None:
    file = Path(name).expanduser() if name else chat.file
    if file is None:
        chat.screen.note("Name a file: /save FILE")
        return
    chat.conversation.save(file, may_replace=file == chat.file)
    chat.file = file
    chat.screen.note(f"Saved {len(chat.conversation.turns)} messages in {file}.")


def load(chat: "Chat", name: str) -> None:
    if not name:
        chat.screen.note("Name a file: /load FILE")
        return
    file = Path(name).expanduser()
    chat.conversation.load(file)
    chat.file = file
    chat.screen.note(f"Loaded {len(chat.conversation.turns)} messages from {file}.")


def params(chat: "Chat", text: str) -> None:
    if text:
        chat.conversation.sampling = parameters.changed(chat.conversation.sampling, text)
    chat.screen.note(parameters.shown(chat.conversation.sampling))


def stats(chat: "Chat", _: str) -> None:
    conversation = chat.conversation
    lines = [f"{conversation.client.model_name()} at {conversation.client.base_url}"]
    lines.append(f"{len(conversation.turns)} messages")
    if usage := conversation.usage:
        lines[-1] += f", {usage.total_tokens} tokens"
        if memory := conversation.memory:
            lines.append(memory.summary(usage.total_tokens))
    if chat.last_answer:
        lines.append(f"last answer: {chat.last_answer}")
    chat.screen.note("\n".join(lines))


def clear(chat: "Chat", _: str) -> None:
    chat.conversation.clear()
    chat.screen.note("The conversation starts afresh.")


def show_help(chat: "Chat", _: str) -> None:
    chat.screen.note(HELP)


def leave(chat: "Chat", _: str) -> None:
    raise EOFError


COMMANDS: Mapping[str, Command] = {
    "/system": Command("TEXT", "set the system prompt; without TEXT, remove it", system),
    "/retry": Command("", "ask the last question again, for another answer", retry),
    "/edit": Command("", "change the last question and ask it again", edit),
    "/params": Command("NAME VALUE", "set a sampling parameter; alone, show them", params),
    "/save": Command("FILE", "write the conversation to a file", save),
    "/load": Command("FILE", "go on with a conversation that was saved", load),
    "/stats": Command("", "tokens, speed, and the memory that they take", stats),
    "/clear": Command("", "forget the conversation, keep the system prompt", clear),
    "/help": Command("", "show this", show_help),
    "/quit": Command("", "leave; so does Ctrl-D", leave),
}

_ROWS = "\n".join(f"{f'{name} {c.usage}':<20}{c.help}" for name, c in COMMANDS.items())
HELP = f"{_ROWS}\nCtrl-C stops an answer. Alt-Enter starts a new line."
