"""Known bugs, planted one at a time. A simulation that misses one proves little by finding none.

Each mutation replaces one method of the real code by a wrong one, for as long as its context is
open. Most are bugs that other engines have shipped.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from dijiang_runtime.engine import (
    detokenizer,
    engine,
    output_processor,
    scheduler,
    sequence,
    slots,
)
from dijiang_runtime.engine.admission import QueueLimits
from dijiang_runtime.request import FinishReason
from tests.simulation import model

Mutation = Callable[[], Any]
MUTATIONS: dict[str, Mutation] = {}

_Scheduler = scheduler.Scheduler
_Slots = slots.SlotAllocator
_Waiting = slots.WaitingQueue


def mutation(name: str) -> Callable[[Callable[[], Iterator[None]]], Mutation]:
    """Register a generator function that plants a bug, yields, and lets it be removed."""

    def register(function: Callable[[], Iterator[None]]) -> Mutation:
        MUTATIONS[name] = contextmanager(function)
        return MUTATIONS[name]

    return register


def replaces(name: str, owner: type, method: str) -> Callable[[Callable], Callable]:
    """Register a bug that is one wrong method. It receives the right one as its first argument."""

    def register(wrong: Callable) -> Callable:
        right = owner.__dict__[method]

        def plant() -> Iterator[None]:
            if isinstance(right, property):
                planted: Any = property(lambda self: wrong(right.fget, self))
            else:

                def planted(self: Any, *args: Any, **kwargs: Any) -> Any:
                    return wrong(right, self, *args, **kwargs)

            with patch.object(owner, method, planted):
                yield

        MUTATIONS[name] = contextmanager(plant)
        return wrong

    return register


@replaces("a slot is not emptied when it is handed out", _Scheduler, "_admit")
def _no_zeroing(right, self, now):
    right(self, now)
    return ()


@replaces("a slot is freed twice", _Slots, "release")
def _double_free(right, self, slot):
    right(self, slot)
    self._free.append(slot)


@replaces("the scratch slot is handed out", _Slots, "acquire")
def _scratch(right, self):
    slot = right(self)
    return 0 if slot == self.num_slots else slot


@replaces("an aborted sequence keeps its slot", _Scheduler, "finish")
def _leak_on_abort(right, self, seq, reason, now, stop_reason=None):
    if reason is FinishReason.ABORT:
        seq.slot = None
    right(self, seq, reason, now, stop_reason)


@replaces("a failed sequence keeps its slot", _Scheduler, "finish")
def _leak_on_error(right, self, seq, reason, now, stop_reason=None):
    if reason is FinishReason.ERROR:
        seq.slot = None
    right(self, seq, reason, now, stop_reason)


@replaces("an abort is lost", _Scheduler, "abort")
def _lost_abort(right, self, request_id, now):
    return None


@replaces("an abort in mid-step frees the slot at once", _Scheduler, "abort")
def _no_fence(right, self, request_id, now):
    in_flight, self._in_flight = self._in_flight, None
    found = right(self, request_id, now)
    self._in_flight = in_flight
    return found


@replaces("the last to come is admitted first", _Scheduler, "_admit")
def _lifo(right, self, now):
    sequences = self.waiting._sequences
    self.waiting._sequences = dict(reversed(sequences.items()))
    return right(self, now)


@mutation("priorities are ignored")
def _no_priority() -> Iterator[None]:
    with patch.object(slots, "_priority", lambda seq: 0):
        yield


@mutation("the least urgent is admitted first")
def _least_urgent() -> Iterator[None]:
    with patch.object(slots, "_priority", lambda seq: -seq.request.priority):
        yield


@replaces("nobody waits too long", _Scheduler, "expire")
def _never_expires(right, self, now):
    return []


@replaces("who waits is given up too early", _Scheduler, "expire")
def _expires_early(right, self, now):
    return right(self, now + 0.002)


@replaces("who runs is given up as if it waited", _Scheduler, "expire")
def _expires_running(right, self, now):
    waiting = self.waiting._sequences
    self.waiting._sequences = {**waiting, **self.running}
    expired = right(self, now)
    self.waiting._sequences = {i: s for i, s in waiting.items() if i in self.waiting}
    return expired


@replaces("an admitted sequence still waits", _Scheduler, "_admit")
def _still_waiting(right, self, now):
    waiting = dict(self.waiting._sequences)
    new_slots = right(self, now)
    if new_slots:
        self.waiting._sequences = waiting
    return new_slots


@replaces("the answer is one token too long", _Scheduler, "_advance")
def _one_too_many(right, self, item, result, now):
    request = item.sequence.request
    longer = msgspec.structs.replace(request.sampling, max_tokens=request.sampling.max_tokens + 1)
    item.sequence.request = msgspec.structs.replace(request, sampling=longer)
    right(self, item, result, now)
    item.sequence.request = request


@replaces("min_tokens is one too few", _Scheduler, "_advance")
def _min_tokens(right, self, item, result, now):
    request = item.sequence.request
    fewer = msgspec.structs.replace(request.sampling, min_tokens=request.sampling.min_tokens - 1)
    item.sequence.request = msgspec.structs.replace(request, sampling=fewer)
    right(self, item, result, now)
    item.sequence.request = request


@replaces("EOS does not end an answer", _Scheduler, "_advance")
def _no_eos(right, self, item, result, now):
    eos, self.eos_token_ids = self.eos_token_ids, frozenset()
    right(self, item, result, now)
    self.eos_token_ids = eos


@replaces("ignore_eos is ignored", _Scheduler, "_advance")
def _ignore_eos(right, self, item, result, now):
    request = item.sequence.request
    deaf = msgspec.structs.replace(request.sampling, ignore_eos=False)
    item.sequence.request = msgspec.structs.replace(request, sampling=deaf)
    right(self, item, result, now)
    item.sequence.request = request


@replaces("a stop token does not say which it was", _Scheduler, "finish")
def _no_stop_reason(right, self, seq, reason, now, stop_reason=None):
    right(self, seq, reason, now, None)


@replaces("a token is read twice after a prompt", _Scheduler, "_advance")
def _miscounted(right, self, item, result, now):
    right(self, item, result, now)
    if item.completes_prompt and len(item.sequence.output_token_ids) == 2:
        item.sequence.num_computed_tokens -= 1


@replaces("the tokens of a prompt chunk are off by one", sequence.Sequence, "tokens_to_compute")
def _shifted(right, self, num_tokens):
    tokens = right(self, num_tokens)
    start = self.num_computed_tokens
    if 0 < start < self.num_prompt_tokens:
        return self.request.prompt_token_ids[start - 1 : start - 1 + num_tokens]
    return tokens


@replaces("a sequence is forgotten when it decodes alone", _Scheduler, "schedule")
def _skipped(right, self, now):
    plan = right(self, now)
    if len(plan.decodes) == 1 and plan.prefills:
        plan = dataclasses.replace(plan, decodes=())
        self._in_flight = plan
        for seq in list(self.running.values()):
            if not seq.is_prefilling:
                del self.running[seq.request_id]
    return plan


@mutation("a small token budget starves prompts")
def _starved() -> Iterator[None]:
    # Without the floor of one chunk a step.
    with patch.object(scheduler, "CHUNK_SIZE", 0), patch.object(scheduler, "_prefill_chunk", _cut):
        yield


def _cut(seq: sequence.Sequence, budget: int) -> int:
    remaining = seq.num_uncomputed_prompt_tokens
    return remaining if remaining <= budget else max(0, budget // 64 * 64)


@replaces("the queue has no limit", QueueLimits, "fits")
def _no_limit(right, self, queued):
    return True


@mutation("a request is refused although a slot is free")
def _too_strict() -> Iterator[None]:
    def lengths(self: Any, *added: Any) -> list[int]:
        return [s.num_prompt_tokens for s in (*self.values(), *added)]

    with (
        patch.object(_Waiting, "_has_spare_slot", False),
        patch.object(QueueLimits, "surely_fits", lambda self, num_queued, num_tokens: False),
        patch.object(_Waiting, "_queued_lengths", lengths),
    ):
        yield


@replaces("an id may be used twice at once", _Scheduler, "knows")
def _duplicate(right, self, request_id):
    return False


@replaces("a failed row goes on", _Scheduler, "update")
def _survives(right, self, plan, results, now):
    right(self, plan, [dataclasses.replace(r, error=None) for r in results], now)


@replaces("one failed row fails the whole step", _Scheduler, "update")
def _contagious(right, self, plan, results, now):
    errors = [r.error for r in results if r.error]
    if errors:
        results = [dataclasses.replace(r, error=errors[0]) for r in results]
    right(self, plan, results, now)


@replaces("an end is told twice", engine.Engine, "step")
def _told_twice(right, self):
    outputs = right(self)
    return outputs + [output for output in outputs if output.finished]


@replaces("an end is not told", engine.Engine, "step")
def _not_told(right, self):
    return [o for o in right(self) if o.finish_reason is not FinishReason.ERROR]


@replaces("held text is dropped at the end", detokenizer.StopMatcher, "finish")
def _dropped(right, self):
    right(self)
    return ""


@replaces("nothing is held back for a stop string", detokenizer.StopMatcher, "_num_held")
def _not_held(right, self, text):
    return 0


@replaces("the stop string is sent along", detokenizer.StopMatcher, "_find")
def _leaked(right, self, text, num_old):
    found = right(self, text, num_old)
    return found and (found[0] + len(found[1]), found[1])


@replaces("the stop string that completes last wins", detokenizer.StopMatcher, "_find")
def _wrong_winner(right, self, text, num_old):
    found = []
    for stop in self._stops:
        start = text.find(stop, max(0, num_old - len(stop) + 1))
        if start >= 0:
            found.append((start + len(stop), start, stop))
    return max(found)[1:] if found else None


@replaces("an incomplete character is dropped at the end", detokenizer.Detokenizer, "finish")
def _cut_character(right, self):
    return ""


@replaces("every token is decoded alone", detokenizer.Detokenizer, "add")
def _decoded_alone(right, self, token_id):
    return self._tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")


@replaces("usage forgets the last token", output_processor.OutputProcessor, "close")
def _usage(right, self, seq, news=None):
    output = right(self, seq, news)
    count = max(0, output.num_output_tokens - 1)
    return msgspec.structs.replace(output, num_output_tokens=count)


@mutation("a prompt is cut off the chunk grid")
def _off_grid() -> Iterator[None]:
    def cut(seq: sequence.Sequence, budget: int) -> int:
        return max(0, min(seq.num_uncomputed_prompt_tokens, budget))

    with patch.object(scheduler, "_prefill_chunk", cut):
        yield


@replaces(
    "a fork is taken before the step is committed", model.SimulatedRunner, "_state_to_take_over"
)
def _fork_before_commit(right, self, slot):
    return self.rows[slot][self.committed[slot]]


@replaces("a fork shares the slot of its source", _Scheduler, "schedule")
def _shared_slot(right, self, now):
    plan = right(self, now)
    for fork in plan.forks:
        self.slots.release(fork.sequence.slot)
        fork.sequence.slot = fork.source.slot
    return plan


@replaces("a fork is taken of half a prompt", scheduler.ScheduledSequence, "completes_prompt")
def _half_a_prompt(right, self):
    return right(self) or (self.sequence.request.group is not None and self.source is None)


@replaces("everybody computes the prompt of the group", _Scheduler, "_followers")
def _no_followers(right, self):
    return {}


@replaces("followers wait for who has its prompt already", _Scheduler, "_followers")
def _wait_for_ever(right, self):
    first = {}
    for seq in self.running.values():
        if seq.request.group is not None:
            first.setdefault(seq.request.group, seq)
    return {
        seq.request_id: seq
        for seq in self.running.values()
        if seq.is_prefilling and first.get(seq.request.group, seq) is not seq
    }


@replaces("a fork goes on although its source failed", _Scheduler, "update")
def _undeferred(right, self, plan, results, now):
    right(self, plan, [dataclasses.replace(r, deferred=False) for r in results], now)


@replaces("a fork in flight is freed by an abort", _Scheduler, "abort")
def _fork_unfenced(right, self, request_id, now):
    in_flight = self._in_flight
    if in_flight is not None:
        self._in_flight = dataclasses.replace(in_flight, forks=())
    found = right(self, request_id, now)
    self._in_flight = in_flight
    return found
