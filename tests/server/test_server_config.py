"""Options of the server, from flags and the environment."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.config import ConfigError, ServerConfig, is_option

FLAGS = {"model": Path("model")}


def test_a_flag_wins_over_the_environment() -> None:
    config = ServerConfig.resolve(
        {**FLAGS, "port": 9000, "host": None}, {"DIJIANG_PORT": "1", "DIJIANG_HOST": "::1"}
    )
    assert (config.port, config.host) == (9000, "::1")


def test_every_option_can_be_set_in_the_environment() -> None:
    values: dict[str, Any] = {
        "model": Path("/models/story"),
        "served_model_name": ("a", "b"),
        "insecure": True,
        "drain_seconds": 1.5,
        "log_level": "debug",
        "max_choices": 3,
    }
    environ = {
        "DIJIANG_MODEL": "/models/story",
        "DIJIANG_SERVED_MODEL_NAME": "a,b",
        "DIJIANG_INSECURE": "true",
        "DIJIANG_DRAIN_SECONDS": "1.5",
        "DIJIANG_LOG_LEVEL": "debug",
        "DIJIANG_MAX_CHOICES": "3",
    }
    config = ServerConfig.resolve({}, environ)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "http"),
        ("INSECURE", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("MAX_CHOICES", "0"),
        ("API_WORKERS", "0"),
        ("API_WORKERS", "65"),
    ],
)
def test_a_bad_value_is_told_with_its_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name.lower()):
        ServerConfig.resolve(FLAGS, {f"DIJIANG_{name}": value})


def test_the_model_is_named_like_its_folder() -> None:
    assert ServerConfig(model=Path("/models/story/")).model_names == ("story",)
    config = ServerConfig(model=Path("/models/story/"), served_model_name=("a", "b"))
    assert config.model_names == ("a", "b")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_may_be_served_without_a_key(host: str) -> None:
    ServerConfig.resolve({**FLAGS, "host": host}, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="insecure"):
        ServerConfig.resolve({**FLAGS, "host": host}, {})
    ServerConfig.resolve({**FLAGS, "host": host, "insecure": True}, {})
    ServerConfig.resolve({**FLAGS, "host": host}, {"DIJIANG_API_KEYS": "key"})


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team\n\n  first \nsecond\n")
    config = ServerConfig.resolve({**FLAGS, "api_key_file": file}, {"DIJIANG_API_KEYS": "third, "})
    expected = {hashlib.sha256(key).hexdigest() for key in (b"first", b"second", b"third")}
    assert set(config.api_key_hashes) == expected


@pytest.mark.parametrize("content", [None, b"# nothing\n", b"\xff"])
def test_a_key_file_without_a_key_opens_nothing(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="key file"):
        ServerConfig.resolve({**FLAGS, "api_key_file": file}, {})


def test_the_resolved_options_do_not_hold_the_keys() -> None:
    config = ServerConfig.resolve(FLAGS, {"DIJIANG_API_KEYS": "canary"})
    assert "canary" not in repr(config)


def test_hashes_cannot_be_given_from_outside() -> None:
    config = ServerConfig.resolve(
        {**FLAGS, "api_key_hashes": ("00",)}, {"DIJIANG_API_KEY_HASHES": "00"}
    )
    assert config.api_key_hashes == ()


def test_every_option_is_described() -> None:
    for field in msgspec.inspect.type_info(ServerConfig).fields:  # type: ignore[attr-defined]
        if is_option(field.name):
            assert field.type.extra_json_schema["description"], field.name
