"""From the messages of a chat to the text that the model continues.

A template is a program, so it comes from the model's folder; from a request only where the operator
trusts whoever may send one. A model without a template is a base model, which continues text; see
`DEFAULT_TEMPLATE`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from jinja2 import TemplateError, TemplateSyntaxError

from dijiang_runtime.errors import InvalidRequestError, ModelLoadError
from dijiang_runtime.tokenizer import Tokenizer
from server.errors import UnsupportedParameterError
from server.template_environment import compile_template, variables_of

Message = dict[str, Any]

# For a model that was only taught to continue text. What the assistant wrote follows directly on
# what came before it, because that is what the model continued; everybody else begins a new
# paragraph. So "Once upon a time" is answered with the rest of the story, the next message is a
# paragraph that the story goes on from, and an answer that is sent back as history is the same
# tokens that the model wrote. No role is ever spelled out: such a model would write roles too.
DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
  {%- if not loop.first and message["role"] != "assistant" -%}{{ "\\n\\n" }}{%- endif -%}
  {{- message["content"] -}}
{%- endfor -%}"""

# Unicode noncharacters: they mean nothing in text, so one of them is always free to be a mark.
_MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A piece of a rendered prompt."""

    text: str
    allow_special: bool
    """Whether special tokens spelled in the text are meant: only the template may mean them."""


RESERVED_VARIABLES = frozenset(
    {"messages", "add_generation_prompt", "continue_final_message", "tools", "documents"}
    | {"bos_token", "eos_token", "chat_template"}
)
"""What a request may not set by itself: the server does, or nobody."""


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What a template is told beside the messages."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    """A request's own template, instead of the model's."""


class ChatTemplate:
    """A compiled chat template, and how its result becomes tokens."""

    def __init__(self, tokenizer: Tokenizer, source: str | None) -> None:
        """Compile a template; None is a base model's.

        Raises:
            TemplateSyntaxError: it is not valid Jinja.
        """
        self.is_default = source is None
        self.source = source or DEFAULT_TEMPLATE
        self._tokenizer = tokenizer
        # The default template means no special token at all, so none has to be told apart.
        self._special = None if source is None else _special_pattern(tokenizer.special_tokens)
        self._knows_developer = source is not None and "developer" in source
        self._template = compile_template(self.source)
        self.knows_tools = "tools" in variables_of(self.source)

    @classmethod
    def of_model(cls, tokenizer: Tokenizer) -> Self:
        """The template in the model's folder.

        Raises:
            ModelLoadError: it is not valid Jinja.
        """
        try:
            return cls(tokenizer, tokenizer.chat_template)
        except TemplateSyntaxError as exc:
            raise ModelLoadError(f"The model's chat template is not valid Jinja: {exc}.") from exc

    @classmethod
    def of_request(cls, tokenizer: Tokenizer, source: str) -> Self:
        """A template that a client has sent.

        Raises:
            InvalidRequestError: it is not valid Jinja.
        """
        try:
            return cls(tokenizer, source)
        except TemplateSyntaxError as exc:
            raise InvalidRequestError(
                f"chat_template is not valid Jinja: {exc}.", param="chat_template"
            ) from exc

    def encode(
        self,
        messages: Sequence[Message],
        options: PromptOptions = PromptOptions(),
        *,
        max_chars: int,
    ) -> list[int]:
        """The prompt's token ids.

        Raises:
            InvalidRequestError: the template refuses the messages, or the result is too long.
        """
        parts = self.render(messages, options)
        if sum(len(part.text) for part in parts) > max_chars:
            raise InvalidRequestError(
                f"messages must not render to more than {max_chars} characters.", param="messages"
            )
        ids: list[int] = []
        for i, part in enumerate(parts):
            # A template of the model's own spells BOS itself, where it wants one.
            ids += self._tokenizer.encode(
                part.text,
                add_special_tokens=self.is_default and i == 0,
                allow_special=part.allow_special and not self.is_default,
            )
        return ids

    def render(
        self,
        messages: Sequence[Message],
        options: PromptOptions = PromptOptions(),
    ) -> list[PromptPart]:
        """The prompt's text, cut where a user spelled a special token."""
        if not self.knows_tools:
            _check_without_tools(messages, options)
        mark, end = _free_marks(messages, options)
        prepared = [self._prepared(message, mark) for message in messages]
        if options.continue_final_message:
            prepared[-1]["content"] += end
        variables = self._marked(options.variables, mark)
        try:
            text = self._template.render(
                {
                    **variables,
                    "messages": prepared,
                    "add_generation_prompt": options.add_generation_prompt,
                    # None rather than undefined: templates ask `tools is not none`.
                    "tools": self._marked(options.tools, mark) if options.tools else None,
                    "documents": None,
                    "bos_token": self._spelling(self._tokenizer.bos_id),
                    "eos_token": self._spelling(next(iter(self._tokenizer.eos_ids), None)),
                }
            )
        except TemplateError as exc:
            raise InvalidRequestError(
                f"The chat template refuses these messages: {exc}", param="messages"
            ) from exc
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as exc:
            raise InvalidRequestError(
                "The chat template cannot render these messages.", param="messages"
            ) from exc
        if options.continue_final_message:
            text = _before(end, text)
        # Pieces at even places are the template's and ordinary text; those between a pair of marks
        # are special tokens that somebody typed.
        pieces = text.split(mark)
        return [PromptPart(piece, i % 2 == 0) for i, piece in enumerate(pieces) if piece]

    def _prepared(self, message: Message, mark: str) -> Message:
        """The message with every special token in it between two marks."""
        role = message["role"]
        if role == "developer" and not self._knows_developer:
            role = "system"
        prepared = {name: self._marked(value, mark) for name, value in message.items()}
        return {**prepared, "role": role}

    def _marked(self, value: Any, mark: str) -> Any:
        """A value of JSON with every special token in its texts between two marks."""
        if self._special is None:
            return value
        if isinstance(value, str):
            return mark.join(self._special.split(value))
        if isinstance(value, Mapping):
            return {self._marked(k, mark): self._marked(v, mark) for k, v in value.items()}
        return [self._marked(v, mark) for v in value] if isinstance(value, list) else value

    def _spelling(self, token_id: int | None) -> str:
        return "" if token_id is None else self._tokenizer.id_to_token(token_id) or ""


