"""What an answer must match, compiled against a tokenizer's bytes. Knows no torch.

llguidance does the parsing. Its grammars come from a client, so nothing here is reached before
`grammar_check`, in a process that may die of them, has compiled the same text once.
"""

import json
from functools import cached_property
from typing import TYPE_CHECKING

import llguidance

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import JSON_WHITE_SPACE, Grammar, GrammarKind
from dijiang_runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_flexible": True,
    "whitespace_pattern": JSON_WHITE_SPACE,
    "coerce_one_of": False,
    "lenient": False,
}
_MAX_REASON_CHARS = 200


class GrammarCompiler:
    """Compiles grammars for one model. The table of its tokens is made when it is first needed."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    def compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        """A matcher at the beginning of an answer. The interpreter lock is free meanwhile.

        Raises:
            InvalidRequestError: the grammar is wrong, not supported, or too large.
        """
        if not self._eos_token_ids:
            raise refusal(grammar, "the model has no token that ends a text.")
        try:
            source = _source(grammar)
        except (ValueError, RecursionError) as exc:
            raise refusal(grammar, str(exc)) from None
        matcher = llguidance.LLMatcher(self._tokens, source, log_level=0, limits=_limits())
        if matcher.is_error():
            raise refusal(grammar, matcher.get_error())
        return matcher

    def warm_up(self) -> None:
        """Make the table of tokens now."""
        assert self._tokens is not None

    @cached_property
    def _tokens(self) -> llguidance.LLTokenizer:
        table = _TokenTable(self._tokenizer, self._vocab_size, self._eos_token_ids)
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(table),
            n_vocab=self._vocab_size,
            eos_token=list(self._eos_token_ids),
        )


class _TokenTable:
    """The bytes of every token, the way llguidance asks for them.

    A special token, and an id without a token, is named rather than spelled: no text contains it.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]):
        self.eos_token_id = eos_token_ids[0]
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        for token_id in range(vocab_size):
            data = tokenizer.token_bytes(token_id)
            if not data or tokenizer.is_special(token_id) or token_id in eos_token_ids:
                data = f"<|{token_id}|>".encode()
                self.special_token_ids.append(token_id)
            self.tokens.append(data)
        special = set(self.special_token_ids)
        self._ids = {data: i for i, data in enumerate(self.tokens) if i not in special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        """Some tokens that spell `text`, the longest first."""
        ids: list[int] = []
        start = 0
        while start < len(text):
            for end in range(min(len(text), start + self._longest), start, -1):
                if (token_id := self._ids.get(text[start:end])) is not None:
                    ids.append(token_id)
                    break
            else:
                return ids
            start = end
        return ids


def refusal(grammar: Grammar, reason: str) -> InvalidRequestError:
    """The error for a grammar that cannot be used. Its text is the client's: only the start of
    the reason is told."""
    first = reason.strip().replace("Enable 'coerce_one_of' option to approximate", "Instead of")
    first = " ".join(first.split())[:_MAX_REASON_CHARS]
    return InvalidRequestError(f"{grammar.param} cannot be used: {first}", param=grammar.param)


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form. Raises `ValueError`."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return llguidance.LLMatcher.grammar_from_json_schema(
                grammar.text, overrides=_JSON_OPTIONS
            )
        case GrammarKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.CHOICE:
            # Lark spells strings as JSON does.
            choices = " | ".join(json.dumps(choice) for choice in json.loads(grammar.text))
            return llguidance.LLMatcher.grammar_from_lark(f"start: {choices}")
        case GrammarKind.GRAMMAR:
            return llguidance.grammar_from("grammar", grammar.text)
        case GrammarKind.LARK:
            return llguidance.LLMatcher.grammar_from_lark(grammar.text)


def _limits() -> llguidance.LLParserLimits:
    """What one grammar may cost: tens of megabytes, and a few milliseconds for each token."""
    return llguidance.LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=50_000,
        max_lexer_states=25_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )
