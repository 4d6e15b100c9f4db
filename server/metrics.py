"""Every Prometheus series of the server, declared once, in a registry that belongs to the app.

The names follow vLLM's with our prefix. What both servers measure is exported a second time under
vLLM's own name, from the same numbers, so that existing dashboards, autoscalers and routers work.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from dijiang_runtime.engine.client import EngineClient
from dijiang_runtime.engine.messages import EngineInfo, EngineStats
from dijiang_runtime.request import FinishReason, Request, RequestOutput
from server.vllm_metrics import VLLM_NAMES, CacheConfig, Export

# vLLM's families of buckets. A small recurrent model decodes a token in well under 10 ms, where
# vLLM's gaps begin, so the gaps get four finer buckets.
TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS: Final = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKEN_BUCKETS: Final = tuple(
    float(digit * 10**exponent) for exponent in range(6) for digit in (1, 2, 5)
) + (1e6,)
ITERATION_BUCKETS: Final = (1.0, *(float(2**exponent) for exponent in range(3, 15)))
BATCH_BUCKETS: Final = tuple(float(2**exponent) for exponent in range(9))
POSITION_BUCKETS: Final = {1024: "0-1023", 4096: "1024-4095", 16384: "4096-16383"}
"""Where in its text a token stands, by the first position beyond the bucket."""
LAST_POSITION_BUCKET: Final = "16384-"
CHOICES_BUCKETS: Final = (1.0, 2.0, 5.0, 10.0, 20.0)

GENERATION_PATHS: Final = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"}
)
"""The endpoints whose requests are counted as received, and once more by their outcome."""


class Metrics:
    """Every series the server exports. One per app, so that tests never share counts."""

    def __init__(
        self, model_name: str, *, version: str, vllm_names: bool, paths: Iterable[str]
    ) -> None:
        self._model_name = model_name
        self._paths = frozenset(paths)
        self._own = CollectorRegistry()
        self.registry = CollectorRegistry()
        self.registry.register(Export(self._own, VLLM_NAMES if vllm_names else {}))
        self._vllm_names = vllm_names
        ProcessCollector(registry=self._own)
        self._declare_requests()
        self._declare_sequences()
        self._declare_steps()
        build = Gauge(
            "dijiang_build_info", "Always 1; says which build.", ["version"], registry=self._own
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
            for outcome in ("ok", "error", "aborted", "rejected"):
                self._outcomes.labels(path, outcome)
        self._rejections = Counter(
            "dijiang_admission_rejections",
            "Requests refused for lack of room or of an engine.",
            ["model_name", "reason"],
            registry=self._own,
        )
        self.disconnects = self._counter("disconnects", "Clients that left before the end.")

    def _declare_sequences(self) -> None:
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens computed.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._counter("num_preemptions", "Always 0: a slot never has to be taken back.")
        success = Counter(
            "dijiang_request_success",
            "Sequences that finished, by reason. A request with n choices counts n times.",
            ["model_name", "finished_reason"],
            registry=self._own,
        )
        self.success = {
            reason: success.labels(self._model_name, reason.value)
            for reason in (FinishReason.STOP, FinishReason.LENGTH)
        }
        histogram = self._histogram
        self.ttft = histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS
        )
        self.itl = histogram(
            "inter_token_latency_seconds", "Gaps between consecutive tokens.", ITL_BUCKETS
        )
        by_position = Histogram(
            "dijiang_itl_seconds",
            "Gaps between consecutive tokens, by the position of the token in its text.",
            ["model_name", "position_bucket"],
            buckets=ITL_BUCKETS,
            registry=self._own,
        )
        self.itl_by_position = {
            bucket: by_position.labels(self._model_name, bucket)
            for bucket in (*POSITION_BUCKETS.values(), LAST_POSITION_BUCKET)
        }
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
        self.request_prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of a sequence.", TOKEN_BUCKETS
        )
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Tokens generated for a sequence.", TOKEN_BUCKETS
        )
        self.params_max_tokens = histogram(
            "request_params_max_tokens", "max_tokens of a request.", TOKEN_BUCKETS
        )
        self.params_n = histogram("request_params_n", "n of a request.", CHOICES_BUCKETS)

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
        self._iteration_tokens = self._histogram(
            "iteration_tokens", "Tokens computed in one engine step.", ITERATION_BUCKETS
        )
        self._forks = self._counter(
            "state_forks", "Sequences that began with a copy of another's state after its prompt."
        )
        self._failed_rows = self._counter("failed_rows", "Sequences that a step failed for, alone.")

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
        stats: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
            "num_requests_running": ("Sequences that hold a slot.", lambda s: s.running),
            "num_requests_waiting": ("Sequences that wait for a slot.", lambda s: s.waiting),
            "state_slots_used": ("Slots that hold a recurrent state.", lambda s: s.slots_used),
            "state_slots": ("Slots there are.", lambda s: s.slots_total),
            "context_tokens": (
                "Tokens that the states of running sequences have read.",
                lambda s: s.context_tokens,
            ),
            "state_slot_usage": (
                "Used slots over all slots, 0 to 1. High means busy, not out of memory.",
                lambda s: s.slots_used / max(1, s.slots_total),
            ),
        }
        for name, (help, read) in stats.items():
            self._gauge(name, help, partial(_read_stats, engine, read))
        facts: dict[str, tuple[str, Callable[[EngineInfo], float]]] = {
            "state_bytes": ("Memory of all recurrent states.", lambda i: i.state_bytes_total),
            "state_bytes_per_sequence": (
                "Memory of one sequence, however long it grows.",
                lambda i: i.state_bytes_per_sequence,
            ),
            "parent_kv_cache_bytes_per_token": (
                "What a Transformer of the same shape would keep of each token, in 16 bits.",
                lambda i: i.parent_kv_cache_bytes_per_token,
            ),
            "model_load_seconds": ("Time to load the weights.", lambda i: i.load_seconds),
            "model_warmup_seconds": ("Time to warm up.", lambda i: i.warmup_seconds),
        }
        for name, (help, fact) in facts.items():
            self._gauge(name, help, partial(_read_info, engine, fact))
        by_state: dict[str, Callable[[EngineStats], float]] = {
            "active": lambda s: s.slots_used,
            "free": lambda s: s.slots_total - s.slots_used,
        }
        slots = self._gauge_by("state_slots_by_state", "Slots, by what they hold.", "state")
        for state, read in by_state.items():
            slots.labels(self._model_name, state).set_function(partial(_read_stats, engine, read))
        phases: dict[str, Callable[[EngineInfo], float]] = {
            "load": lambda i: i.load_seconds,
            "warmup": lambda i: i.warmup_seconds,
        }
        startup = self._gauge_by("startup_seconds", "Time that the engine's start took.", "phase")
        for phase, fact in phases.items():
            startup.labels(self._model_name, phase).set_function(partial(_read_info, engine, fact))
        self._gauge("engine_ready", "1 while the engine answers.", lambda: engine.is_ready)
        self._gauge(
            "engine_restarts", "Times the engine was started again.", lambda: engine.num_restarts
        )
        self._gauge("tasks", "Tasks of the server's event loop.", _count_tasks)
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

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the client prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _counter(self, name: str, help: str) -> Counter:
        counter = Counter(f"dijiang_{name}", help, ["model_name"], registry=self._own)
        return counter.labels(self._model_name)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"dijiang_{name}", help, ["model_name"], buckets=buckets, registry=self._own
        )
        return histogram.labels(self._model_name)

    def _gauge_by(self, name: str, help: str, label: str) -> Gauge:
        return Gauge(f"dijiang_{name}", help, ["model_name", label], registry=self._own)

    def _gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        gauge = Gauge(f"dijiang_{name}", help, ["model_name"], registry=self._own)
        gauge.labels(self._model_name).set_function(read)


def _count_tasks() -> float:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # Rendered outside the event loop.
        return math.nan


class SequenceMeter:
    """Measures one sequence from its outputs, as they reach the API process."""

    def __init__(self, metrics: Metrics, request: Request, *, counts_prompt: bool = True) -> None:
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
            self._counts_prompt = False

    def _observe_finish(self, output: RequestOutput) -> None:
        metrics = self._metrics
        self._count_prompt(output.num_prompt_tokens)
        metrics.request_prompt_tokens.observe(output.num_prompt_tokens)
        metrics.request_generation_tokens.observe(output.num_output_tokens)
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


def position_bucket(position: int) -> str:
    """The bucket of a token's position in its text, prompt included."""
    for end, bucket in POSITION_BUCKETS.items():
        if position < end:
            return bucket
    return LAST_POSITION_BUCKET


def _read_stats(engine: EngineClient, read: Callable[[EngineStats], float]) -> float:
    return read(engine.stats)


def _read_info(engine: EngineClient, read: Callable[[EngineInfo], float]) -> float:
    return read(engine.info) if engine.is_ready else math.nan
