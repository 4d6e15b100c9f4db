"""A model whose state is a hash of every token it has read, and decides the next one."""

import random
from dataclasses import dataclass, field

from dijiang_runtime.engine.scheduler_output import SchedulerOutput
from dijiang_runtime.engine.sequence import StepResult
from dijiang_runtime.request import RequestError

MASK = (1 << 64) - 1
EMPTY_STATE = 0
EOS = 0

# Short words, so that stop strings match across tokens; and characters of two and three bytes cut
# between tokens. Token 0 is EOS and has no text.
VOCABULARY: tuple[bytes, ...] = (
    b"",
    *(bytes([c]) for c in b"abcdefgh  .\n"),
    *(b"ab", b"bc", b" the", b"END", b"EN", b"D", b"ca"),
    *("é".encode()[:1], "é".encode()[1:], "é".encode(), "…".encode()[:2], "…".encode()[2:]),
    *(b"\xff", b"\xf0\x9f", "\ufffd".encode()),
)
VOCAB_SIZE = len(VOCABULARY)


def read(state: int, token_id: int) -> int:
    """The state after one more token."""
    z = (state * 0x9E3779B97F4A7C15 + token_id + 0x632BE59BD9B4E019) & MASK
    z = ((z ^ (z >> 31)) * 0xBF58476D1CE4E5B9) & MASK
    return z ^ (z >> 29)


def next_token(state: int) -> int:
    """The token that follows a state."""
    return (state >> 17) % VOCAB_SIZE


class SimulatedTokenizer:
    """The part of `Tokenizer` that the engine uses after a request is accepted."""

    vocab_size = VOCAB_SIZE

    def token_bytes(self, token_id: int) -> bytes:
        return VOCABULARY[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id == EOS


class EngineKilledError(BaseException):
    """The engine process dies in mid-step. Not an Exception: nothing in the engine survives it."""


@dataclass
class Faults:
    """How likely each fault is in one step."""

    row: float = 0.0
    """One sequence fails."""
    all_rows: float = 0.0
    """Every sequence of a step fails."""
    death: float = 0.0
    """The engine dies, half of its states written."""


@dataclass
class SimulatedRunner:
    """Runs plans as `ModelRunner` does: two states to a slot, committed where a step succeeded."""

    rng: random.Random
    faults: Faults
    num_slots: int
    rows: list[list[int]] = field(init=False)
    committed: list[int] = field(init=False)
    in_step: list = field(default_factory=list)
    """Called in the middle of each step: what arrives while the model computes."""
    failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        # Nobody's history: a slot that is used without being emptied gives itself away.
        self.rows = [[self.rng.getrandbits(64), self.rng.getrandbits(64)] for _ in self._slots()]
        self.committed = [0 for _ in self._slots()]

    def _slots(self) -> range:
        return range(self.num_slots + 1)

    def execute(self, plan: SchedulerOutput) -> list[StepResult]:
        for slot in plan.new_slots:
            self.rows[slot][self.committed[slot]] = EMPTY_STATE
        dies = self.rng.random() < self.faults.death
        all_fail = self.rng.random() < self.faults.all_rows
        results: list[StepResult] = []
        commits: list[int] = []
        for item in plan:
            if dies and self.rng.random() < 0.5:
                raise EngineKilledError
            if item.source is not None and item.source.slot not in commits:
                results.append(StepResult(deferred=True))
                continue
            fails = all_fail or self.rng.random() < self.faults.row
            results.append(self._failed(item) if fails else self._advance(item))
            if not fails:
                commits.append(item.slot)
        for callback in self.in_step:
            callback(plan)
        if dies:
            raise EngineKilledError
        for slot in commits:
            self.committed[slot] ^= 1
        return results

    def _advance(self, item) -> StepResult:
        sequence, slot = item.sequence, item.slot
        if item.source is not None:
            state = self._state_to_take_over(item.source.slot)
        else:
            state = self.rows[slot][self.committed[slot]]
            for token_id in sequence.tokens_to_compute(item.num_tokens):
                state = read(state, token_id)
        self.rows[slot][1 - self.committed[slot]] = state
        if not item.completes_prompt:
            return StepResult()
        return StepResult(token_id=next_token(state))

    def _state_to_take_over(self, slot: int) -> int:
        """What the step has written for the slot, and commits with the copy."""
        return self.rows[slot][1 - self.committed[slot]]

    def _failed(self, item) -> StepResult:
        self.failed.add(item.sequence.request_id)
        slot = item.slot
        self.rows[slot][1 - self.committed[slot]] = self.rng.getrandbits(64)
        return StepResult(error=RequestError("RequestFailedError", "simulated"))
