"""Grammars of answers that call tools, in Lark as llguidance has it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dijiang_runtime.request import JSON_WHITE_SPACE, Grammar, GrammarKind
from dijiang_runtime.tokenizer import Tokenizer
from server.tool_calls.formats import ToolCallFormat

MAX_CALLS = 16
"""Calls in one answer that a grammar holds."""

_TEXT = r"TEXT: /(.|\n)*/"
_NO_OBJECT = r"/(\s*[^{\s](.|\n)*)?/"

Parameters = Mapping[str, Mapping[str, Any]]
"""The schema of the arguments of each tool, by its name."""


class ToolGrammar:
    """Spells grammars of calls in one format, for one tokenizer."""

    def __init__(
        self,
        form: ToolCallFormat,
        tokenizer: Tokenizer,
        parameters: Parameters,
        *,
        is_parallel: bool,
    ) -> None:
        self._form = form
        self._tokenizer = tokenizer
        self._parameters = parameters
        self._max_more = MAX_CALLS - 1 if is_parallel else 0

    def calls(self, param: str) -> Grammar:
        """An answer of one call or more, and nothing else."""
        return self._grammar(["start: calls", *self._calls()], param)

    def calls_in_text(self, param: str) -> Grammar:
        """An answer of any text, whose calls have arguments that match their schemas."""
        form = self._form
        if form.is_bare:
            rules = ["start: calls | other", f"other: {_NO_OBJECT}", *self._calls()]
            return self._grammar(rules, param)
        before, _, after = form.prefix.partition(form.trigger)
        assert not before, "a prefix begins with its trigger"
        is_special = self._special_id(form.trigger) is not None
        trigger = self._spelling(form.trigger)
        num_blocks = 1 if form.separator else self._max_more + 1
        more = self._more if form.separator else []
        rules = [
            f"start: block{{0,{num_blocks}}} tail",
            "tail: TEXT",
            _TEXT,
            f"head: TEXT {trigger}" if is_special else f"head[lazy]: TEXT {trigger}",
            " ".join(
                ["block: head", self._spelling(after), "call", *more, self._spelling(form.suffix)]
            ),
            *self._each_call(),
        ]
        return self._grammar(rules, param)

    def calls_or_object(self, schema: Mapping[str, Any], param: str) -> Grammar:
        """An answer of calls, or one that matches a schema."""
        rules = ["start: calls | answer", f"answer: {_json(schema)}", *self._calls()]
        return self._grammar(rules, param)

    def _calls(self) -> list[str]:
        form = self._form
        parts = [self._spelling(form.prefix), "call", *self._more, self._spelling(form.suffix)]
        return ["calls: " + " ".join(parts), *self._each_call()]

    @property
    def _more(self) -> list[str]:
        """The calls after the first. No range may end with 0."""
        return [f"more{{0,{self._max_more}}}"] if self._max_more else []

    def _each_call(self) -> list[str]:
        """Every tool has a schema of its own, so that references within it stay where they are."""
        names = range(len(self._parameters))
        rules = [f"more: {self._spelling(self._form.joint)} call"] if self._max_more else []
        rules.append("call: " + " | ".join(f"call_{i}" for i in names))
        for i, (name, schema) in enumerate(self._parameters.items()):
            begin = json.dumps(f'{{"name": "{name}", "{self._form.arguments}": ')
            rules += [f'call_{i}: {begin} arguments_{i} "}}"', f"arguments_{i}: {_json(schema)}"]
        return rules

    def _spelling(self, text: str) -> str:
        """A text as Lark spells it; a special token in it is named by its id."""
        trigger, ending = self._form.trigger, self._form.ending
        for token in (trigger, ending):
            token_id = self._special_id(token) if token else None
            if token_id is not None and token in text:
                before, _, after = text.partition(token)
                parts = (self._spelling(before), f"<[{token_id}]>", self._spelling(after))
                return " ".join(part for part in parts if part)
        return json.dumps(text) if text else ""

    def _special_id(self, token: str) -> int | None:
        token_id = self._tokenizer.token_to_id(token)
        return token_id if token_id is not None and self._tokenizer.is_special(token_id) else None

    def _grammar(self, rules: Sequence[str], param: str) -> Grammar:
        return Grammar(GrammarKind.LARK, "\n".join(["%llguidance {}", *rules]) + "\n", param)


def _json(schema: Mapping[str, Any]) -> str:
    """A schema inside a grammar. How white space goes is never the client's to say."""
    options = {
        "whitespace_flexible": True,
        "whitespace_pattern": JSON_WHITE_SPACE,
        "coerce_one_of": False,
        "lenient": False,
    }
    return "%json " + json.dumps({**schema, "x-guidance": options})
