"""Options from a file: the layer below flags and variables."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from server.config import ENV_PREFIX, ConfigError, is_option


def with_config_file(
    environ: Mapping[str, str], path: Path | None, config_types: Iterable[type[msgspec.Struct]]
) -> dict[str, str]:
    """The environment, completed by what a file says where the environment says nothing.

    Args:
        path: YAML (`.yaml`, `.yml`) or TOML (`.toml`), with the names of the flags; None is none.
        config_types: Whose options the file may set.

    Raises:
        ConfigError: the file cannot be read, or sets what is no option.
    """
    if path is None:
        return dict(environ)
    known = {
        field.name
        for config_type in config_types
        for field in msgspec.structs.fields(config_type)
        if is_option(field.name) and field.name != "config"
    }
    variables = {}
    for key, value in _read(path).items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ConfigError(f"The config file {path} sets {key}, which is no option.")
        variables[ENV_PREFIX + name.upper()] = _spell(value, key, path)
    return {**variables, **environ}


def _read(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"The config file {path} cannot be read: {exc}.") from exc
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"The config file {path} must map names of options to values.")
    return values


def _spell(value: Any, key: Any, path: Path) -> str:
    """A value as a variable would have it."""
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return str(value)
        case list() if all(isinstance(item, str) for item in value):
            return ",".join(value)
        case _:
            raise ConfigError(
                f"The config file {path} must set {key} to a text, a number, true or false, "
                "or a list of texts."
            )
