"""What the engine says of itself, as gauges that are read when somebody asks."""

import asyncio
import math
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Gauge

from dijiang_runtime.engine.client import EngineClient
from dijiang_runtime.engine.messages import EngineInfo, EngineStats


def export_engine(engine: EngineClient, registry: CollectorRegistry, model_name: str) -> None:
    """Declare the engine's gauges."""

    def gauge_by(name: str, help: str, label: str) -> Gauge:
        return Gauge(f"dijiang_{name}", help, ["model_name", label], registry=registry)

    def gauge(name: str, help: str, read: Callable[[], float]) -> None:
        made = Gauge(f"dijiang_{name}", help, ["model_name"], registry=registry)
        made.labels(model_name).set_function(read)

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
        gauge(name, help, partial(_read_stats, engine, read))
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
        gauge(name, help, partial(_read_info, engine, fact))
    by_state: dict[str, Callable[[EngineStats], float]] = {
        "active": lambda s: s.slots_used,
        "free": lambda s: s.slots_total - s.slots_used,
    }
    slots = gauge_by("state_slots_by_state", "Slots, by what they hold.", "state")
    for state, read in by_state.items():
        slots.labels(model_name, state).set_function(partial(_read_stats, engine, read))
    by_reason: dict[str, Callable[[EngineStats], float]] = {
        "capacity": lambda s: s.waiting - s.awaiting_grammars,
        "deferred": lambda s: s.awaiting_grammars,
    }
    waiting = gauge_by(
        "num_requests_waiting_by_reason",
        "Sequences that wait for a slot (capacity), or for their grammar (deferred).",
        "reason",
    )
    for reason, read in by_reason.items():
        waiting.labels(model_name, reason).set_function(partial(_read_stats, engine, read))
    phases: dict[str, Callable[[EngineInfo], float]] = {
        "load": lambda i: i.load_seconds,
        "warmup": lambda i: i.warmup_seconds,
    }
    startup = gauge_by("startup_seconds", "Time that the engine's start took.", "phase")
    for phase, fact in phases.items():
        startup.labels(model_name, phase).set_function(partial(_read_info, engine, fact))
    gauge("engine_ready", "1 while the engine answers.", lambda: engine.is_ready)
    gauge("engine_restarts", "Times the engine was started again.", lambda: engine.num_restarts)
    gauge("tasks", "Tasks of the server's event loop.", _count_tasks)


def _count_tasks() -> float:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # Rendered outside the event loop.
        return math.nan


def _read_stats(engine: EngineClient, read: Callable[[EngineStats], float]) -> float:
    return read(engine.stats)


def _read_info(engine: EngineClient, read: Callable[[EngineInfo], float]) -> float:
    return read(engine.info) if engine.is_ready else math.nan
