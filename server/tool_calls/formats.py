"""How models write tool calls, which they learnt with their chat template."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallFormat:
    """One way to write calls, each a JSON object with a name and arguments.

    Some calls together are `prefix`, the calls with `joint` between each two, and `suffix`. They
    are written like this by grammars, and read with any white space around the objects.
    """

    trigger: str
    """What no text but a call holds."""
    prefix: str
    joint: str
    suffix: str
    opening: str = ""
    """Between the trigger and the first call."""
    separator: str = ""
    """Between two calls of one trigger."""
    ending: str = ""
    """After the last call of a trigger."""
    arguments: str = "arguments"
    """The key of the arguments."""
    is_bare: bool = False
    """Whether an answer that begins as an object may be a call, without a trigger."""
    id_length: int | None = None
    """Letters and digits of a call's id, where the template insists on a number of them."""


FORMATS: Final[Mapping[str, ToolCallFormat]] = {
    "hermes": ToolCallFormat(
        trigger="<tool_call>",
        prefix="<tool_call>\n",
        joint="\n</tool_call>\n<tool_call>\n",
        suffix="\n</tool_call>",
        ending="</tool_call>",
    ),
    "llama3_json": ToolCallFormat(
        trigger="<|python_tag|>",
        prefix="",
        joint="; ",
        suffix="",
        separator=";",
        arguments="parameters",
        is_bare=True,
    ),
    "mistral": ToolCallFormat(
        trigger="[TOOL_CALLS]",
        prefix="[TOOL_CALLS] [",
        joint=", ",
        suffix="]",
        opening="[",
        separator=",",
        ending="]",
        id_length=9,
    ),
}
"""By the names that `--tool-call-parser` and vLLM have for them."""


def detect_format(template: str) -> ToolCallFormat | None:
    """The format that a chat template writes earlier calls in, if it is one that we know."""
    if "<function=" in template or "[ARGS]" in template:
        return None  # Newer formats, which are no JSON objects.
    if "[TOOL_CALLS]" in template:
        return FORMATS["mistral"]
    if "<tool_call>" in template:
        return FORMATS["hermes"]
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return FORMATS["llama3_json"]
    return None
