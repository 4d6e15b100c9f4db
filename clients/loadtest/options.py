"""Everything that a load test is told, checked before anything is sent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clients.loadtest.arrivals import Ramp, parse_arrivals
from clients.loadtest.errors import OptionError
from clients.loadtest.generator import Span
from clients.loadtest.sender import PATHS, Endpoint
from clients.loadtest.targets import Target
from clients.loadtest.workloads import WorkloadOptions

DEFAULT_DURATION_SECONDS = 30.0
DEFAULT_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """A server to test. Without a model, the first that it lists is asked."""

    base_url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Load:
    """How hard the server is pressed: an arrival rate, or a number of users that wait."""

    kind: Literal["rate", "concurrency"]
    value: float

    @property
    def label(self) -> str:
        if self.kind == "concurrency":
            return f"{self.value:g} user" + "s" * (self.value != 1)
        return f"{self.value:g}/s"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What is sent, when, and what is asked of the answers.

    Args:
        loads: One run for each.
        max_concurrency: The most requests in flight in an open loop.
        timeout_seconds: For one request.
        extra: Fields of the body that every request has.

    Raises:
        OptionError: they make no sense, alone or together.
    """

    loads: tuple[Load, ...] = (Load("concurrency", DEFAULT_CONCURRENCY),)
    arrivals: str = "poisson"
    workload: WorkloadOptions = WorkloadOptions()
    text: Path | None = None
    endpoint: Endpoint = "chat"
    warmup_seconds: float = 5.0
    duration_seconds: float | None = None
    num_requests: int | None = None
    max_concurrency: int | None = None
    timeout_seconds: float = 600.0
    seed: int = 0
    targets: tuple[Target, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.endpoint not in PATHS:
            raise OptionError(f"endpoint {self.endpoint!r} is none of: {', '.join(PATHS)}.")
        if not self.loads or any(load.value <= 0 for load in self.loads):
            raise OptionError("a rate and a number of users must be above 0.")
        for load in self.loads:
            if load.kind == "concurrency" and load.value != int(load.value):
                raise OptionError(f"{load.value:g} users are not a whole number.")
        arrivals = parse_arrivals(self.arrivals)
        if isinstance(arrivals, Ramp) and self.span.end == math.inf:
            raise OptionError("a ramp needs --duration, so that it knows how steep to be.")

    @property
    def span(self) -> Span:
        """How long a run is. A number of requests alone sets no time."""
        duration = self.duration_seconds
        if duration is None:
            duration = DEFAULT_DURATION_SECONDS if self.num_requests is None else math.inf
        return Span(self.warmup_seconds, duration, self.num_requests)


def parse_loads(kind: Literal["rate", "concurrency"], text: str) -> tuple[Load, ...]:
    """The loads that a list such as `1,2,4` names.

    Raises:
        OptionError: it holds something else than numbers.
    """
    try:
        return tuple(Load(kind, float(part)) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{text!r} does not hold numbers separated by commas.") from None
