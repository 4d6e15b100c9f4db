"""What the main process and a worker say to each other: lines of JSON over a pair of sockets.

The main process says `WorkerStart` first. The worker says `CannotServe`, or `Report` when it takes
connections, and again every second and whenever a connection was closed. Where the requests of an
API key are limited, it asks with `TakePlace`, is answered `Place`, and says `GiveBackPlace`. When
it has drained, it says `Leaving`.

A connection goes over a second pair, as a byte that says for which port it is and the descriptor
of its socket.
"""

from pathlib import Path
from typing import Any, Final

import msgspec

from server.config import ServerConfig

FOR_API: Final = b"a"
FOR_PROBES: Final = b"p"

MAX_LINE_BYTES = 2**24


class WorkerStart(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker must know."""

    config: ServerConfig
    engine_address: str = ""
    """Of the line to the engine that was opened for this worker."""
    index: int
    """Its number, from 0. The one that replaces it has the same."""
    metrics_folder: Path
    started_at: int
    """When the server started, in Unix seconds."""


class CannotServe(msgspec.Struct, frozen=True, tag="cannot_serve"):
    """The model cannot be served. For the operator: trying again will not help."""

    message: str


class Report(msgspec.Struct, frozen=True, tag="report"):
    """The worker lives."""

    num_closed: int
    """How many of the connections that it was given are closed again."""


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """What ran has ended. The worker serves the connections that are on their way, and goes when it
    has seen the end of them."""


class TakePlace(msgspec.Struct, frozen=True, tag="take_place"):
    """A request of an API key has arrived. Answered with `Place`, in the order of the questions."""

    key: str
    """Its hash."""


class GiveBackPlace(msgspec.Struct, frozen=True, tag="give_back_place"):
    """A request that had a place has ended."""

    key: str
    seconds: float
    """How long it had it."""


class Place(msgspec.Struct, frozen=True):
    """Whether there was a place."""

    retry_after_seconds: float | None
    """When there may be one; None: it is taken."""


WorkerMessage = CannotServe | Report | Leaving | TakePlace | GiveBackPlace


def encode(message: WorkerStart | WorkerMessage | Place) -> bytes:
    return msgspec.json.encode(message, enc_hook=_path_to_str) + b"\n"


def decode_start(line: bytes) -> WorkerStart:
    return msgspec.json.decode(line, type=WorkerStart, dec_hook=_str_to_path)


def decode_message(line: bytes) -> WorkerMessage:
    message: WorkerMessage = msgspec.json.decode(line, type=WorkerMessage)
    return message


def decode_place(line: bytes) -> Place:
    return msgspec.json.decode(line, type=Place)


def _path_to_str(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def _str_to_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} has no JSON form")
