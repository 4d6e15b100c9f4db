"""Decides what each step computes. A pure state machine: it knows no torch, no clock, no text.

A sequence costs one slot for its whole life, so admission is the only question ever asked about
memory: nothing is preempted, and whoever is admitted finishes.
"""

import logging
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from dijiang_runtime.config import CHUNK_SIZE
from dijiang_runtime.engine.admission import QueueLimits
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence, SequenceStatus, StepResult
from dijiang_runtime.engine.slots import SlotAllocator, WaitingQueue
from dijiang_runtime.errors import QueueTimeoutError
from dijiang_runtime.request import FinishReason, RequestError

logger = logging.getLogger(__name__)

_QUEUE_TIMEOUT = RequestError(QueueTimeoutError.__name__, str(QueueTimeoutError()))


class Scheduler:
    """Owns every sequence from its arrival to its end, and the slots. Called by the engine.

    `schedule` opens a step and `update` closes it. A sequence that is aborted in between is
    fenced: it keeps its slot until the step that may still write it is over.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        max_batched_tokens: int,
        limits: QueueLimits,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.slots = SlotAllocator(num_slots)
        self.max_batched_tokens = max_batched_tokens
        self.eos_token_ids = eos_token_ids
        self.waiting = WaitingQueue(self.slots, limits)
        # In order of admission.
        self.running: dict[str, Sequence] = {}
        self._in_flight: SchedulerOutput | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def only_awaits_grammars(self) -> bool:
        """Whether there is work, but none that a step could do now."""
        return bool(self.waiting) and not self.running and not self.waiting.has_admissible

    def knows(self, request_id: str) -> bool:
        """Whether a sequence of this id waits or runs."""
        return request_id in self.waiting or request_id in self.running

    def has_room_for(self, num_prompt_tokens: int) -> bool:
        """Whether a prompt of this length would be accepted now."""
        return self.waiting.has_room_for(num_prompt_tokens)

    def add(self, sequence: Sequence) -> None:
        """Accept a sequence.

        Raises:
            EngineOverloadedError: as much is waiting as the limits allow.
        """
        self.waiting.add(sequence)

    def schedule(self, now: float) -> SchedulerOutput:
        """Choose the tokens of the next step.

        Every sequence past its prompt decodes one token, so a long prompt can delay a stream by
        one step at most. The rest of the token budget goes to prompts, first admitted first.
        """
        assert self._in_flight is None, "the last step is not closed"
        new_slots = self._admit(now)
        decodes = [ScheduledSequence(s, 1) for s in self.running.values() if not s.is_prefilling]
        # However many sequences decode, the oldest prompt moves on by a chunk.
        budget = max(self.max_batched_tokens - len(decodes), CHUNK_SIZE)
        prefills = []
        followers = self._followers()
        for sequence in self.running.values():
            if sequence.request_id in followers:
                continue
            if num_tokens := _prefill_chunk(sequence, budget):
                prefills.append(ScheduledSequence(sequence, num_tokens))
                budget -= num_tokens
        forks = _forks(prefills, followers.values())
        plan = SchedulerOutput(tuple(decodes), tuple(prefills), forks, new_slots)
        self._in_flight = None if plan.is_empty else plan
        return plan

    def update(self, plan: SchedulerOutput, results: Seq[StepResult], now: float) -> None:
        """Close a step: take over its tokens, and finish the sequences that they end."""
        self._in_flight = None
        for item, result in zip(plan, results, strict=True):
            sequence = item.sequence
            if sequence.fenced:
                self.finish(sequence, FinishReason.ABORT, now)
            elif result.error is not None:
                sequence.error = result.error
                self.finish(sequence, FinishReason.ERROR, now)
            elif not result.deferred:
                self._advance(item, result, now)

    def expire(self, now: float) -> list[Sequence]:
        """End the sequences that have waited for a slot as long as they may, and return them."""
        expired = self.waiting.overdue(now)
        for sequence in expired:
            sequence.error = _QUEUE_TIMEOUT
            self.finish(sequence, FinishReason.ERROR, now)
        return expired

    def abort(self, request_id: str, now: float) -> Sequence | None:
        """End a sequence early, wherever it is, and return it; None if it is not here."""
        sequence = self.waiting.get(request_id) or self.running.get(request_id)
        if sequence is None:
            return None
        if self._in_flight is not None and any(i.sequence is sequence for i in self._in_flight):
            sequence.fenced = True
        else:
            self.finish(sequence, FinishReason.ABORT, now)
        return sequence

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        stop_reason: str | int | None = None,
    ) -> None:
        """End a sequence and free its slot. Ending it again only changes the reason."""
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        sequence.finished_time = now
        sequence.status = SequenceStatus.FINISHED
        self.waiting.discard(sequence)
        self.running.pop(sequence.request_id, None)
        if sequence.slot is not None:
            self.waiting.note_release(now)
            self.slots.release(sequence.slot)
            sequence.slot = None

    def _admit(self, now: float) -> tuple[int, ...]:
        slots = []
        while self.slots.num_free and (sequence := self.waiting.pop_next()) is not None:
            sequence.slot = self.slots.acquire()
            sequence.status = SequenceStatus.RUNNING
            sequence.scheduled_time = now
            self.running[sequence.request_id] = sequence
            slots.append(sequence.slot)
            logger.debug("request %s got slot %d", sequence.request_id, sequence.slot)
        return tuple(slots)

    def _advance(self, item: ScheduledSequence, result: StepResult, now: float) -> None:
        sequence, sampling = item.sequence, item.sequence.request.sampling
        sequence.num_computed_tokens += item.num_tokens
        if item.source is not None:
            sequence.num_copied_tokens = item.num_tokens
        sequence.pooled = result.pooled
        if sequence.is_prefilling:
            return
        if result.token_id is not None:
            if not sequence.output_token_ids:
                sequence.first_token_time = now
            sequence.append(result.token_id)
        # A stop token ends the answer once min_tokens others have come before it.
        if len(sequence.output_token_ids) > sampling.min_tokens:
            if result.token_id in sampling.stop_token_ids:
                self.finish(sequence, FinishReason.STOP, now, stop_reason=result.token_id)
                return
            if result.token_id in self.eos_token_ids and not sampling.ignore_eos:
                self.finish(sequence, FinishReason.STOP, now)
                return
        if sequence.matcher is not None and sequence.matcher.is_complete:
            sequence.completed_grammar = True
            self.finish(sequence, FinishReason.STOP, now)
        elif len(sequence.output_token_ids) >= sampling.max_tokens:
            self.finish(sequence, FinishReason.LENGTH, now)

    def _followers(self) -> dict[str, Sequence]:
        """Those whose prompt is being computed for another of their group, admitted before them.

        Should that one end early, the next of them computes it.
        """
        leaders: dict[str, Sequence] = {}
        followers = {}
        for sequence in self.running.values():
            group = sequence.request.group
            if group is None or not sequence.is_prefilling:
                continue
            if leaders.setdefault(group, sequence) is not sequence:
                followers[sequence.request_id] = sequence
        return followers


def _forks(
    prefills: Seq[ScheduledSequence], followers: Iterable[Sequence]
) -> tuple[ScheduledSequence, ...]:
    """The followers of those whose prompts are complete after this step."""
    complete = {item.sequence.request.group: item for item in prefills if item.completes_prompt}
    forks = []
    for follower in followers:
        source = complete.get(follower.request.group)
        # Whoever is in the wrong group computes a prompt of its own when the others have theirs.
        if source is not None and source.sequence.has_same_prompt(follower):
            forks.append(ScheduledSequence(follower, follower.num_prompt_tokens, source))
    return tuple(forks)


def _prefill_chunk(sequence: Sequence, budget: int) -> int:
    """How many prompt tokens to compute within `budget`.

    Cuts fall on absolute multiples of the chunk size, so that the arithmetic, and with it the
    answer, does not depend on how the prompt was split.
    """
    remaining = sequence.num_uncomputed_prompt_tokens
    if remaining <= budget:
        return remaining
    start = sequence.num_computed_tokens
    return max(0, (start + budget) // CHUNK_SIZE * CHUNK_SIZE - start)
