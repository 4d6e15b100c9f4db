"""What probes and load balancers read."""

import msgspec


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the engine is. Counts sequences: a request for `n` answers is `n` of them."""

    server_load: int
    """Running and waiting together, as vLLM calls it."""
    running: int
    waiting: int
    slots: int
    """How many may run at once."""
    slots_free: int


class Version(msgspec.Struct, frozen=True, kw_only=True):
    version: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a probe."""

    status: str
