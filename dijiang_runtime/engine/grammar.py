"""Grammars inside the engine: compiled beside the step loop, followed token by token, made masks.

A mask depends on a sequence's own tokens alone.
"""

from collections import OrderedDict
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import llguidance

from dijiang_runtime.engine.masks import TokenMask
from dijiang_runtime.engine.sequence import Sequence
from dijiang_runtime.grammar import GrammarCompiler
from dijiang_runtime.request import Grammar

MAX_CACHED_GRAMMARS = 64


class GrammarState:
    """Where one sequence's answer is in its grammar. Implements `sequence.Matcher`."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        """Begin at the start. `matcher` is left as it is."""
        self._matcher = matcher.deep_copy()
        self.allowed: TokenMask | None = None
        """Which tokens may come next. Filled by `fill_masks`, for one step."""

    def copy(self) -> Self:
        """The same place in the same grammar, for a sequence that goes its own way from here."""
        return type(self)(self._matcher)

    def advance(self, token_id: int) -> None:
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped() and not self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether following the grammar went beyond its limits."""
        return self._matcher.is_error()

    def fill_mask(self, vocab_size: int) -> None:
        """Find out which tokens may come next."""
        if self.allowed is None:
            self.allowed = TokenMask.of_all(vocab_size)
        self._matcher.unsafe_compute_mask_ptr(self.allowed.address, self.allowed.num_bytes)


class GrammarCache:
    """Compiles grammars in a thread of its own, and keeps those that were used last."""

    def __init__(self, compiler: GrammarCompiler, *, max_entries: int = MAX_CACHED_GRAMMARS):
        self._compiler = compiler
        self._max_entries = max_entries
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._compiled: OrderedDict[tuple[str, str], Future[llguidance.LLMatcher]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._compiled)

    def compile(self, grammar: Grammar) -> Future[llguidance.LLMatcher]:
        """The compiled grammar, or its `InvalidRequestError`, when it is ready."""
        key = (grammar.kind.value, grammar.text)
        compiled = self._compiled.get(key)
        if compiled is None or (compiled.done() and compiled.exception() is not None):
            compiled = self._pool.submit(self._compiler.compile, grammar)
            self._compiled[key] = compiled
        self._compiled.move_to_end(key)
        while len(self._compiled) > self._max_entries:
            self._compiled.popitem(last=False)
        return compiled


def fill_masks(sequences: Seq[Sequence], vocab_size: int) -> None:
    """Fill `allowed` of those sequences that have a grammar, for the next token.

    In the thread of the step: handing this to another one costs more than doing it, since that
    one waits milliseconds for the interpreter lock.
    """
    for sequence in sequences:
        if isinstance(sequence.matcher, GrammarState):
            sequence.matcher.fill_mask(vocab_size)
