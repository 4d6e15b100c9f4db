"""ServerConfig: every option of the HTTP server, once, for flags and environment alike.

A field `max_body_bytes` is the flag `--max-body-bytes` and the variable `DIJIANG_MAX_BODY_BYTES`;
the flag wins. API keys are the exception: they come from a file or from `DIJIANG_API_KEYS`, never
from a flag, because other users of the machine can read a process's arguments.
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec
from msgspec import Meta

ENV_PREFIX = "DIJIANG_"
API_KEYS_VARIABLE = "DIJIANG_API_KEYS"
MAX_HEADER_BYTES = 65536
"""Largest head of a request."""

PortNumber = Annotated[int, Meta(ge=0, le=65535)]

C = TypeVar("C", bound=msgspec.Struct)


class ConfigError(Exception):
    """An option that cannot be used, told to the operator."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one HTTP server. Made by `resolve`; the descriptions are the flags' help."""

    model: Annotated[Path, Meta(description="A DiJiang model folder.")]
    served_model_name: Annotated[
        tuple[str, ...],
        Meta(description="Names that clients use for the model. Default: the folder's name."),
    ] = ()
    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Port to listen on. 0 chooses a free one.")
    ] = 8000
    api_key_file: Annotated[
        Path | None,
        Meta(
            description="File of API keys, one a line; # starts a comment. Read again when it "
            "changes."
        ),
    ] = None
    ssl_certfile: Annotated[
        Path | None,
        Meta(description="Certificate chain, PEM: listen with TLS. Read again when it changes."),
    ] = None
    ssl_keyfile: Annotated[
        Path | None, Meta(description="Its private key, where the certificate's file has none.")
    ] = None
    config: Annotated[
        Path | None,
        Meta(description="File of options, YAML or TOML, below flags and variables."),
    ] = None
    insecure: Annotated[
        bool, Meta(description="Allow listening beyond this machine without an API key.")
    ] = False

    api_workers: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Processes that answer the API, for one engine. More than one helps where "
            "events are more than one core can write: see docs/performance.md.",
        ),
    ] = 1

    default_max_tokens: Annotated[
        int, Meta(ge=1, description="Longest chat answer when the request sets no limit.")
    ] = 1024
    max_choices: Annotated[int, Meta(ge=1, description="Largest n of a request.")] = 8
    max_sequences_per_request: Annotated[
        int, Meta(ge=1, description="Largest n times the number of prompts.")
    ] = 32
    max_grammar_bytes: Annotated[
        int, Meta(ge=1, description="Largest schema, regular expression or grammar of a request.")
    ] = 131_072
    grammar_timeout_seconds: Annotated[
        float, Meta(gt=0.0, description="Time that compiling one of them may take.")
    ] = 2.0
    tool_call_parser: Annotated[
        Literal["auto", "hermes", "llama3_json", "mistral", "none"],
        Meta(description="How the model writes tool calls; auto tells it by the chat template."),
    ] = "auto"
    trust_request_chat_template: Annotated[
        bool,
        Meta(
            description="Take chat templates from requests. They are programs: only where all "
            "clients are trusted."
        ),
    ] = False
    max_messages: Annotated[int, Meta(ge=1, description="Most messages of a chat.")] = 1024
    max_requests_per_key: Annotated[
        int,
        Meta(
            ge=0,
            description="Requests for text that one API key may have at once. Without keys, all "
            "clients together. 0: no limit.",
        ),
    ] = 0
    max_body_bytes: Annotated[int, Meta(ge=1024, description="Largest request body.")] = 2 * 2**20

    header_timeout_seconds: Annotated[
        float, Meta(ge=0.0, description="Time a client has to send a request's headers.")
    ] = 10.0
    body_timeout_seconds: Annotated[
        float, Meta(ge=0.0, description="Time a client has to send a request's body.")
    ] = 30.0
    keep_alive_timeout_seconds: Annotated[
        float, Meta(ge=0.0, description="Idle time before a connection is closed.")
    ] = 75.0
    send_timeout_seconds: Annotated[
        float,
        Meta(ge=0.0, description="Time a client may stop reading before its stream is aborted."),
    ] = 30.0
    sse_keep_alive_seconds: Annotated[
        float, Meta(ge=0.0, description="Silence before a stream gets a comment. 0: never.")
    ] = 15.0
    max_queue_seconds: Annotated[
        float, Meta(ge=0.0, description="Longest wait for a free slot. 0: no limit.")
    ] = 30.0
    max_request_seconds: Annotated[
        float,
        Meta(ge=0.0, description="Time for a whole answer, the wait included. 0: no limit."),
    ] = 600.0
    drain_seconds: Annotated[
        float, Meta(ge=0.0, description="Time that running requests have to finish after SIGTERM.")
    ] = 30.0

    probe_port: Annotated[
        PortNumber | None,
        Meta(
            description="Port for the probes and /metrics alone, without a key. Default: none; "
            "they are on the main port in any case.",
        ),
    ] = None
    probe_host: Annotated[str, Meta(description="Address of that port.")] = "127.0.0.1"
    playground: Annotated[bool, Meta(description="Serve the playground, a web page, at /.")] = True
    vllm_metrics: Annotated[
        bool, Meta(description="Export the metrics under vLLM's names beside our own.")
    ] = True
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level to log.")
    ] = "info"
    access_log: Annotated[bool, Meta(description="Log a line for every request.")] = False

    api_key_hashes: tuple[str, ...] = ()
    """Hex SHA-256 of every key accepted at start. No option sets it: `resolve` does."""
    fixed_key_hashes: tuple[str, ...] = ()
    """Those of them that come from the environment, and stay when the file changes."""

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names under which the model answers, the first being the one it is listed by."""
        return self.served_model_name or (self.model.resolve().name,)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @classmethod
    def resolve(cls, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Merge flags (None means not given) over the environment, and check the result.

        Raises:
            ConfigError: a value of the wrong type or out of range, an unreadable key file, or an
                address beyond this machine without a key.
        """
        config = merge_options(cls, flags, environ)
        hashes = fixed = hash_keys(environ.get(API_KEYS_VARIABLE, "").split(","))
        if config.api_key_file is not None:
            hashes += hash_keys(read_key_file(config.api_key_file))
        config = msgspec.structs.replace(config, api_key_hashes=hashes, fixed_key_hashes=fixed)
        if not (config.is_loopback or hashes or config.insecure):
            raise ConfigError(
                f"Listening on {config.host} would let anyone who reaches this machine use the "
                f"model. Give API keys (--api-key-file or {API_KEYS_VARIABLE}), or --insecure."
            )
        return config


