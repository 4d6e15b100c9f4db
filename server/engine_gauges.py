"""What the engine says of itself, as gauges that are read when somebody asks."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dijiang_runtime.engine.client import EngineClient
from dijiang_runtime.engine.messages import EngineInfo, EngineStats

_STATS: Final[dict[str, tuple[str, Callable[[EngineStats], float]]]] = {
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

_FACTS: Final[dict[str, tuple[str, Callable[[EngineInfo], float]]]] = {
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

_BY_STATE: Final[dict[str, Callable[[EngineStats], float]]] = {
    "active": lambda s: s.slots_used,
    "free": lambda s: s.slots_total - s.slots_used,
}
_BY_REASON: Final[dict[str, Callable[[EngineStats], float]]] = {
    "capacity": lambda s: s.waiting - s.awaiting_grammars,
    "deferred": lambda s: s.awaiting_grammars,
}
_BY_PHASE: Final[dict[str, Callable[[EngineInfo], float]]] = {
    "load": lambda i: i.load_seconds,
    "warmup": lambda i: i.warmup_seconds,
}


class EngineGauges(Collector):
    """The engine's gauges. What is not known while there is no engine is not a number."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        engine, stats = self._engine, self._engine.stats
        info = engine.info if engine.is_ready else None

        def fact(read: Callable[[EngineInfo], float]) -> float:
            return math.nan if info is None else read(info)

        for name, (text, read) in _STATS.items():
            yield self._gauge(name, text, read(stats))
        for name, (text, read_fact) in _FACTS.items():
            yield self._gauge(name, text, fact(read_fact))
        yield self._gauge_by(
            "state_slots_by_state",
            "Slots, by what they hold.",
            "state",
            {state: read(stats) for state, read in _BY_STATE.items()},
        )
        yield self._gauge_by(
            "num_requests_waiting_by_reason",
            "Sequences that wait for a slot (capacity), or for their grammar (deferred).",
            "reason",
            {reason: read(stats) for reason, read in _BY_REASON.items()},
        )
        yield self._gauge_by(
            "startup_seconds",
            "Time that the engine's start took.",
            "phase",
            {phase: fact(read) for phase, read in _BY_PHASE.items()},
        )
        yield self._gauge("engine_ready", "1 while the engine answers.", engine.is_ready)
        yield self._gauge(
            "engine_restarts", "Times the engine was started again.", engine.num_restarts
        )

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"dijiang_{name}", text, labels=["model_name"])
        gauge.add_metric([self._model_name], value)
        return gauge

    def _gauge_by(self, name: str, text: str, label: str, values: dict[str, float]) -> Metric:
        gauge = GaugeMetricFamily(f"dijiang_{name}", text, labels=["model_name", label])
        for value_of_label, value in values.items():
            gauge.add_metric([self._model_name, value_of_label], value)
        return gauge
