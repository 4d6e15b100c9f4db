"""Counts of what the engine has done since it last told."""

from dijiang_runtime.engine.messages import EngineStats
from dijiang_runtime.engine.scheduler_output import SchedulerOutput
from dijiang_runtime.engine.sequence import StepResult


class StatsCollector:
    """Counts steps between two `EngineStats`. Owned by the engine."""

    def __init__(self) -> None:
        self._clear()

    def add_step(
        self, plan: SchedulerOutput, results: list[StepResult], step_seconds: float
    ) -> None:
        """Count one step."""
        self._step_seconds.append(step_seconds)
        self._step_decodes.append(len(plan.decodes))
        self._step_prefill_tokens.append(plan.num_prefill_tokens)
        self._step_batch_sizes.append(len(plan))
        self._generation_tokens += sum(result.token_id is not None for result in results)
        deferred = (result.deferred for result in results[len(results) - len(plan.forks) :])
        self._num_forks += len(plan.forks) - sum(deferred)
        self._num_failed_rows += sum(result.error is not None for result in results)

    def take(
        self,
        *,
        running: int,
        waiting: int,
        awaiting_grammars: int,
        slots_used: int,
        slots_total: int,
        context_tokens: int,
    ) -> EngineStats:
        """Return the counts with these gauges, and begin anew."""
        stats = EngineStats(
            running=running,
            waiting=waiting,
            awaiting_grammars=awaiting_grammars,
            slots_used=slots_used,
            slots_total=slots_total,
            context_tokens=context_tokens,
            prompt_tokens=sum(self._step_prefill_tokens),
            generation_tokens=self._generation_tokens,
            step_seconds=tuple(self._step_seconds),
            step_decodes=tuple(self._step_decodes),
            step_prefill_tokens=tuple(self._step_prefill_tokens),
            step_batch_sizes=tuple(self._step_batch_sizes),
            num_forks=self._num_forks,
            num_failed_rows=self._num_failed_rows,
        )
        self._clear()
        return stats

    def _clear(self) -> None:
        self._step_seconds: list[float] = []
        self._step_decodes: list[int] = []
        self._step_prefill_tokens: list[int] = []
        self._step_batch_sizes: list[int] = []
        self._generation_tokens = 0
        self._num_forks = 0
        self._num_failed_rows = 0
