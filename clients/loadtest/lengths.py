"""How long prompts and answers are: distributions of a number of tokens."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from clients.loadtest.errors import OptionError
from clients.loadtest.specs import split_spec

FORMS = "N, uniform:LOW,HIGH, normal:MEAN,SD or lognormal:MEDIAN,SIGMA"


@dataclass(frozen=True, slots=True)
class Length:
    """A distribution of whole numbers, 1 or more."""

    spec: str
    draw: Callable[[Random], float]

    def sample(self, rng: Random) -> int:
        return max(1, round(self.draw(rng)))


def parse_length(spec: str) -> Length:
    """The distribution that a spec such as `uniform:64,256` names.

    `lognormal:128,0.6` has the median 128, and 0.6 is the standard deviation of the logarithm.

    Raises:
        OptionError: there is no such distribution, or its numbers make no sense.
    """
    if spec.strip().isdigit():
        spec = f"fixed:{spec.strip()}"
    match split_spec(spec):
        case "fixed", [number] if number >= 1:
            return Length(spec, lambda rng: number)
        case "uniform", [low, high] if 1 <= low <= high:
            return Length(spec, lambda rng: rng.randint(round(low), round(high)))
        case "normal", [mean, deviation] if mean >= 1 and deviation >= 0:
            return Length(spec, lambda rng: rng.gauss(mean, deviation))
        case "lognormal", [median, sigma] if median >= 1 and sigma >= 0:
            return Length(spec, lambda rng: rng.lognormvariate(math.log(median), sigma))
    raise OptionError(f"length {spec!r} is none of: {FORMS}.")
