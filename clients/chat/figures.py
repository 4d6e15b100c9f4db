"""What is told of an answer: how fast it came, and what the model keeps in memory by now."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from clients.messages import Delta, Usage


@dataclass(slots=True)
class Timing:
    """When the text of one answer arrived, as `time.perf_counter` seconds."""

    start: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float | None = None
    num_deltas: int = 0
    usage: Usage | None = None

    def saw(self, delta: Delta) -> None:
        self.usage = delta.usage or self.usage
        if delta.text:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.num_deltas += 1

    def summary(self) -> str:
        """TTFT and decode throughput, fit for one dim line under the answer."""
        if self.first is None or self.last is None:
            return "no text"
        # Where a server tells no usage, its events are the best count there is.
        num_tokens = self.usage.completion_tokens if self.usage else self.num_deltas
        parts = [f"{num_tokens} tokens", f"TTFT {self.first - self.start:.2f} s"]
        if num_tokens > 1 and self.last > self.first:
            parts.append(f"{(num_tokens - 1) / (self.last - self.first):.0f} tokens/s")
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class Memory:
    """The recurrent state of one sequence, and what a Transformer of its shape would keep."""

    state_bytes: float
    kv_bytes_per_token: float

    def summary(self, num_tokens: int) -> str:
        """The two, for a conversation of so many tokens."""
        kv_bytes = num_tokens * self.kv_bytes_per_token
        ratio = kv_bytes / self.state_bytes
        return (
            f"state {format_bytes(self.state_bytes)}, KV cache {format_bytes(kv_bytes)} by now"
            f" ({ratio:.{0 if ratio >= 9.95 else 1 if ratio >= 0.95 else 2}f}×)"
        )


def read_memory(metrics: Mapping[str, float]) -> Memory | None:
    """What a server's metrics say; None while its model loads, and for a server of another kind."""
    state = metrics.get("dijiang_state_bytes_per_sequence", 0.0)
    parent = metrics.get("dijiang_parent_kv_cache_bytes_per_token", 0.0)
    return Memory(state, parent) if state > 0 and parent > 0 else None


def format_bytes(size: float) -> str:
    """A size with three digits: 1.25 MiB."""
    unit = 0
    # Not 1024: "1,023.6 KiB" has one digit too many.
    while size >= 999.5 and unit < 4:
        size /= 1024
        unit += 1
    return f"{size:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
