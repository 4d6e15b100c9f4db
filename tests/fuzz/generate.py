"""Malformed requests without end, each made from its number: wrong by construction."""

import json
import random
from typing import Any

from tests.fuzz.kinds import (
    CHAT,
    COMPLETIONS,
    OUT_OF_RANGE,
    REQUIRED,
    UNSUPPORTED,
    VALID,
    WRONG_TYPES,
    post,
    post_json,
)

FORBIDDEN_BYTES = bytes([*range(9), 11, 12, *range(14, 32), 0xC0, 0xC1, 0xF5, 0xFE, 0xFF])
"""Bytes that stand nowhere in JSON: not in UTF-8, or controls that a string must escape."""

HARMLESS: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.5, 1.0, 2.0),
    "top_p": (0.1, 1.0),
    "n": (1, 2),
    "seed": (0, 2**62, -5),
    "stop": ("x", ["a", "b"]),
    "stream": (True, False),
    "logit_bias": ({"5": 1.5},),
    "user": ("someone",),
}


def request(number: int) -> bytes:
    """The malformed request of this number."""
    rng = random.Random(number)
    path = rng.choice((COMPLETIONS, COMPLETIONS, CHAT, CHAT, *VALID))
    body = dict(VALID[path])
    if path in (COMPLETIONS, CHAT):
        for field in rng.sample(sorted(HARMLESS), rng.randint(0, 4)):
            body[field] = rng.choice(HARMLESS[field])
    how = rng.choice((_cut, _forbidden_byte, _trailing, _wrapped, _lacking, _media_type))
    if path in (COMPLETIONS, CHAT):
        how = rng.choice((how, _wrong_type, _out_of_range, _unsupported))
    return how(rng, path, body)


def _text(rng: random.Random, body: dict[str, Any]) -> bytes:
    """The JSON of a body, spelled in one of several ways."""
    items = list(body.items())
    rng.shuffle(items)
    indent = rng.choice((None, None, 1))
    return json.dumps(dict(items), ensure_ascii=rng.random() < 0.5, indent=indent).encode()


def _cut(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    text = _text(rng, body)
    return post(path, text[: rng.randrange(len(text))])


def _forbidden_byte(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    text = _text(rng, body)
    at = rng.randint(0, len(text))
    return post(path, text[:at] + bytes([rng.choice(FORBIDDEN_BYTES)]) + text[at:])


def _trailing(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    junk = bytes(rng.randrange(33, 127) for _ in range(rng.randint(1, 8)))
    text = _text(rng, body)
    return post(path, text + junk if rng.random() < 0.5 else junk + text)


def _wrapped(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    depth = rng.choice((1, 2, 50, 1000))
    return post(path, b"[" * depth + _text(rng, body) + b"]" * depth)


def _lacking(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    del body[REQUIRED[path]]
    return post(path, _text(rng, body))


def _media_type(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    kind = "".join(rng.choices("abcdefgh/;=- ", k=rng.randint(0, 20)))
    return post(path, _text(rng, body), f"Content-Type: {kind}")


def _wrong_type(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    field = rng.choice(sorted(WRONG_TYPES))
    body[field] = rng.choice(WRONG_TYPES[field])
    return post(path, _text(rng, body))


def _out_of_range(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    field = rng.choice(("n", "temperature", "top_p", "min_p", "presence_penalty", "seed", "any"))
    if field == "any":
        field = rng.choice(sorted(OUT_OF_RANGE))
        body[field] = rng.choice(OUT_OF_RANGE[field])
    elif field in ("n", "seed"):
        body[field] = (2**63 + rng.getrandbits(rng.randint(1, 200))) * rng.choice((1, -3))
    else:
        body[field] = rng.choice((-1, 1)) * 10 ** rng.uniform(0.5, 300)
    return post_json(path, body)


def _unsupported(rng: random.Random, path: str, body: dict[str, Any]) -> bytes:
    field = rng.choice(sorted(UNSUPPORTED))
    body[field] = UNSUPPORTED[field]
    return post(path, _text(rng, body))
