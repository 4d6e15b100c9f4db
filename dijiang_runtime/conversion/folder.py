"""The files of a model folder beside its weights."""

import shutil
from pathlib import Path

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
