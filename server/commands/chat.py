"""`dijiang chat`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.common import fail

if TYPE_CHECKING:
    from clients.client import Sampling

BASE_URL_VARIABLE = "DIJIANG_BASE_URL"
API_KEY_VARIABLE = "DIJIANG_API_KEY"


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
) -> None:
    """Chat with a running server, streaming, in the terminal.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands. With a pipe on either side one
    message is read from standard input and just the answer is printed.

    Examples:

        dijiang chat

        dijiang chat --base-url http://gpu-box:8000 --system "You tell short stories."

        echo "Tell me a story about a fox." | dijiang chat --max-tokens 200
    """
    from clients.chat import Conversation, answer_once, converse
    from clients.client import Client
    from clients.errors import ClientError

    sampling: Sampling = {}
    if max_tokens is not None:
        sampling["max_tokens"] = max_tokens
    if temperature is not None:
        sampling["temperature"] = temperature
    if top_p is not None:
        sampling["top_p"] = top_p
    if seed is not None:
        sampling["seed"] = seed
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        with Client(base_url, api_key=read_api_key(api_key_file), model=model) as client:
            conversation = Conversation(client, sampling, system=system)
            if is_interactive:
                print(f"Talking to {client.model} at {client.base_url}. /help, Ctrl-D leaves.")
                converse(conversation, sys.stdout)
            elif message := sys.stdin.read().strip():
                answer_once(conversation, message, sys.stdout)
            else:
                fail("no message on standard input.", exit_code=2)
    except ClientError as exc:
        fail(exc)


def read_api_key(file: Path | None) -> str | None:
    """The API key to send, from the file or the environment."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        fail(f"the API key file {file} cannot be read: {exc}")
