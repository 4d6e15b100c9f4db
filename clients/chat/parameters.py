"""`/params`: sampling parameters, read from what a user types."""

from typing import Any, cast

from clients.errors import ClientError
from clients.messages import Sampling

PARAMETERS: dict[str, type] = {
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
    "seed": int,
    "stop": str,
}
DEFAULT = "default"


class ParameterError(ClientError):
    """There is no such parameter, or it has no such value."""


def changed(sampling: Sampling, text: str) -> Sampling:
    """Sampling parameters with those in `text` set, `temperature 0.7` or `temperature=0.7 seed=1`.

    The value `default` leaves a parameter to the server again.

    Raises:
        ParameterError: what is typed is none.
    """
    new: dict[str, Any] = dict(sampling)
    for name, value in _pairs(text):
        if name not in PARAMETERS:
            raise ParameterError(f"No such parameter: {name}. There are {', '.join(PARAMETERS)}.")
        if value == DEFAULT:
            new.pop(name, None)
            continue
        try:
            new[name] = PARAMETERS[name](value)
        except ValueError as exc:
            kind = "a whole number" if PARAMETERS[name] is int else "a number"
            raise ParameterError(f"{name} is {kind}, not {value!r}.") from exc
    return cast(Sampling, new)


def _pairs(text: str) -> list[tuple[str, str]]:
    """The names and values in what was typed. A single value may hold spaces."""
    if "=" not in text.split(maxsplit=1)[0]:
        name, _, value = text.partition(" ")
        if not value.strip():
            raise ParameterError(f"Give {name} a value, or {DEFAULT}.")
        return [(name, value.strip())]
    pairs = [word.partition("=") for word in text.split()]
    return [(name, value) for name, _, value in pairs]


def shown(sampling: Sampling) -> str:
    """What is set and what is not, a line each."""
    return "\n".join(f"{name} = {sampling.get(name, DEFAULT)}" for name in PARAMETERS)
