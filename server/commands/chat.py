"""`dijiang chat`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from server.commands.common import fail, leave_closed_pipe

if TYPE_CHECKING:
    from clients.chat.conversation import Conversation
    from clients.messages import Sampling

BASE_URL_VARIABLE = "DIJIANG_BASE_URL"
API_KEY_VARIABLE = "DIJIANG_API_KEY"
WAYS = "/help lists the commands, Ctrl-D leaves."


def chat(
    base_url: Annotated[
        str, typer.Option(envvar=BASE_URL_VARIABLE, help="Address of the server.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="Model to talk to. Default: the first that is served.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, help="0 chooses the most likely token.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    seed: Annotated[
        int | None, typer.Option(help="With a seed, equal requests get equal answers.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the API key. Default: the variable {API_KEY_VARIABLE}."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Show answers as they are, without Markdown or colour.")
    ] = False,
    history: Annotated[
        bool, typer.Option(help="Remember what is typed, in ~/.local/state/dijiang.")
    ] = True,
) -> None:
    """Chat with a running server, streaming, in the terminal.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands. With a pipe on either side one
    message is read from standard input and just the answer is printed.

    Examples:

        dijiang chat

        dijiang chat --base-url http://gpu-box:8000 --system "You tell short stories."

        echo "Tell me a story about a fox." | dijiang chat --max-tokens 200
    """
    from clients.chat.conversation import Conversation
    from clients.chat.repl import answer_once
    from clients.client import Client
    from clients.errors import ClientError
    from clients.terminal import wrapped

    given: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    sampling = {name: value for name, value in given.items() if value is not None}
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        with Client(base_url, api_key=read_api_key(api_key_file), model=model) as client:
            conversation = Conversation(client, cast("Sampling", sampling), system=system)
            if is_interactive:
                print(wrapped(f"Talking to {client.model_name()} at {client.base_url}. {WAYS}"))
                converse(conversation, plain=plain, keeps_history=history)
            elif message := sys.stdin.read().strip():
                answer_once(conversation, message, sys.stdout)
            else:
                fail("no message on standard input.", exit_code=2)
    except ClientError as exc:
        fail(exc)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        leave_closed_pipe()


def converse(conversation: "Conversation", *, plain: bool, keeps_history: bool) -> None:
    """Talk with whoever sits at the terminal."""
    from rich.console import Console

    from clients.chat.commands import COMMANDS
    from clients.chat.markdown import MarkdownView
    from clients.chat.prompt import default_history_file, message_reader, open_history
    from clients.chat.repl import Chat, PlainView, View
    from clients.terminal import Screen

    console = Console(file=sys.stdout, highlight=False)
    # A dumb terminal cannot move its cursor.
    is_plain = plain or bool(os.environ.get("NO_COLOR")) or console.is_dumb_terminal
    screen = Screen(sys.stdout, is_dim=not is_plain)

    def new_view() -> View:
        return PlainView(screen) if is_plain else MarkdownView(console)

    history = open_history(default_history_file() if keeps_history else None)
    read = message_reader(sys.stdout, history, list(COMMANDS))
    Chat(conversation, screen, read, new_view).run()


def read_api_key(file: Path | None) -> str | None:
    """The API key to send, from the file or the environment."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        fail(f"the API key file {file} cannot be read: {exc}")
