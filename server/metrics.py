"""Every Prometheus series of the server, declared once, in a registry that belongs to the app.

The names follow vLLM's with our prefix. What both servers measure is exported a second time under
vLLM's own name, from the same numbers, so that existing dashboards, autoscalers and routers work.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from dijiang_runtime.engine.client import EngineClient
from dijiang_runtime.engine.messages import EngineStats
from server.engine_gauges import EngineGauges
from server.metric_buckets import (
    BATCH_BUCKETS,
    ITERATION_BUCKETS,
    ITL_BUCKETS,
)
from server.process_metrics import ProcessMetrics
from server.sequence_metrics import Family, SequenceMetrics
from server.shared_metrics import MetricsShare
from server.vllm_metrics import VLLM_NAMES, CacheConfig, Export

GENERATION_PATHS: Final = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"}
)
"""The endpoints whose requests are counted as received, and once more by their outcome."""

OUTCOMES: Final = ("ok", "error", "aborted", "rejected")


class Metrics:
    """Every series the server exports. One per app, so that tests never share counts."""

    def __init__(
        self,
        model_name: str,
        *,
        version: str,
        vllm_names: bool,
        paths: Iterable[str],
        share: MetricsShare | None = None,
    ) -> None:
        """
        Args:
            share: Where this process counts, if it is one of several. All of them export the same:
                what they have counted together.
        """
        self._model_name = model_name
        self._paths = frozenset(paths)
        self._own = CollectorRegistry()
        if share is not None:
            share.enter()
        self._exported = self._own if share is None else share.together()
        self.registry = CollectorRegistry()
        self.registry.register(Export(self._exported, VLLM_NAMES if vllm_names else {}))
        self._vllm_names = vllm_names
        self._process = ProcessMetrics(model_name, self._own)
        self._family = Family(model_name, self._own)
        self._declare_requests()
        self.sequences = SequenceMetrics(self._family)
        self._declare_steps()
        build = Gauge(
            "dijiang_build_info",
            "Always 1; says which build.",
            ["version"],
            registry=self._own,
            multiprocess_mode="max",
        )
        build.labels(version).set(1)

    def _declare_requests(self) -> None:
        self._http_requests = Counter(
            "dijiang_http_requests",
            "HTTP requests answered. Unknown paths count as other.",
            ["path", "method", "status"],
            registry=self._own,
        )
        self._received = Counter(
            "dijiang_requests_received",
            "Requests to a generation endpoint, refused ones included.",
            ["path"],
            registry=self._own,
        )
        self._outcomes = Counter(
            "dijiang_requests_finished",
            "The same requests by outcome. Received = ok + error + aborted + rejected + running.",
            ["path", "outcome"],
            registry=self._own,
        )
        for path in GENERATION_PATHS:
            self._received.labels(path)
            for outcome in OUTCOMES:
                self._outcomes.labels(path, outcome)
            self._settle(path)
        self._rejections = Counter(
            "dijiang_admission_rejections",
            "Requests refused for lack of room or of an engine.",
            ["model_name", "reason"],
            registry=self._own,
        )
        self.disconnects = self._family.counter("disconnects", "Clients that left before the end.")
        self.deadline_exceeded = self._family.counter(
            "deadline_exceeded", "Answers that were not complete within their time."
        )

    def _declare_steps(self) -> None:
        self._step_seconds = Histogram(
            "dijiang_step_seconds",
            "Duration of an engine step, by what it did: prefill, decode or both (mixed).",
            ["model_name", "kind"],
            buckets=ITL_BUCKETS,
            registry=self._own,
        )
        self._step_batch_size = Histogram(
            "dijiang_step_batch_size",
            "Sequences of an engine step, by what it did.",
            ["model_name", "kind"],
            buckets=BATCH_BUCKETS,
            registry=self._own,
        )
        self._iteration_tokens = self._family.histogram(
            "iteration_tokens", "Tokens computed in one engine step.", ITERATION_BUCKETS
        )
        self._forks = self._family.counter(
            "state_forks", "Sequences that began with a copy of another's state after its prompt."
        )
        self._failed_rows = self._family.counter(
            "failed_rows", "Sequences that a step failed for, alone."
        )

    def _settle(self, path: str) -> None:
        """Count as failed what was running in the process that has left its counts to this one."""

        def count(name: str, **labels: str) -> float:
            return self._own.get_sample_value(f"{name}_total", {"path": path, **labels}) or 0.0

        ended = sum(count("dijiang_requests_finished", outcome=outcome) for outcome in OUTCOMES)
        lost = count("dijiang_requests_received") - ended
        self._outcomes.labels(path, "error").inc(lost)

    def http_request_started(self, method: str, path: str) -> None:
        """Count a request whose headers have arrived."""
        if method == "POST" and path in GENERATION_PATHS:
            self._received.labels(path).inc()

    def http_request_finished(self, method: str, path: str, status: int, outcome: str) -> None:
        """Count a request that is over. Status 0: nobody was left to get one."""
        if method == "POST" and path in GENERATION_PATHS:
            self._outcomes.labels(path, outcome).inc()
            if outcome == "aborted":
                self.disconnects.inc()
        known_path = path if path in self._paths else "other"
        known_method = method if method in ("GET", "POST") else "other"
        self._http_requests.labels(known_path, known_method, str(status)).inc()

    def admission_rejected(self, reason: str) -> None:
        """Count a request that was right, but that there was no room for."""
        self._rejections.labels(self._model_name, reason).inc()

    def watch_engine(self, engine: EngineClient) -> None:
        """Export the engine's gauges, and its steps as they are reported."""
        self._exported.register(EngineGauges(engine, self._model_name))
        engine.subscribe(self._observe_steps)
        if self._vllm_names:
            self.registry.register(CacheConfig(engine, self._model_name))

    def _observe_steps(self, stats: EngineStats) -> None:
        steps = zip(
            stats.step_seconds,
            stats.step_decodes,
            stats.step_prefill_tokens,
            stats.step_batch_sizes,
            strict=True,
        )
        for seconds, num_decodes, num_prefill_tokens, batch_size in steps:
            kind = "decode" if not num_prefill_tokens else "mixed" if num_decodes else "prefill"
            self._step_seconds.labels(self._model_name, kind).observe(seconds)
            self._step_batch_size.labels(self._model_name, kind).observe(batch_size)
            self._iteration_tokens.observe(num_decodes + num_prefill_tokens)
        self._forks.inc(stats.num_forks)
        self._failed_rows.inc(stats.num_failed_rows)

    def update_process(self) -> None:
        """Measure the process. Where there is one of it alone, `render` does."""
        self._process.update()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the client prefers."""
        self._process.update()
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
