"""Options written as `name:number,number`, as in `uniform:64,256`."""

import math

from clients.loadtest.errors import OptionError


def split_spec(spec: str) -> tuple[str, list[float]]:
    """The name before the colon and the numbers after it.

    Raises:
        OptionError: what follows the colon is not finite numbers.
    """
    name, _, rest = spec.partition(":")
    return name.strip(), parse_numbers(rest, spec) if rest else []


def parse_numbers(text: str, spec: str | None = None) -> list[float]:
    """Numbers separated by commas. `spec` is what the message quotes."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{spec or text!r} does not hold numbers separated by commas.") from None
    if not all(math.isfinite(number) for number in numbers):
        raise OptionError(f"{spec or text!r} holds a number that is not finite.")
    return numbers


UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_seconds(text: str) -> float:
    """A duration such as `200ms`, `1.5s` or `2` (seconds)."""
    for unit, factor in UNITS.items():
        digits = text.removesuffix(unit)
        if digits != text and digits[-1:].isdigit():
            return _positive(digits, text) * factor
    return _positive(text, text)


def _positive(digits: str, text: str) -> float:
    try:
        seconds = float(digits)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise OptionError(f"{text!r} is not a duration such as 200ms or 1.5s.")
    return seconds