def merge_options(config_type: type[C], flags: Mapping[str, Any], environ: Mapping[str, str]) -> C:
    """Build a config struct from flags and `DIJIANG_*` variables; a flag that is None is unset."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(config_type):
        if not is_option(field.name):
            continue
        variable = ENV_PREFIX + field.name.upper()
        if flags.get(field.name) is not None:
            values[field.name] = flags[field.name]
        elif variable in environ:
            is_tuple = field.default == ()
            text = environ[variable]
            values[field.name] = text.split(",") if is_tuple else text
    try:
        return msgspec.convert(values, config_type, strict=False, dec_hook=_decode_path)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"Bad option: {exc}.") from exc


def is_option(name: str) -> bool:
    """Whether an operator sets a field of this name, rather than `resolve`."""
    return not name.endswith("_key_hashes")


def hash_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Hex SHA-256 of each key; blank ones are none."""
    stripped = (key.strip() for key in keys)
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in stripped if key)


def read_key_file(path: Path) -> list[str]:
    """The keys in a file, one a line, without blank lines and comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"The API key file {path} cannot be read: {exc}.") from exc
    keys = [line.strip() for line in lines]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise ConfigError(f"The API key file {path} holds no key.")
    return keys


def _decode_path(field_type: type, value: Any) -> Any:
    if field_type is Path:
        return Path(value)
    raise NotImplementedError
