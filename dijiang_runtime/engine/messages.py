"""What the API process and the engine process say to each other: msgpack, never pickle.

A client says `AddRequest`, `Abort` and `Shutdown`. The engine says `Hello` when it is connected,
`Ready` or `LoadFailed` when it has tried to load the model, and `StepDone` from then on, after
every step with news and ten times a second while idle: it is the heartbeat as well.

Where several API processes share an engine, each says `Hello`, `AddRequest` and `Abort` to the one
that hosts it, and is told `EngineStatus` and `HostNews`.
"""

from pathlib import Path
from typing import Any

import msgspec

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.request import Request, RequestOutput


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a loaded engine. They do not change while it lives."""

    vocab_size: int
    max_model_len: int
    """Longest prompt plus answer, in tokens."""
    max_logprobs: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    num_slots: int
    """Sequences that run at once."""
    state_bytes_per_sequence: int
    """Both buffers of the recurrent state of one sequence."""
    state_bytes_total: int
    parent_kv_cache_bytes_per_token: int = 0
    """What a Transformer of the same shape would need for each token; 0 if there is none."""
    num_parameters: int
    num_layers: int
    hidden_size: int
    """Numbers of an embedding."""
    family: str
    device: str
    dtype: str
    num_threads: int
    max_queued_requests: int
    max_queued_tokens: int
    load_seconds: float
    warmup_seconds: float


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The engine's gauges now, and what has happened since the last `EngineStats`."""

    running: int = 0
    waiting: int = 0
    awaiting_grammars: int = 0
    """Those of the waiting whose grammar is being compiled: a free slot would not help them."""
    slots_used: int = 0
    slots_total: int = 0
    context_tokens: int = 0
    """Tokens that the states of the running sequences have read, all together."""
    prompt_tokens: int = 0
    """Prompt tokens computed since the last message."""
    generation_tokens: int = 0
    """Tokens sampled since the last message."""
    step_seconds: tuple[float, ...] = ()
    """Duration of each step since the last message."""
    step_decodes: tuple[int, ...] = ()
    """Sequences that decoded in each of those steps."""
    step_prefill_tokens: tuple[int, ...] = ()
    """Prompt tokens computed in each of those steps."""
    step_batch_sizes: tuple[int, ...] = ()
    """Sequences in each of those steps, whatever was computed for them."""
    num_forks: int = 0
    """Sequences that took over the state of another after its prompt, since the last message."""
    num_failed_rows: int = 0
    """Requests that a step failed for, alone, since the last message."""

    def gauges(self) -> "EngineStats":
        """The same without what has happened: only how things are now."""
        return EngineStats(
            running=self.running,
            waiting=self.waiting,
            awaiting_grammars=self.awaiting_grammars,
            slots_used=self.slots_used,
            slots_total=self.slots_total,
            context_tokens=self.context_tokens,
        )

    def after(self, earlier: "EngineStats") -> "EngineStats":
        """How things are now, and what has happened since before `earlier`."""
        return EngineStats(
            running=self.running,
            waiting=self.waiting,
            awaiting_grammars=self.awaiting_grammars,
            slots_used=self.slots_used,
            slots_total=self.slots_total,
            context_tokens=self.context_tokens,
            prompt_tokens=earlier.prompt_tokens + self.prompt_tokens,
            generation_tokens=earlier.generation_tokens + self.generation_tokens,
            step_seconds=earlier.step_seconds + self.step_seconds,
            step_decodes=earlier.step_decodes + self.step_decodes,
            step_prefill_tokens=earlier.step_prefill_tokens + self.step_prefill_tokens,
            step_batch_sizes=earlier.step_batch_sizes + self.step_batch_sizes,
            num_forks=earlier.num_forks + self.num_forks,
            num_failed_rows=earlier.num_failed_rows + self.num_failed_rows,
        )


class EngineStart(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process reads from its standard input, as one line of JSON."""

    address: str
    """The ZeroMQ endpoint to connect to."""
    config: EngineConfig
    log_level: int


class AddRequest(msgspec.Struct, frozen=True, tag="add", array_like=True):
    request: Request


class Abort(msgspec.Struct, frozen=True, tag="abort", array_like=True):
    """End a request early. It is answered with a final output whose finish reason is `abort`."""

    request_id: str


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown", array_like=True):
    """Leave now. What still runs is dropped."""


class Hello(msgspec.Struct, frozen=True, tag="hello", array_like=True):
    """The engine process is connected and begins to load."""


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    info: EngineInfo


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed", array_like=True):
    """The model cannot be served. For the operator: trying again will not help."""

    message: str


class StepDone(msgspec.Struct, frozen=True, tag="step", array_like=True):
    outputs: tuple[RequestOutput, ...] = ()
    stats: EngineStats | None = None


class EngineStatus(msgspec.Struct, frozen=True, tag="status", array_like=True):
    """Whether there is an engine now. Told at first, and whenever it changes."""

    info: EngineInfo | None
    """Of the last engine that was ready; None if there was none yet."""
    is_ready: bool
    num_restarts: int


class HostNews(msgspec.Struct, frozen=True, tag="news", array_like=True):
    """What is new for one of the processes that share an engine."""

    admitted: tuple[str, ...] = ()
    """Ids of its requests that were let in. The others are refused by an output with an error."""
    outputs: tuple[RequestOutput, ...] = ()
    stats: EngineStats | None = None
    """Of what has happened, one of the processes is told; the gauges are for all of them."""


ClientMessage = AddRequest | Abort | Shutdown
EngineMessage = Hello | Ready | LoadFailed | StepDone
GuestMessage = Hello | AddRequest | Abort
HostMessage = EngineStatus | HostNews


def encode(message: ClientMessage | EngineMessage | HostMessage) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_client_message(data: bytes) -> ClientMessage:
    message: ClientMessage = msgspec.msgpack.decode(data, type=ClientMessage)
    return message


def decode_engine_message(data: bytes) -> EngineMessage:
    message: EngineMessage = msgspec.msgpack.decode(data, type=EngineMessage)
    return message


def decode_guest_message(data: bytes) -> GuestMessage:
    message: GuestMessage = msgspec.msgpack.decode(data, type=GuestMessage)
    return message


def decode_host_message(data: bytes) -> HostMessage:
    message: HostMessage = msgspec.msgpack.decode(data, type=HostMessage)
    return message


def encode_start(start: EngineStart) -> bytes:
    return msgspec.json.encode(start, enc_hook=_path_to_str) + b"\n"


def decode_start(line: bytes) -> EngineStart:
    return msgspec.json.decode(line, type=EngineStart, dec_hook=_str_to_path)


def _path_to_str(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def _str_to_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} has no JSON form")
