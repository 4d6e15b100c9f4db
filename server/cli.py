"""The `dijiang` command: a table of contents. Each subcommand is a module of `server.commands`."""

import os
import sys

import typer

from dijiang_runtime.errors import DiJiangError
from server.commands.chat import chat
from server.commands.conversion import convert, evaluate, sample, tokenizer
from server.commands.train import train
from server.config import ConfigError

TRACEBACK_VARIABLE = "DIJIANG_TRACEBACK"

app = typer.Typer(
    name="dijiang",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def dijiang() -> None:
    """Convert Transformers into linear-attention RNNs, run them, and serve them."""


app.command()(chat)
app.command()(convert)
app.command()(train)
app.command("eval")(evaluate)
app.command()(tokenizer)
app.command()(sample)


def main() -> None:
    """Run the command line. No traceback reaches a user, unless DIJIANG_TRACEBACK asks for it."""
    try:
        app()
    except Exception as exc:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        is_expected = isinstance(exc, DiJiangError | ConfigError)
        message = str(exc) if is_expected else f"internal error: {type(exc).__name__}: {exc}"
        print(f"dijiang: {message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
