"""What the process takes of the machine, under the names that Prometheus has for it."""

import asyncio
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

Together = Literal["sum", "min"]

_TOGETHER: Final[dict[str, Together]] = {
    "process_start_time_seconds": "min",
    "process_max_fds": "min",
}
"""What is exported of several processes where it is not the sum."""


class ProcessMetrics:
    """Measures the process itself when told to. Of several that share their metrics, the sum."""

    def __init__(self, model_name: str, registry: CollectorRegistry) -> None:
        # It reads; what it has read is exported as ours, so that processes can be added up.
        self._reader = ProcessCollector(registry=None)
        self._counters: dict[str, Counter] = {}
        self._counted: dict[str, float] = {}
        self._gauges: dict[str, Gauge] = {}
        for family in self._reader.collect():
            name, text = family.name, family.documentation
            if family.type == "counter":
                self._counters[name] = Counter(name, text, registry=registry)
            else:
                mode = _TOGETHER.get(name, "sum")
                self._gauges[name] = Gauge(name, text, registry=registry, multiprocess_mode=mode)
        tasks = Gauge(
            "dijiang_tasks",
            "Tasks of the server's event loop.",
            ["model_name"],
            registry=registry,
            multiprocess_mode="sum",
        )
        self._tasks = tasks.labels(model_name)

    def update(self) -> None:
        """Take over how things are now. Called from the event loop."""
        self._tasks.set(len(asyncio.all_tasks()))
        for family in self._reader.collect():
            [sample] = family.samples
            if family.name in self._gauges:
                self._gauges[family.name].set(sample.value)
                continue
            before = self._counted.get(family.name, 0.0)
            self._counters[family.name].inc(sample.value - before)
            self._counted[family.name] = sample.value
