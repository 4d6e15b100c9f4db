"""Steps on a GPU that are begun before the host has read what the last one chose.

The token that a decode reads next lies on the device as soon as the last step has chosen it. So the
next decode of all sequences that have one is launched right away, and while the host reads the last
tokens, makes them text and plans the next step, the device computes that step already. A plan that
wants one of these decodes takes it as it is; a sequence that has ended meanwhile does not, and its
row is forgotten. Rows do not depend on each other, so a row that was begun has the bits that the
plan's own would have.

It is a decode like any other: it reads a slot's new row and writes the other one, which holds the
state that the step before began with, and which nobody needs any more. Everything runs in the order
of its launch, so whoever gets a slot next empties it after that.

Not for sequences whose next logits depend on their last token by way of the host: penalties, bad
words, grammars. A step with one of them is followed by none that is begun ahead, since two passes
would read the weights twice.
"""

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dijiang_runtime.engine import adjustments
from dijiang_runtime.engine.device_sampler import PendingTokens, finite_rows
from dijiang_runtime.engine.model_runner import FAILED, NOT_FINITE, ModelRunner, Results
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence, StepResult
from dijiang_runtime.engine.transfers import Readback, take_rows, to_device
from dijiang_runtime.models.recurrence import PooledRecurrence
from dijiang_runtime.ops.linear import row_tiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Decode:
    """One sequence's decode, begun ahead or about to be."""

    sequence: Sequence
    position: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class _Begun:
    """A step of decodes on its way."""

    places: dict[str, int]
    """The row of each sequence, by request id."""
    decodes: list[_Decode]
    pending: PendingTokens
    reading: Readback
    """Of what is pending and, last, of which rows are finite."""

    def place_of(self, item: ScheduledSequence) -> int | None:
        """The row that is what the plan wants, if there is one."""
        place = self.places.get(item.sequence.request_id)
        if place is None:
            return None
        decode, sequence = self.decodes[place], item.sequence
        is_it = decode.sequence is sequence and decode.position == sequence.num_computed_tokens
        return place if is_it else None


class LookAheadRunner:
    """Executes plans as `ModelRunner` does, with the same results."""

    def __init__(self, runner: ModelRunner) -> None:
        """`runner` leaves no token pending beside its states."""
        self._runner = runner
        self._pool = runner.pool
        self._begun: _Begun | None = None
        self.num_adopted = 0
        """Decodes that were there when a plan wanted them."""

    @torch.inference_mode()
    def execute(self, plan: SchedulerOutput) -> list[StepResult]:
        """Compute a step. One result for each scheduled sequence, in the order of the plan."""
        begun, self._begun = self._begun, None
        self._pool.reset(plan.new_slots)
        known: dict[int, ScheduledSequence] = {}
        rest: list[ScheduledSequence] = []
        for item in plan.decodes:
            place = begun.place_of(item) if begun else None
            if place is None:
                rest.append(item)
            else:
                known[place] = item
        rest.extend(plan.prefills)
        self.num_adopted += len(known)
        results: Results = {}
        if begun and known and not rest:
            self._begin_after(begun, known)
        elif rest:
            results |= self._runner.run(rest, plan.forks)
        if begun and known:
            results |= self._finish(begun, known)
        if rest:
            self._begin(list(plan), results)
        return self._runner.in_order(plan, results)

    def _begin_after(self, begun: _Begun, known: dict[int, ScheduledSequence]) -> None:
        """Launch the decodes that follow those of `known`, whose tokens nobody has read."""
        following = {place: item for place, item in known.items() if _goes_on(item)}
        decodes = [
            # What the last step writes becomes the state only when the host has heard of it.
            self._decode(item, self._pool.target(item.slot), self._pool.source(item.slot))
            for item in following.values()
        ]
        self._launch(decodes, take_rows(begun.pending.token_ids, list(following)))

    def _begin(self, items: list[ScheduledSequence], results: Results) -> None:
        """Launch the decodes that follow a step that the host has read."""
        tokens, decodes = [], []
        for item in items:
            result = results.get(item.sequence.request_id)
            if result is not None and result.token_id is not None and _goes_on(item):
                source, target = self._pool.source(item.slot), self._pool.target(item.slot)
                decodes.append(self._decode(item, source, target))
                tokens.append(result.token_id)
        device = self._pool.states.device
        self._launch(decodes, to_device(np.asarray(tokens, dtype=np.int64), device))

    def _decode(self, item: ScheduledSequence, source: int, target: int) -> _Decode:
        position = item.sequence.num_computed_tokens + item.num_tokens
        return _Decode(item.sequence, position, source, target)

    def _launch(self, decodes: list[_Decode], token_ids: Tensor) -> None:
        sequences = [decode.sequence for decode in decodes]
        if not decodes or any(map(adjustments.depends_on_last_token, sequences)):
            return
        try:
            pending, is_finite = self._compute(decodes, token_ids)
            reading = pending.start_reading(is_finite)
        except Exception:
            # Nothing is lost: the plan that wants these decodes computes them itself.
            logger.warning("a step could not be begun ahead", exc_info=True)
            return
        places = {sequence.request_id: i for i, sequence in enumerate(sequences)}
        self._begun = _Begun(places, decodes, pending, reading)

    def _compute(self, decodes: Seq[_Decode], token_ids: Tensor) -> tuple[PendingTokens, Tensor]:
        """The tokens of these decodes, and which rows are finite."""
        runner, num_rows = self._runner, len(decodes)
        tiles = row_tiles(num_rows) if runner.model.needs_tiles else ()
        padding = max(0, sum(tiles) - num_rows)
        numbers = [(d.position, d.source, d.target) for d in decodes] + [(0, 0, 0)] * padding
        columns = to_device(np.asarray(numbers, dtype=np.int64).T, token_ids.device)
        positions, source, target = columns
        where = source[:num_rows], target[:num_rows]
        recurrence = PooledRecurrence(self._pool.states, *where, (), self._pool.caches)
        padded = torch.nn.functional.pad(token_ids, (0, padding))
        hidden = runner.model.hidden(padded, positions, recurrence, tiles)[:num_rows]
        is_finite = finite_rows(hidden) & recurrence.finite_rows()[:num_rows]
        sequences = [decode.sequence for decode in decodes]
        launch = runner.sampler.on_device.launch
        return launch(runner.logits(hidden), sequences, num_unread=1), is_finite

    def _finish(self, begun: _Begun, known: dict[int, ScheduledSequence]) -> Results:
        """Read the tokens of the decodes that the plan wants, and commit their states."""
        try:
            tokens, logits_are, [rows_are] = begun.pending.finish(begun.reading)
        except Exception:
            # The states that it began with may be written already, so it is not run again.
            logger.exception("a step that was begun ahead failed")
            return {item.sequence.request_id: StepResult(error=FAILED) for item in known.values()}
        results: Results = {}
        succeeded = []
        for place, item in known.items():
            request_id = item.sequence.request_id
            if logits_are[place] and rows_are[place]:
                token_id, logprobs = tokens[place]
                results[request_id] = StepResult(token_id=token_id, logprobs=logprobs)
                succeeded.append(item.slot)
            else:
                logger.error("request %s: the model's output is not finite", request_id)
                results[request_id] = StepResult(error=NOT_FINITE)
        self._pool.commit(succeeded)
        return results


def _goes_on(item: ScheduledSequence) -> bool:
    """Whether the sequence decodes once more after this step, unless its token ends it."""
    sequence = item.sequence
    return len(sequence.output_token_ids) + 1 < sequence.request.sampling.max_tokens
