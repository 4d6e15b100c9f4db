"""Grammars inside the engine: compiled beside the step loop, followed token by token, made masks.

A mask depends on a sequence's own tokens alone, and it is known before the model has computed
anything. So the masks of a step are filled in one pass while the model runs, and a sequence without
a grammar waits for none of it.

n rows    V vocabulary
"""

from collections import OrderedDict
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import llguidance
import numpy as np
import numpy.typing as npt
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

from dijiang_runtime.engine.resources import available_cpus
from dijiang_runtime.engine.sequence import Sequence
from dijiang_runtime.grammar import GrammarCompiler
from dijiang_runtime.request import Grammar

MAX_CACHED_GRAMMARS = 64


class GrammarState:
    """Where one sequence's answer is in its grammar. Implements `sequence.Matcher`."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        """Begin at the start. `matcher` is left as it is."""
        self._matcher = matcher.deep_copy()
        self.forbidden: npt.NDArray[np.bool_] | None = None
        """Which tokens may not come next. Shape [V]. Filled by `GrammarMasks`, for one step."""

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

    @property
    def matcher(self) -> llguidance.LLMatcher:
        return self._matcher


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


class GrammarMasks:
    """Fills the masks of one step's rows, all in one pass, while something else computes."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._executor: llguidance.LLExecutor | None = None

    def begin(self, sequences: Seq[Sequence]) -> Future[None] | None:
        """Begin to fill `forbidden` of those that have a grammar; wait for the result to read it.

        None if no sequence has one.
        """
        states = [s.matcher for s in sequences if isinstance(s.matcher, GrammarState)]
        return self._pool.submit(self._fill, states) if states else None

    def _fill(self, states: Seq[GrammarState]) -> None:
        if self._executor is None:
            self._executor = llguidance.LLExecutor(num_threads=max(1, available_cpus() // 2))
        bits = allocate_token_bitmask(len(states), self._vocab_size)
        rows = [(state.matcher, i) for i, state in enumerate(states)]
        fill_next_token_bitmask_par(self._executor, rows, bits)
        allowed = np.unpackbits(
            bits.view(np.uint8), axis=1, count=self._vocab_size, bitorder="little"
        )
        for state, row in zip(states, allowed, strict=True):
            state.forbidden = row == 0
