"""Measures of one sequence, taken from its outputs as they reach the API process."""

import time

from dijiang_runtime.request import FinishReason, Request, RequestOutput
from server.metric_buckets import position_bucket
from server.sequence_metrics import LOCAL_COMPUTE, SequenceMetrics


class SequenceMeter:
    """Measures one sequence from its outputs, as they reach the API process."""

    def __init__(
        self, metrics: SequenceMetrics, request: Request, *, counts_prompt: bool = True
    ) -> None:
        self._metrics = metrics
        self._counts_prompt = counts_prompt
        self._arrival = request.arrival_time
        self._last_token_at: float | None = None

    def observe(self, output: RequestOutput) -> None:
        """Record what one output tells."""
        if num_tokens := len(output.token_ids):
            self._observe_tokens(num_tokens, output)
        if output.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._metrics.success[output.finish_reason].inc()
            self._observe_finish(output)

    def _observe_tokens(self, num_tokens: int, output: RequestOutput) -> None:
        metrics, now = self._metrics, time.perf_counter()
        metrics.generation_tokens.inc(num_tokens)
        if self._last_token_at is None:
            self._count_prompt(output.num_prompt_tokens)
            metrics.ttft.observe(max(0.0, time.time() - self._arrival))
        else:
            # Tokens that come together share the gap before them.
            gap = (now - self._last_token_at) / num_tokens
            # Of several, the last says in which bucket they are.
            position = output.num_prompt_tokens + output.num_output_tokens - 1
            by_position = metrics.itl_by_position[position_bucket(position)]
            for _ in range(num_tokens):
                metrics.itl.observe(gap)
                by_position.observe(gap)
        self._last_token_at = now

    def _count_prompt(self, num_tokens: int) -> None:
        """Once, with the first token or, where there is none, at the end."""
        if self._counts_prompt:
            self._metrics.prompt_tokens.inc(num_tokens)
            self._metrics.prompt_tokens_by_source[LOCAL_COMPUTE].inc(num_tokens)
            self._counts_prompt = False

    def _observe_finish(self, output: RequestOutput) -> None:
        metrics = self._metrics
        self._count_prompt(output.num_prompt_tokens)
        metrics.request_prompt_tokens.observe(output.num_prompt_tokens)
        metrics.request_prefill_computed_tokens.observe(
            output.num_prompt_tokens - output.num_copied_tokens
        )
        metrics.request_generation_tokens.observe(output.num_output_tokens)
        metrics.request_preemptions.observe(0)
        if (times := output.timings) is None:
            return
        # A prompt that was only read has no token of its own.
        first_token = times.first_token or times.finished
        decode = times.finished - first_token
        metrics.e2e.observe(times.finished - times.arrival)
        metrics.queue_time.observe(times.scheduled - times.arrival)
        metrics.prefill_time.observe(first_token - times.scheduled)
        metrics.decode_time.observe(decode)
        metrics.inference_time.observe(times.finished - times.scheduled)
        if output.num_output_tokens > 1:
            metrics.tpot.observe(decode / (output.num_output_tokens - 1))
