"""The bounds of a request's fields, as JSON schema says them.

The code checks them where it can say what to do, so the types do not have them. What depends on the
server's options is left out. A test holds both together.
"""

from typing import Any, Final

from dijiang_runtime.request import MAX_BAD_WORDS
from server.protocol.responses import MAX_METADATA
from server.protocol.sampling import CACHE_SALT, MAX_TIMEOUT_SECONDS
from server.protocol.tools import FUNCTION_NAME

Schema = dict[str, Any]

INT32, INT64 = 2**31, 2**63

_ID: Final[Schema] = {"minimum": 0}
_STOP: Final[Schema] = {"minLength": 1, "maxLength": 256}
_TEXTS: Final[Schema] = {"string": {"minLength": 1}, "array": {"minItems": 1}}

NUMBERS: Final[dict[str, Schema]] = {
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"minimum": -1, "maximum": INT32 - 1},
    "min_p": {"minimum": 0, "maximum": 1},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "repetition_penalty": {"minimum": 0.01, "maximum": 100},
    "seed": {"minimum": -INT64, "maximum": INT64 - 1},
    "priority": {"minimum": -INT32, "maximum": INT32 - 1},
    "timeout": {"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_SECONDS},
    "truncate_prompt_tokens": {"minimum": -1, "not": {"const": 0}},
    "n": {"minimum": 1},
    "best_of": {"minimum": 1},
    "min_tokens": {"minimum": 0},
    "max_tokens": {"minimum": 0},
    "max_completion_tokens": {"minimum": 1},
    "max_output_tokens": {"minimum": 1},
    "stream_interval": {"minimum": 1},
    "logprobs": {"minimum": 0},
    "top_logprobs": {"minimum": 0},
    "prompt_logprobs": {"minimum": 0},
}
"""What the numbers of a request may be."""

BOUNDS: Final[dict[str, dict[str, Schema]]] = {
    **{name: {"integer": bounds, "number": bounds} for name, bounds in NUMBERS.items()},
    "cache_salt": {"string": {"pattern": f"^{CACHE_SALT}$"}},
    "stop": {"string": _STOP, "array": {"maxItems": 16, "items": _STOP}},
    "stop_token_ids": {"array": {"items": _ID}},
    "allowed_token_ids": {"array": {"minItems": 1, "items": _ID}},
    "bad_words": {"array": {"maxItems": MAX_BAD_WORDS, "items": {"pattern": "\\S"}}},
    "logit_bias": {
        "object": {
            "maxProperties": 300,
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"minimum": -100, "maximum": 100},
        }
    },
    "messages": {"array": {"minItems": 1}},
    "metadata": {"object": {"maxProperties": MAX_METADATA}},
    "CompletionRequest.prompt": _TEXTS,
    "EmbeddingRequest.input": _TEXTS,
    "FunctionDefinition.name": {"string": {"pattern": f"^{FUNCTION_NAME}$"}},
}
"""What a field may be, by its name or the type's and its own, and by the JSON type of its value."""


def bounded(kind: str, schema: Schema) -> Schema:
    """The schema of a type of this name, with the bounds of its fields."""
    for name, field in schema.get("properties", {}).items():
        bounds = BOUNDS.get(f"{kind}.{name}") or BOUNDS.get(name, {})
        for form in field.get("anyOf", [field]):
            _merge(form, bounds.get(form.get("type"), {}))
    return schema


def _merge(schema: Schema, bounds: Schema) -> None:
    for key, value in bounds.items():
        if isinstance(value, dict) and isinstance(schema.get(key), dict):
            _merge(schema[key], value)
        else:
            schema[key] = value
