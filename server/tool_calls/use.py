"""What the tools of one request mean for its prompt, its grammar and its answer."""

import json
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import Grammar, GrammarKind
from dijiang_runtime.tokenizer import Tokenizer
from server.errors import UnsupportedParameterError
from server.protocol.tools import FunctionDefinition, ToolFields
from server.tool_calls.formats import ToolCallFormat
from server.tool_calls.grammar import ToolGrammar
from server.tool_calls.parser import ToolCallParser

ANY_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}

_ID_CHARS = string.ascii_letters + string.digits

_NO_TOOLS = (
    "tools cannot be used: this model's chat template does not know them, or writes calls in a way "
    "that the server does not know. Serve a model whose template does (with --tool-call-parser if "
    "its calls are not recognised), or describe the functions in a message and ask for JSON with "
    "response_format."
)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How an answer may call tools."""

    tools: Sequence[dict[str, Any]]
    """As a chat template reads them."""
    form: ToolCallFormat
    names: frozenset[str]
    """Of those that may be called."""
    grammar: Grammar | None
    shown_token_ids: tuple[int, ...]
    is_parallel: bool

    def parser(self) -> ToolCallParser:
        """A parser for one answer."""
        return ToolCallParser(self.form, self.names, is_parallel=self.is_parallel)

    def new_id(self) -> str:
        """An id for a call, the way the model's template wants it."""
        if self.form.id_length is None:
            return f"call_{secrets.token_hex(12)}"
        return "".join(secrets.choice(_ID_CHARS) for _ in range(self.form.id_length))


def plan_tools(
    body: ToolFields,
    answer: Grammar | None,
    form: ToolCallFormat | None,
    tokenizer: Tokenizer,
) -> ToolUse | None:
    """How the answer to a request may call tools; None where it may not.

    Args:
        answer: The form of the answer that the request asks for besides.
        form: How the model writes calls; None if it cannot, or nobody knows.

    Raises:
        InvalidRequestError: the tools cannot be used.
    """
    if not body.uses_tools:
        return None
    if form is None:
        raise UnsupportedParameterError(_NO_TOOLS, param="tools")
    functions = [tool.function for tool in body.tools or ()]
    parameters = {
        function.name: function.parameters or ANY_ARGUMENTS
        for function in functions
        if body.forced_name in (None, function.name)
    }
    is_parallel = body.parallel_tool_calls is not False and body.forced_name is None
    spell = ToolGrammar(form, tokenizer, parameters, is_parallel=is_parallel)
    markers = (tokenizer.token_to_id(token) for token in (form.trigger, form.ending) if token)
    return ToolUse(
        tools=[_plain(function) for function in functions],
        form=form,
        names=frozenset(parameters),
        grammar=_grammar(body, functions, answer, spell),
        shown_token_ids=tuple(i for i in markers if i is not None and tokenizer.is_special(i)),
        is_parallel=is_parallel,
    )


def _grammar(
    body: ToolFields,
    functions: Sequence[FunctionDefinition],
    answer: Grammar | None,
    spell: ToolGrammar,
) -> Grammar | None:
    """What the whole answer matches; None where it is free."""
    must_call = body.tool_choice == "required" or body.forced_name is not None
    if answer is not None:
        if must_call or answer.kind is not GrammarKind.JSON_SCHEMA:
            raise InvalidRequestError(
                f"{answer.param} cannot be combined with tools, except for a JSON schema with "
                "tool_choice auto.",
                param=answer.param,
            )
        return spell.calls_or_object(json.loads(answer.text), answer.param)
    if must_call:
        return spell.calls("tools")
    if any(function.strict for function in functions):
        return spell.calls_in_text("tools")
    return None


def _plain(function: FunctionDefinition) -> dict[str, Any]:
    """The function as a chat template reads it."""
    plain: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        plain["description"] = function.description
    plain["parameters"] = function.parameters or ANY_ARGUMENTS
    return {"type": "function", "function": plain}
