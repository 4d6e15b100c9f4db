"""A step's plan -> batch -> model -> sampler -> token ids. A step is a transaction.

A recurrent state is overwritten as it is read, so a step that fails half-way could not be run
again. Here every sequence's next state is written beside the last one and becomes its state only
when the whole step has succeeded for it.
"""

import logging
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from dijiang_runtime.engine.adjustments import mask
from dijiang_runtime.engine.batch import Batch, build_batch
from dijiang_runtime.engine.device_sampler import finite_rows
from dijiang_runtime.engine.embedding import pool_hidden
from dijiang_runtime.engine.grammar import GrammarState, fill_masks
from dijiang_runtime.engine.logprobs import chunk_logprobs
from dijiang_runtime.engine.sampler import Sampler, mass_temperature
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import RawLogprobs, SampledToken, Sequence, StepResult
from dijiang_runtime.engine.state_pool import StatePool
from dijiang_runtime.engine.transfers import take_rows
from dijiang_runtime.errors import NumericalError, RequestFailedError
from dijiang_runtime.models.compiled import CompiledDecoder
from dijiang_runtime.models.serving import ServingModel
from dijiang_runtime.ops.cpu.sampling import LogitKernels
from dijiang_runtime.ops.linear import CHUNK_TILE, row_tiles
from dijiang_runtime.request import NO_LOGPROBS, RequestError

logger = logging.getLogger(__name__)

NOT_FINITE = RequestError(NumericalError.__name__, str(NumericalError()))
FAILED = RequestError(RequestFailedError.__name__, "The request failed inside the engine.")
_DEFERRED = StepResult(deferred=True)
_NO_TOKEN = (None, None)

Forks = Seq[ScheduledSequence]
Results = dict[str, StepResult]
"""By request id. A fork whose source failed has none."""
_TOO_COMPLEX = RequestError(
    RequestFailedError.__name__, "The answer's grammar became too complex to be followed."
)


