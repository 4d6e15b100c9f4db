"""The slots, and the sequences that wait for one. Knows no torch."""

from collections.abc import Iterator, ValuesView

from dijiang_runtime.engine.admission import AdmissionRate, QueueLimits, check_queue
from dijiang_runtime.engine.sequence import Sequence


class SlotAllocator:
    """Hands out the slots 1 to `num_slots`. Slot 0 is scratch for padding and never handed out."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        # The lowest slot is taken first, so that an idle server touches little memory.
        self._free = list(range(num_slots, 0, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    def acquire(self) -> int:
        return self._free.pop()

    def release(self, slot: int) -> None:
        assert 0 < slot <= self.num_slots and slot not in self._free, f"slot {slot} is not taken"
        self._free.append(slot)


class WaitingQueue:
    """The sequences that wait for a slot, in order of arrival. Admission goes by priority first.

    Iterates over their request ids.
    """

    def __init__(self, slots: SlotAllocator, limits: QueueLimits) -> None:
        self._slots = slots
        self._limits = limits
        self._sequences: dict[str, Sequence] = {}
        self._num_tokens = 0
        self._rate = AdmissionRate()

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sequences)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def get(self, request_id: str) -> Sequence | None:
        return self._sequences.get(request_id)

    def values(self) -> ValuesView[Sequence]:
        return self._sequences.values()

    @property
    def num_queued(self) -> int:
        """Sequences that wait because no slot is free for them."""
        return max(0, len(self) - self._slots.num_free)

    @property
    def has_admissible(self) -> bool:
        """Whether somebody waits for nothing but a slot."""
        return any(self._admissible())

    def has_room_for(self, num_prompt_tokens: int) -> bool:
        """Whether a prompt of this length would be accepted now."""
        return self._has_spare_slot or self._limits.fits(
            [*self._queued_lengths(), num_prompt_tokens]
        )

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait.

        Raises:
            EngineOverloadedError: as much is waiting as the limits allow.
        """
        num_queued = len(self) - self._slots.num_free
        is_surely_let_in = self._limits.surely_fits(num_queued, self._num_tokens)
        if not (self._has_spare_slot or is_surely_let_in):
            # Where it comes first, another one waits in its place.
            *queued, last = self._queued_lengths(sequence)
            check_queue(queued, last, self._limits, self._rate)
        self._sequences[sequence.request_id] = sequence
        self._num_tokens += sequence.num_prompt_tokens

    def pop_next(self) -> Sequence | None:
        """Take out the one that has the next slot; None if nobody waits for nothing but a slot."""
        # The first of the lowest.
        sequence = min(self._admissible(), key=_priority, default=None)
        if sequence is not None:
            self.discard(sequence)
        return sequence

    def discard(self, sequence: Sequence) -> None:
        """Take a sequence out, if it waits."""
        if self._sequences.pop(sequence.request_id, None) is not None:
            self._num_tokens -= sequence.num_prompt_tokens

    def overdue(self, now: float) -> list[Sequence]:
        """Those that have waited as long as they may."""
        return [
            sequence
            for sequence in self._sequences.values()
            if (limit := sequence.request.max_queue_seconds) is not None
            and now - sequence.request.arrival_time >= limit
        ]

    def note_release(self, now: float) -> None:
        """Note that a slot was released, for those who are told when to come back."""
        self._rate.observe(now, saturated=bool(self))

    def _admissible(self) -> Iterator[Sequence]:
        """Those that wait for nothing but a slot."""
        return (sequence for sequence in self._sequences.values() if not sequence.awaits_grammar)

    @property
    def _has_spare_slot(self) -> bool:
        return len(self) < self._slots.num_free

    def _queued_lengths(self, *added: Sequence) -> list[int]:
        """Prompt lengths of those for whom no slot is free, in the order of admission."""
        waiting = sorted([*self._sequences.values(), *added], key=_priority)
        return [s.num_prompt_tokens for s in waiting][self._slots.num_free :]


def _priority(sequence: Sequence) -> int:
    return sequence.request.priority
