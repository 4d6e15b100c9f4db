"""Options from a file."""

from pathlib import Path

import pytest

from dijiang_runtime.config import EngineConfig
from server.config import ConfigError, ServerConfig, merge_options
from server.config_file import with_config_file

TYPES = (ServerConfig, EngineConfig)


def write(folder: Path, text: str, name: str = "options.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "options.yaml",
            "model: m\nmax-slots: 7\naccess_log: true\n"
            "served-model-name: [a, b]\ndrain-seconds: 1.5",
        ),
        (
            "options.toml",
            'model = "m"\nmax-slots = 7\naccess_log = true\n'
            'served-model-name = ["a", "b"]\ndrain-seconds = 1.5',
        ),
    ],
)
def test_a_file_has_the_names_of_the_flags(tmp_path: Path, name: str, text: str) -> None:
    environ = with_config_file({}, write(tmp_path, text, name), TYPES)

    config = ServerConfig.resolve({}, environ)
    assert (config.model, config.served_model_name) == (Path("m"), ("a", "b"))
    assert config.access_log and config.drain_seconds == 1.5
    assert merge_options(EngineConfig, {}, environ).max_slots == 7


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "model: m\nport: 1\nmax-choices: 1\nmax-messages: 1")
    variables = {"DIJIANG_PORT": "2", "DIJIANG_MAX_CHOICES": "2"}

    config = ServerConfig.resolve({"port": 3}, with_config_file(variables, file, TYPES))

    assert (config.port, config.max_choices, config.max_messages) == (3, 2, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max-slot: 7", "max-slot, which is no option"),
        ("config: other.yaml", "config, which is no option"),
        ("api_key_hashes: ['00']", "api_key_hashes, which is no option"),
        ("api-keys: secret", "api-keys, which is no option"),
        ("port: {a: 1}", "must set port to"),
        ("port: [1]", "must set port to"),
        ("- port", "must map names"),
        ("port: 'x", "cannot be read"),
    ],
)
def test_what_cannot_be_an_option_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        with_config_file({}, write(tmp_path, text), TYPES)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        with_config_file({}, tmp_path / "none.yaml", TYPES)