def _check_without_tools(messages: Sequence[Message], options: PromptOptions) -> None:
    """Raise for tools, calls and their results, which such a template leaves out."""
    if options.tools:
        raise UnsupportedParameterError(
            "tools cannot be used: this chat template does not know them.", param="tools"
        )
    for i, message in enumerate(messages):
        name = "role" if message["role"] == "tool" else "tool_calls"
        if name == "role" or "tool_calls" in message:
            raise UnsupportedParameterError(
                f"messages[{i}].{name} cannot be used: this chat template does not know "
                "tools. Tell what a tool said in a user's message.",
                param=f"messages[{i}].{name}",
            )


def _free_marks(messages: Sequence[Message], options: PromptOptions) -> tuple[str, str]:
    """Two characters that are nowhere in what was sent."""
    sent = (messages, options.tools, options.variables)
    texts = [json.dumps(part, ensure_ascii=False) for part in sent]
    free = [mark for mark in _MARKS if not any(mark in text for text in texts)]
    if len(free) < 2:
        raise InvalidRequestError(
            "messages must not hold all Unicode noncharacters.", param="messages"
        )
    return free[0], free[1]


def _before(end: str, text: str) -> str:
    """The prompt up to the end of the last message, which the template may have repeated."""
    head, found, _ = text.rpartition(end)
    if not found:
        raise InvalidRequestError(
            "The chat template does not write the last message as it was sent, so that "
            "nothing can go on with it.",
            param="continue_final_message",
        )
    return head.replace(end, "")


def _special_pattern(tokens: Sequence[str]) -> re.Pattern[str] | None:
    """Splits a text into ordinary pieces at even places and special tokens at odd ones."""
    return re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None
