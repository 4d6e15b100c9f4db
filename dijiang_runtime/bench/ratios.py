"""The engine beside what the machine can do and beside other engines, in one run, in turns."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dijiang_runtime.bench.ceilings import Ceilings, median_of
from dijiang_runtime.bench.engine import Bench, BenchOptions
from dijiang_runtime.bench.facts import describe_machine, describe_model
from dijiang_runtime.bench.peers import Peer
from dijiang_runtime.bench.phases import TimedDecoder
from dijiang_runtime.bench.timing import now
from dijiang_runtime.models.compiled import CompiledDecoder
from dijiang_runtime.models.packed import PackedLinear
from dijiang_runtime.models.serving import ServingModel, decoder_of

Progress = Callable[[str], None]

PROJECTIONS = "projections"
PROMPT_ROWS = BenchOptions().max_batched_tokens
"""Rows of a step that a long prompt has to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOptions:
    """What to compare."""

    decodes: tuple[tuple[int, int], ...]
    """Batch and position."""
    prefills: tuple[int, ...]
    rounds: int
    turn_seconds: float = 0.3
    """About how long each turn of an engine takes."""


class RatioBench:
    """Owns the engine; is lent the peers and what measures the ceilings, in turns with them."""

    def __init__(
        self,
        model: ServingModel,
        options: RatioOptions,
        measure: Callable[[], Ceilings],
        progress: Progress,
    ) -> None:
        batches = tuple(batch for batch, _ in options.decodes)
        self._timed = TimedDecoder(model) if isinstance(model, CompiledDecoder) else None
        model = self._timed or model
        self._engine = Bench(model, BenchOptions(batches=batches), progress)
        self._facts = describe_model(decoder_of(model))
        self._decoder = decoder = decoder_of(model)
        embedding = decoder.embed_tokens.weight.numel()
        head = self._facts["vocab_size"] * self._facts["hidden_size"]
        self._layer_weights = (
            self._facts["num_parameters"]
            - embedding
            - (0 if decoder.config.tie_word_embeddings else head)
        )
        self._decode_weights = self._layer_weights + head
        self._options = options
        self._measure = measure
        self._progress = progress

    def run(self, peers: Sequence[Peer]) -> dict[str, Any]:
        """Measure everything. The result is plain data, ready for JSON."""
        return {
            "machine": describe_machine(),
            "model": self._facts,
            "decode": [self._decode(b, p, peers) for b, p in self._options.decodes],
            "prefill": [self._prefill(n, peers) for n in self._options.prefills],
        }

    def _decode(self, batch: int, position: int, peers: Sequence[Peer]) -> dict[str, Any]:
        self._progress(f"decode of {batch} at {position:,}")
        engines = {"engine": self._engine.decode_seconds} | {p.name: p.decode for p in peers}
        steps: dict[str, int] = {}
        for name, decode in engines.items():
            decode(batch, position, 1)  # Runs the peer's prompt, too.
            # A KV cache grows while it decodes: short turns keep it at the position.
            most = 16 if name != "engine" else 1000
            wanted = self._options.turn_seconds / decode(batch, position, 1)
            steps[name] = max(1, min(most, round(wanted)))
        turns = {
            name: partial(decode, batch, position, steps[name]) for name, decode in engines.items()
        }
        seconds, ceilings = self._in_turns(self._options.rounds, turns)
        num_bytes = self._facts["weight_bytes"] + 2 * batch * self._facts["state_bytes"]
        num_operations = 2 * batch * self._decode_weights
        ours = seconds["engine"]["median"]
        by_memory = num_bytes / ceilings.memory
        by_matrix = num_operations / ceilings.matrix
        return {
            "batch": batch,
            "position": position,
            "seconds": seconds,
            "bytes": num_bytes,
            "ceilings": asdict(ceilings),
            "bandwidth_share": num_bytes / ours / ceilings.memory,
            "cached_bandwidth_share": num_bytes / ours / ceilings.cached,
            "roofline_share": max(by_memory, by_matrix) / ours,
            "bound_by": "memory" if by_memory > by_matrix else "matrix",
            "speed_ups": _speed_ups(seconds),
        }

    def _prefill(self, length: int, peers: Sequence[Peer]) -> dict[str, Any]:
        self._progress(f"prefill of {length:,}")
        engines = {"engine": self._engine.prefill_seconds} | {p.name: p.prefill for p in peers}
        rounds = max(3, self._options.rounds // 3)
        turns = {name: partial(prefill, length) for name, prefill in engines.items()}
        products = self._products(length) or self._projections_alone(length)
        seconds, ceilings = self._in_turns(rounds, turns | {PROJECTIONS: products})
        projections = seconds.pop(PROJECTIONS)["median"]
        operations = 2 * length * self._layer_weights
        return {
            "length": length,
            "seconds": seconds,
            "ceilings": asdict(ceilings),
            "matrix_share": operations / seconds["engine"]["median"] / ceilings.matrix,
            "projection_share": operations / projections / ceilings.matrix,
            "speed_ups": _speed_ups(seconds),
        }

    def _in_turns(
        self, rounds: int, contenders: Mapping[str, Callable[[], float]]
    ) -> tuple[dict[str, dict[str, float]], Ceilings]:
        measured: dict[str, list[float]] = {name: [] for name in contenders}
        ceilings = []
        for _ in range(rounds):
            ceilings.append(self._measure())
            for name, contender in contenders.items():
                measured[name].append(contender())
        found = {name: _quartiles(values) for name, values in measured.items()}
        return found, median_of(ceilings)

    def _products(self, length: int) -> Callable[[], float] | None:
        """A contender: what a prompt spends in the layers' matrix products, where that is known."""
        if (timed := self._timed) is None:
            return None

        def prefill() -> float:
            timed.start()
            self._engine.prefill_seconds(length)
            return timed.stop()["products"]

        return prefill

    def _projections_alone(self, length: int) -> Callable[[], float]:
        """A contender: these products by themselves, for as many rows as a prompt has in a step."""
        modules = self._decoder.layers.modules()
        layers = [m for m in modules if isinstance(m, PackedLinear | torch.nn.Linear)]
        device = self._decoder.embed_tokens.weight.device
        sizes = {layer.in_features for layer in layers}
        inputs = {size: torch.randn(PROMPT_ROWS, size, device=device) for size in sizes}
        multiply = _multiply_fused if device.type == "cuda" else _multiply

        def multiply_all() -> float:
            start = now()
            for layer in layers:
                multiply(layer, inputs[layer.in_features])
            return (now() - start) * length / PROMPT_ROWS

        multiply_all()
        return multiply_all


def _multiply(layer: Any, x: Tensor) -> None:
    layer(x)


def _multiply_fused(layer: Any, x: Tensor) -> None:
    """As `FusedDecoder` does."""
    # Imports Triton, which a CPU does without.
    from dijiang_runtime.ops import triton

    triton.linear(x, layer.weight, layer.bias, is_prompt=True)


def _quartiles(seconds: list[float]) -> dict[str, float]:
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def _speed_ups(seconds: dict[str, dict[str, float]]) -> dict[str, float]:
    ours = seconds["engine"]["median"]
    return {name: s["median"] / ours for name, s in seconds.items() if name != "engine"}
