"""The series that are about sequences and the requests that they belong to."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from dijiang_runtime.request import FinishReason
from server.metric_buckets import (
    CHOICES_BUCKETS,
    ITL_BUCKETS,
    LAST_POSITION_BUCKET,
    LATENCY_BUCKETS,
    POSITION_BUCKETS,
    TOKEN_BUCKETS,
    TTFT_BUCKETS,
)

LOCAL_COMPUTE: Final = "local_compute"
TOKEN_SOURCES: Final = (LOCAL_COMPUTE, "local_cache_hit", "external_kv_transfer")
"""Where vLLM says that prompt tokens come from."""


class Family:
    """Declares series of one model, which have no labels but its name and one more."""

    def __init__(self, model_name: str, registry: CollectorRegistry) -> None:
        self._model_name = model_name
        self._registry = registry

    def counter(self, name: str, help: str) -> Counter:
        counter = Counter(f"dijiang_{name}", help, ["model_name"], registry=self._registry)
        return counter.labels(self._model_name)

    def counters(
        self, name: str, help: str, label: str, values: tuple[str, ...]
    ) -> dict[str, Counter]:
        """A counter for each value of a label. All are there from the start, at 0."""
        counter = Counter(f"dijiang_{name}", help, ["model_name", label], registry=self._registry)
        return {value: counter.labels(self._model_name, value) for value in values}

    def histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"dijiang_{name}", help, ["model_name"], buckets=buckets, registry=self._registry
        )
        return histogram.labels(self._model_name)

    def histograms(
        self, name: str, help: str, buckets: tuple[float, ...], label: str, values: tuple[str, ...]
    ) -> dict[str, Histogram]:
        """A histogram for each value of a label."""
        histogram = Histogram(
            f"dijiang_{name}", help, ["model_name", label], buckets=buckets, registry=self._registry
        )
        return {value: histogram.labels(self._model_name, value) for value in values}


class SequenceMetrics:
    """What `SequenceMeter` measures of each sequence, and `Generation` of each request."""

    def __init__(self, family: Family) -> None:
        self._declare_tokens(family)
        self._declare_times(family)
        self._declare_sizes(family)

    def _declare_tokens(self, family: Family) -> None:
        self.prompt_tokens = family.counter("prompt_tokens", "Prompt tokens computed.")
        self.prompt_tokens_by_source = family.counters(
            "prompt_tokens_by_source",
            "The same by source. All are computed here: nothing is cached or transferred.",
            "source",
            TOKEN_SOURCES,
        )
        self.generation_tokens = family.counter("generation_tokens", "Tokens generated.")
        for name in ("prefix_cache_queries", "prefix_cache_hits"):
            family.counter(name, "Always 0: no state is kept from one request to the next.")
        family.counter("num_preemptions", "Always 0: a slot never has to be taken back.")
        reasons = (FinishReason.STOP, FinishReason.LENGTH)
        success = family.counters(
            "request_success",
            "Sequences that finished, by reason. A request with n choices counts n times.",
            "finished_reason",
            tuple(reason.value for reason in reasons),
        )
        self.success = {reason: success[reason.value] for reason in reasons}

    def _declare_times(self, family: Family) -> None:
        histogram = family.histogram
        self.ttft = histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS
        )
        self.itl = histogram(
            "inter_token_latency_seconds", "Gaps between consecutive tokens.", ITL_BUCKETS
        )
        self.itl_by_position = family.histograms(
            "itl_seconds",
            "Gaps between consecutive tokens, by the position of the token in its text.",
            ITL_BUCKETS,
            "position_bucket",
            (*POSITION_BUCKETS.values(), LAST_POSITION_BUCKET),
        )
        self.tpot = histogram(
            "request_time_per_output_token_seconds",
            "Per sequence: the time after the first token, over the further tokens.",
            ITL_BUCKETS,
        )
        self.e2e = histogram(
            "e2e_request_latency_seconds", "From arrival to the last token.", LATENCY_BUCKETS
        )
        self.queue_time = histogram(
            "request_queue_time_seconds", "From arrival to a slot.", LATENCY_BUCKETS
        )
        self.prefill_time = histogram(
            "request_prefill_time_seconds", "From a slot to the first token.", LATENCY_BUCKETS
        )
        self.decode_time = histogram(
            "request_decode_time_seconds", "From the first token to the last.", LATENCY_BUCKETS
        )
        self.inference_time = histogram(
            "request_inference_time_seconds", "From a slot to the last token.", LATENCY_BUCKETS
        )

    def _declare_sizes(self, family: Family) -> None:
        histogram = family.histogram
        self.request_prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of a sequence.", TOKEN_BUCKETS
        )
        self.request_prefill_computed_tokens = histogram(
            "request_prefill_kv_computed_tokens",
            "Prompt tokens computed for a sequence: all, or 0 if its state is another choice's.",
            TOKEN_BUCKETS,
        )
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Tokens generated for a sequence.", TOKEN_BUCKETS
        )
        self.request_max_generation_tokens = histogram(
            "request_max_num_generation_tokens",
            "Tokens generated for the longest choice of a request.",
            TOKEN_BUCKETS,
        )
        self.request_preemptions = histogram(
            "request_num_preemptions",
            "Preemptions of a sequence. Always 0: a slot never has to be taken back.",
            CHOICES_BUCKETS,
        )
        self.params_max_tokens = histogram(
            "request_params_max_tokens", "max_tokens of a request.", TOKEN_BUCKETS
        )
        self.params_n = histogram("request_params_n", "n of a request.", CHOICES_BUCKETS)