class ModelRunner:
    """Owns the model and the states. The engine calls `execute` once a step."""

    def __init__(self, model: ServingModel, pool: StatePool, sampler: Sampler) -> None:
        self._model = model
        self._needs_tiles = model.needs_tiles
        self._pool = pool
        self._sampler = sampler

    @torch.inference_mode()
    def execute(self, plan: SchedulerOutput) -> list[StepResult]:
        """Compute a step. One result for each scheduled sequence, in the order of the plan.

        A sequence that the step fails for gets an error and keeps its state; the others get bit
        for bit what they would have got without it.
        """
        self._pool.reset(plan.new_slots)
        return self.in_order(plan, self.run([*plan.decodes, *plan.prefills], plan.forks))

    @staticmethod
    def in_order(plan: SchedulerOutput, results: Results) -> list[StepResult]:
        """The results in the order of the plan."""
        return [results.get(_id(item), _DEFERRED) for item in plan]

    @property
    def model(self) -> ServingModel:
        return self._model

    @property
    def pool(self) -> StatePool:
        return self._pool

    @property
    def sampler(self) -> Sampler:
        return self._sampler

    def run(self, items: Seq[ScheduledSequence], forks: Forks) -> Results:
        """Compute and commit these items' share of a step."""
        try:
            return self._run_batch(items, forks)
        except Exception:
            if len(items) == 1 and forks:
                # Whose fault was it? Those who were to follow compute the prompt for themselves.
                logger.warning("request %s failed together with its forks", _id(items[0]))
                return self.run(items, ())
            if len(items) == 1:
                logger.exception("request %s failed in a step", items[0].sequence.request_id)
                return {_id(items[0]): StepResult(error=FAILED)}
            logger.warning("a step of %d sequences failed; looking for the one", len(items))
        # Nothing was committed, so each half starts from the state before the step.
        middle = len(items) // 2
        results: Results = {}
        for half in (items[:middle], items[middle:]):
            results |= self.run(half, [fork for fork in forks if fork.source in half])
        return results

    def _run_batch(self, items: Seq[ScheduledSequence], forks: Forks) -> Results:
        pool = self._pool
        device = pool.states.device
        batch = build_batch(items, pool, device, needs_tiles=self._needs_tiles)
        everyone, rows = _with_forks(items, forks, batch)
        # On a CPU before the step: grammars have just read the last tokens, and are in the caches.
        is_on_host = device.type == "cpu"
        lost = self._follow_grammars(everyone) if is_on_host else set()
        hidden = self._model.hidden(batch.token_ids, batch.positions, batch.recurrence, batch.tiles)
        prompts = range(batch.num_decodes, len(items))
        prompt_logprobs = {
            i: chunk_logprobs(
                items[i].sequence, hidden[batch.rows[i]], self._chunk_logits, self._sampler.kernels
            )
            for i in prompts
            if items[i].sequence.request.sampling.prompt_logprobs != NO_LOGPROBS
        }
        pooled = {
            i: pool_hidden(hidden[batch.rows[i]], items[i].sequence.pooled)
            for i in prompts
            if items[i].sequence.request.embed
        }
        if not is_on_host:
            lost = self._follow_grammars(everyone)
        # Who decodes wants a token in any case.
        num_decodes = batch.num_decodes
        wanted = [i for i in range(num_decodes) if i not in lost]
        for i in range(num_decodes, len(everyone)):
            if i not in lost and _needs_token(everyone[i]):
                wanted.append(i)
        sampled, finite = self._sample(everyone, rows, wanted, hidden, batch)
        results: Results = {}
        succeeded = []
        for i, item in enumerate(everyone):
            request_id = item.sequence.request.request_id
            if i not in finite:
                if item.source is None:
                    logger.error("request %s: the model's output is not finite", request_id)
                    results[request_id] = StepResult(error=NOT_FINITE)
                continue
            if i in lost:
                logger.error("request %s: its grammar is too complex", request_id)
                results[request_id] = StepResult(error=_TOO_COMPLEX)
                continue
            token_id, logprobs = sampled.get(i, _NO_TOKEN)
            if i < num_decodes:
                results[request_id] = StepResult(token_id, logprobs)
            else:
                results[request_id] = StepResult(
                    token_id, logprobs, tuple(prompt_logprobs.get(i, ())), pooled.get(i)
                )
            succeeded.append(i)
            if item.source is not None:
                pool.fork(item.source.slot, item.slot)
        pool.commit(everyone[i].slot for i in succeeded if i not in batch.kept)
        return results

    def _follow_grammars(self, items: Seq[ScheduledSequence]) -> set[int]:
        """Fill the masks of those items that have a grammar, and find those that have lost it."""
        constrained = [i for i, item in enumerate(items) if item.sequence.matcher is not None]
        fill_masks(
            [items[i].sequence for i in constrained if items[i].completes_prompt],
            self._model.config.vocab_size,
        )
        return {i for i in constrained if _has_lost_grammar(items[i])}

    def _sample(
        self,
        items: Seq[ScheduledSequence],
        rows: Seq[slice],
        wanted: list[int],
        hidden: Tensor,
        batch: Batch,
    ) -> tuple[dict[int, SampledToken], set[int]]:
        """Sample for the items that are `wanted`, and find those whose step is finite throughout.

        Args:
            rows: The rows of each item, in `hidden`.
        """
        states_are = batch.recurrence.finite_rows()
        if (kernels := self._sampler.kernels) is not None and kernels.can_read(hidden):
            rows_are = states_are.tolist()
            if not isinstance(self._model, CompiledDecoder):  # It has looked at both.
                pairs = zip(kernels.scan_rows(hidden).finite, rows_are, strict=True)
                rows_are = [hidden_is and state_is for hidden_is, state_is in pairs]
            finite = _finite_items(rows, rows_are)
            return self._sample_on_host(items, rows, wanted, hidden, finite, kernels), finite
        is_finite = finite_rows(hidden) & states_are
        if not wanted:
            return {}, _finite_items(rows, is_finite.tolist())
        logits = self.logits(take_rows(hidden, [rows[i].stop - 1 for i in wanted]))
        # Rows that are not finite get some token, too: nobody knows yet which they are.
        pending = self._sampler.on_device.launch(logits, [items[i].sequence for i in wanted])
        tokens, logits_are, [is_finite] = pending.read(is_finite)
        finite = _finite_items(rows, is_finite.tolist())
        finite.difference_update(i for i, ok in zip(wanted, logits_are, strict=True) if not ok)
        sampled = zip(wanted, tokens, strict=True)
        return {i: token for i, token in sampled if i in finite}, finite

    def _sample_on_host(
        self,
        items: Seq[ScheduledSequence],
        rows: Seq[slice],
        wanted: list[int],
        hidden: Tensor,
        finite: set[int],
        kernels: LogitKernels,
    ) -> dict[int, SampledToken]:
        """With the compiled kernels. Takes those with bad logits out of `finite`."""
        wanted = [i for i in wanted if i in finite]
        if not wanted:
            return {}
        last_rows = [rows[i].stop - 1 for i in wanted]
        if isinstance(self._model, CompiledDecoder):
            sequences = [items[i].sequence for i in wanted]
            masks = [mask(sequence, self._model.config.vocab_size) for sequence in sequences]
            temperatures = list(map(mass_temperature, sequences))
            logits, scan = self._model.chosen_logits(hidden, last_rows, masks, temperatures)
        else:
            logits = self.logits(take_rows(hidden, last_rows))
            scan = kernels.scan_rows(logits)
        if not all(scan.finite):
            finite.difference_update(i for i, ok in zip(wanted, scan.finite, strict=True) if not ok)
            logits, scan = logits[scan.finite], scan.of_finite()
            wanted = [i for i in wanted if i in finite]
        if not wanted:
            return {}
        tokens = self._sampler.sample(logits, [items[i].sequence for i in wanted], scan)
        return dict(zip(wanted, tokens, strict=True))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] of unrelated rows [n, D]."""
        if not self._needs_tiles:
            return self._model.logits(hidden, None)
        tiles = row_tiles(len(hidden))
        padded = torch.nn.functional.pad(hidden, (0, 0, 0, sum(tiles) - len(hidden)))
        return self._model.logits(padded, tiles)[: len(hidden)]

    def _chunk_logprobs(self, sequence: Sequence, hidden: Tensor) -> list[RawLogprobs]:
        return chunk_logprobs(sequence, hidden, self._chunk_logits, self._sampler.kernels)

    def _chunk_logits(self, tile: Tensor) -> Tensor:
        """Logits of a whole chunk, or of the ragged end of a prompt."""
        if len(tile) == CHUNK_TILE:
            return self._model.logits(tile, (CHUNK_TILE,))
        return self.logits(tile)


def _with_forks(
    items: Seq[ScheduledSequence], forks: Forks, batch: Batch
) -> tuple[Seq[ScheduledSequence], Seq[slice]]:
    """The items and then their forks, with the rows of each. A fork's are its source's."""
    if not forks:
        return items, batch.rows
    place = {_id(item): i for i, item in enumerate(items)}
    theirs = [batch.rows[place[_id(fork.source)]] for fork in forks if fork.source is not None]
    assert len(theirs) == len(forks), "a fork has a source"
    return [*items, *forks], [*batch.rows, *theirs]


def _finite_items(rows: Seq[slice], is_finite: Seq[bool]) -> set[int]:
    """The items all of whose rows are finite."""
    if all(is_finite):
        return set(range(len(rows)))
    return {i for i, some in enumerate(rows) if all(is_finite[some])}


def _needs_token(item: ScheduledSequence) -> bool:
    return bool(item.completes_prompt and item.sequence.request.sampling.max_tokens)


def _id(item: ScheduledSequence) -> str:
    return item.sequence.request_id


def _has_lost_grammar(item: ScheduledSequence) -> bool:
    matcher = item.sequence.matcher
    return isinstance(matcher, GrammarState) and matcher.has_failed
