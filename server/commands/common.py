"""What several subcommands share: how they fail, and the model that is used when none is named."""

import logging
import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import dijiang_runtime.demo

DEMO_MODEL_NAME = "dijiang-demo"

TRACEBACK_VARIABLE = "DIJIANG_TRACEBACK"
"""Set, it shows where a command failed."""


class PresetName(StrEnum):
    DIJIANG = "dijiang"
    OFFICIAL = "official"
    WINDOW = "dijiang+window"


ModelArgument = Annotated[
    Path | None,
    typer.Argument(help="A DiJiang model folder. Default: the embedded demo model."),
]


def fail(message: object, *, exit_code: int = 1) -> NoReturn:
    """Tell the user in one line why the command cannot go on, and leave."""
    print(f"dijiang: {message}", file=sys.stderr)
    raise typer.Exit(exit_code)


def leave_closed_pipe() -> NoReturn:
    """Leave because nobody reads standard output any more, with the status that SIGPIPE leaves."""
    # What is still buffered goes nowhere, instead of failing when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(141)


def log_plainly() -> None:
    """Show warnings of an engine in this process as single lines, like our own errors."""

    class OneLine(logging.Formatter):
        def formatException(self, ei: Any) -> str:
            return super().formatException(ei) if os.environ.get(TRACEBACK_VARIABLE) else ""

    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("dijiang: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def demo_model_folder() -> Path:
    """The folder of the model that comes with the package."""
    return Path(dijiang_runtime.demo.__path__[0])


def or_demo_model(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables, completed by those of the demo model where they name no model."""
    demo = {"DIJIANG_MODEL": str(demo_model_folder()), "DIJIANG_SERVED_MODEL_NAME": DEMO_MODEL_NAME}
    return dict(environ) if "DIJIANG_MODEL" in environ else {**demo, **environ}


def model_folder(model: Path | None) -> Path:
    """The folder that a command was given, or the demo model's. Fails if it does not exist."""
    folder = model or demo_model_folder()
    if not folder.is_dir():
        fail(f"there is no model folder {folder}.")
    return folder
