"""What the scheduler decides, as the model runner reads it. Knows no torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from dijiang_runtime.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One sequence's share of a step: its next `num_tokens` tokens."""

    sequence: Sequence
    num_tokens: int
    source: "ScheduledSequence | None" = None
    """Set where nothing is computed: the sequence takes over the state of this one, which
    completes the same prompt in the same step."""

    @property
    def slot(self) -> int:
        assert self.sequence.slot is not None, "a scheduled sequence has a slot"
        return self.sequence.slot

    @property
    def completes_prompt(self) -> bool:
        """Whether the step's last token predicts the first or next output token."""
        return self.num_tokens >= self.sequence.num_uncomputed_prompt_tokens


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """What one step computes."""

    decodes: tuple[ScheduledSequence, ...] = ()
    prefills: tuple[ScheduledSequence, ...] = ()
    forks: tuple[ScheduledSequence, ...] = ()
    new_slots: tuple[int, ...] = ()
    """Slots handed out for this step. They hold a stranger's state until they are zeroed."""

    def __iter__(self) -> Iterator[ScheduledSequence]:
        yield from self.decodes
        yield from self.prefills
        yield from self.forks

    def __len__(self) -> int:
        return len(self.decodes) + len(self.prefills) + len(self.forks)

    @property
    def is_empty(self) -> bool:
        return not self.decodes and not self.prefills

    @property
    def num_prefill_tokens(self) -> int:
        return sum(item.num_tokens for item in self.prefills)
