"""What an answer must look like: the fields that ask for it, and how they become a `Grammar`."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import Grammar, GrammarKind
from server.protocol.common import RequestModel

MAX_DEPTH = 64
"""Levels of a schema."""

ANY_OBJECT: dict[str, Any] = {"type": "object"}


class JsonSchemaFormat(RequestModel):
    """`response_format.json_schema`."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    """Makes no difference: a schema always holds strictly."""


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """With `json_object`, as llama.cpp has it."""


class StructuredOutputs(RequestModel):
    """vLLM's way to say it. Exactly one of them."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(max_length=10_000, fail_fast=True)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StructureFields(RequestModel):
    """The fields that completions and chat have for it."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    grammar: str | None = None
    """llama.cpp's name: a grammar in GBNF."""
    json_schema: dict[str, Any] | None = None
    """llama.cpp's name."""

    def read_grammar(self) -> Grammar | None:
        """What the answer must match, if anything.

        Raises:
            InvalidRequestError: it is said twice, or not in full.
        """
        found = [*self._from_response_format(), *self._from_structured_outputs()]
        if self.grammar is not None:
            found.append(Grammar(GrammarKind.GRAMMAR, self.grammar, "grammar"))
        if self.json_schema is not None:
            found.append(schema_grammar(self.json_schema, "json_schema"))
        if len(found) > 1:
            raise InvalidRequestError(
                "An answer can have one form only: give one of "
                f"{', '.join(grammar.param for grammar in found)}.",
                param=found[1].param,
            )
        return found[0] if found else None

    def _from_response_format(self) -> list[Grammar]:
        wanted, param = self.response_format, "response_format"
        if wanted is None or wanted.type == "text":
            return []
        if wanted.type == "json_object":
            return [schema_grammar(wanted.schema_ or ANY_OBJECT, param)]
        if wanted.json_schema is None or wanted.json_schema.schema_ is None:
            missing = f"{param}.json_schema.schema"
            raise InvalidRequestError(f"{missing} is required.", param=missing)
        return [schema_grammar(wanted.json_schema.schema_, f"{param}.json_schema.schema")]

    def _from_structured_outputs(self) -> list[Grammar]:
        wanted, param = self.structured_outputs, "structured_outputs"
        if wanted is None:
            return []
        if wanted.model_extra:
            raise InvalidRequestError(
                f"{param} must hold one of json, regex, choice, grammar and json_object.",
                param=param,
            )
        found = []
        if wanted.json_ is not None:
            found.append(schema_grammar(wanted.json_, f"{param}.json"))
        if wanted.regex is not None:
            found.append(Grammar(GrammarKind.REGEX, wanted.regex, f"{param}.regex"))
        if wanted.choice is not None:
            if not wanted.choice or "" in wanted.choice:
                raise InvalidRequestError(
                    f"{param}.choice must hold at least one string, and none that is empty.",
                    param=f"{param}.choice",
                )
            text = json.dumps(wanted.choice)
            found.append(Grammar(GrammarKind.CHOICE, text, f"{param}.choice"))
        if wanted.grammar is not None:
            found.append(Grammar(GrammarKind.GRAMMAR, wanted.grammar, f"{param}.grammar"))
        if wanted.json_object:
            found.append(schema_grammar(ANY_OBJECT, f"{param}.json_object"))
        if len(found) != 1:
            raise InvalidRequestError(
                f"{param} must hold exactly one of json, regex, choice, grammar and json_object.",
                param=param,
            )
        return found


def schema_grammar(schema: str | dict[str, Any], param: str) -> Grammar:
    """The grammar of what a JSON schema describes.

    Raises:
        InvalidRequestError: it is no JSON object, or nested too deeply.
    """
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{param} must be a JSON schema, an object.", param=param)
    check_depth(value, param)
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value), param)


def check_depth(value: Any, param: str) -> None:
    """Raise `InvalidRequestError` for a value of JSON with more levels than we follow."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (
                item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            )
        ]
        if not level:
            return
    raise InvalidRequestError(f"{param} must not have more than {MAX_DEPTH} levels.", param=param)
