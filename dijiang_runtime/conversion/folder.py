"""Model folders that come to be as a whole, and the files beside their weights."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dijiang_runtime.conversion.errors import ConversionError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files that exist, and nothing else."""
    _copy(source, target, TOKENIZER_FILES)


def copy_generation_config(source: Path, target: Path) -> None:
    """Copy the sampling defaults, where there are any."""
    _copy(source, target, ("generation_config.json",))


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    if source.resolve() == target.resolve():
        return
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def check_out(source: Path, out: Path, *, overwrite: bool) -> None:
    """Raise `ConversionError` unless a model may be written to `out`."""
    if out.resolve() == source.resolve():
        raise ConversionError("The output folder is the parent's own; choose another.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ConversionError(f"{out} exists and is not empty. Choose another, or overwrite it.")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ConversionError(f"{out} is not a model folder, so it is not overwritten.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` when all went well, and vanishes otherwise."""
    folder = out.with_name(f".{out.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
