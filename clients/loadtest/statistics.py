"""Figures from samples: percentiles, distributions, and what happened in each moment of a run."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from clients.loadtest.records import RequestRecord

PERCENTILES = (50, 90, 95, 99)
# Every half percent, and the tail, which is what matters, more finely.
CDF_POINTS = tuple(i / 200 for i in range(198)) + tuple(i / 1000 for i in range(990, 1001))
BIN_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600)
MAX_BINS = 120


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """The quantile of ordered samples, interpolated linearly between the two nearest.

    This is NumPy's default, and type 7 of Hyndman and Fan (1996).
    """
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    # Weighted this way round, equal neighbours give exactly themselves.
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def summarize(samples: Iterable[float]) -> dict[str, Any] | None:
    """Count, mean, percentiles and extremes, or None where there are no samples."""
    ordered = sorted(samples)
    if not ordered:
        return None
    return {
        "count": len(ordered),
        "mean": math.fsum(ordered) / len(ordered),
        "min": ordered[0],
        **{f"p{p}": quantile(ordered, p / 100) for p in PERCENTILES},
        "max": ordered[-1],
    }


def distribution(samples: Iterable[float]) -> list[list[float]]:
    """The cumulative distribution as pairs of value and fraction; empty without samples."""
    ordered = sorted(samples)
    return [[quantile(ordered, f), f] for f in CDF_POINTS] if ordered else []


def timeline(records: Iterable[RequestRecord], span_seconds: float) -> dict[str, Any]:
    """What went on in each bin of a run: output tokens, running, sent, ended and failed requests.

    `running` is the mean over the bin, `tokens` and the others are counts. A request without
    usage counts its events as tokens; one with it spreads its tokens over its events evenly.
    """
    fits = (width for width in BIN_SECONDS if span_seconds / width <= MAX_BINS)
    width = next(fits, span_seconds / MAX_BINS)
    num_bins = max(1, math.ceil(span_seconds / width))
    bins = {name: [0.0] * num_bins for name in ("tokens", "running", "sent", "ended", "failed")}
    last = num_bins - 1
    for record in records:
        first_bin, last_bin = (min(last, int(t / width)) for t in (record.sent, record.ended))
        bins["sent"][first_bin] += 1
        bins["ended" if record.error is None else "failed"][last_bin] += 1
        for i in range(first_bin, last_bin + 1):
            inside = min(record.ended, (i + 1) * width) - max(record.sent, i * width)
            bins["running"][i] += max(0.0, inside) / width
        if record.token_times:
            share = record.num_output_tokens / len(record.token_times)
            for at in record.token_times:
                bins["tokens"][min(last, int(at / width))] += share
    return {"bin_seconds": width, **bins}
