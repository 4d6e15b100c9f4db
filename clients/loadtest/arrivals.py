"""When requests are sent in an open loop: endless increasing offsets in seconds, at a mean rate.

An open loop sends when the plan says so, however slowly the server answers, as independent users
do. All processes have the same mean rate, so that only their shape differs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Protocol

from clients.loadtest.errors import OptionError
from clients.loadtest.specs import split_spec


class Arrivals(Protocol):
    """One arrival process."""

    def offsets(self, rate: float, span_seconds: float, rng: Random) -> Iterator[float]:
        """Send times from 0 on. `rate` is in requests per second; a ramp lasts for the span."""


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent users: exponential gaps."""

    def offsets(self, rate: float, span_seconds: float, rng: Random) -> Iterator[float]:
        at = 0.0
        while True:
            at += rng.expovariate(rate)
            yield at


@dataclass(frozen=True, slots=True)
class Constant:
    """Equal gaps."""

    def offsets(self, rate: float, span_seconds: float, rng: Random) -> Iterator[float]:
        index = 0
        while True:
            yield index / rate
            index += 1


@dataclass(frozen=True, slots=True)
class Bursty:
    """Gamma-distributed gaps, whose standard deviation is `variation` times their mean.

    1 is Poisson; above it requests come in bursts, below it they are more even.
    """

    variation: float

    def offsets(self, rate: float, span_seconds: float, rng: Random) -> Iterator[float]:
        square = self.variation**2
        at = 0.0
        while True:
            at += rng.gammavariate(1 / square, square / rate)
            yield at


@dataclass(frozen=True, slots=True)
class OnOff:
    """Poisson arrivals for `on_seconds`, then silence for `off_seconds`, over and over."""

    on_seconds: float
    off_seconds: float

    def offsets(self, rate: float, span_seconds: float, rng: Random) -> Iterator[float]:
        period = self.on_seconds + self.off_seconds
        busy_rate = rate * period / self.on_seconds
        for busy in Poisson().offsets(busy_rate, span_seconds, rng):
            periods, rest = divmod(busy, self.on_seconds)
            yield periods * period + rest


@dataclass(frozen=True, slots=True)
class Ramp:
    """Poisson arrivals whose rate climbs linearly from `start_rate` over the span, and stays."""

    start_rate: float

    def offsets(self, rate: float, span_seconds: float, rng: Random) -> Iterator[float]:
        # Arrivals of rate 1, put where the expected number of ours equals their offset.
        slope = (rate - self.start_rate) / span_seconds
        at_end = (self.start_rate + rate) / 2 * span_seconds
        for expected in Poisson().offsets(1.0, span_seconds, rng):
            if expected >= at_end:
                yield span_seconds + (expected - at_end) / rate
            else:
                root = math.sqrt(self.start_rate**2 + 2 * slope * expected)
                yield 2 * expected / (self.start_rate + root)


FORMS = "poisson, constant, bursty:VARIATION, onoff:ON,OFF (seconds) or ramp:START_RATE"


def parse_arrivals(spec: str) -> Arrivals:
    """The arrival process that a spec such as `bursty:3` names.

    Raises:
        OptionError: there is no such process, or its numbers make no sense.
    """
    match split_spec(spec):
        case "poisson", []:
            return Poisson()
        case "constant", []:
            return Constant()
        case "bursty", [variation] if variation > 0:
            return Bursty(variation)
        case "onoff", [on, off] if on > 0 and off >= 0:
            return OnOff(on, off)
        case "ramp", [start] if start >= 0:
            return Ramp(start)
    raise OptionError(f"arrivals {spec!r} are none of: {FORMS}.")
