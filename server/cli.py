"""The `dijiang` command: a table of contents. Each subcommand is a module of `server.commands`."""

import os
import sys
from collections.abc import Callable

import typer

from dijiang_runtime.errors import DiJiangError
from server.commands.bench import bench
from server.commands.bench_http import bench_http
from server.commands.chat import chat
from server.commands.common import TRACEBACK_VARIABLE
from server.commands.conversion import sample, tokenizer
from server.commands.convert import convert
from server.commands.evaluation import compare, evaluate
from server.commands.generate import generate
from server.commands.inspection import inspect
from server.commands.kernel_error import kernel_error
from server.commands.loadtest import app as loadtest
from server.commands.serve import serve
from server.commands.train import train
from server.config import ConfigError

app = typer.Typer(
    name="dijiang",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def dijiang() -> None:
    """Convert Transformers into linear-attention RNNs, run them, and serve them.

    Every command explains itself, with examples: dijiang serve --help.
    """


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "serve": (serve, "Serve a model through the OpenAI API."),
    "generate": (generate, "Continue a text offline."),
    "chat": (chat, "Chat with a running server."),
    "inspect": (inspect, "Show what a model costs, beside its parent's KV cache."),
    "bench": (bench, "Measure decode and prefill throughput."),
    "bench-http": (bench_http, "Compare a server's speed with its engine's alone."),
    "convert": (convert, "Turn a pretrained Transformer into a DiJiang model."),
    "kernel-error": (kernel_error, "Compare feature maps with softmax attention."),
    "train": (train, "Train a model on text, with or without a teacher."),
    "eval": (evaluate, "Measure loss, last words or recall on text."),
    "compare": (compare, "Compare converted models with their parent."),
    "tokenizer": (tokenizer, "Train a tokenizer on text."),
    "sample": (sample, "Let a vanilla parent write training text."),
}

for name, (command, summary) in COMMANDS.items():
    app.command(name, short_help=summary)(command)
app.add_typer(loadtest, name="loadtest", short_help="Load a running server and measure it.")


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
