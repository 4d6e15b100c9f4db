"""A step's plan as the flat rows that the model computes.

First the decodes, one row each, padded to whole row tiles; then each prompt chunk, padded to its
own tiles. Tiles have fixed sizes and a chunk has tiles of its own, so no matrix product's shape
depends on who else is in the batch. A model whose rows do not depend on each other in any case
gets them without padding.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from dijiang_runtime.engine.scheduler_output import ScheduledSequence
from dijiang_runtime.engine.state_pool import StatePool
from dijiang_runtime.engine.transfers import to_device
from dijiang_runtime.models.recurrence import PendingTokens, PooledRecurrence, PrefillSegment
from dijiang_runtime.ops.linear import prompt_tiles, row_tiles


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step. N counts rows, padding included."""

    token_ids: Tensor  # [N]
    positions: Tensor  # [N]
    tiles: tuple[int, ...]
    recurrence: PooledRecurrence
    rows: tuple[slice, ...]
    """Which rows each scheduled sequence has, in the order of the plan, padding left out."""
    num_decodes: int
    """Sequences that decode. They come first."""
    kept: frozenset[int]
    """The places of those that keep their state, and leave their token pending."""


def build_batch(
    items: Seq[ScheduledSequence], pool: StatePool, device: torch.device, *, needs_tiles: bool
) -> Batch:
    """Lay out sequences that decode, then sequences that prefill, in the order given.

    Without tiles there is no padding.
    """
    # Every sequence is looked at once: what a step costs in Python is paid by all of them.
    rows, prefills = _Rows(), []
    source: list[int] = []
    target: list[int] = []
    slots: list[int] = []
    counts: list[int] = []
    kept: set[int] = set()
    fold_every = pool.num_pending_tokens + 1
    for item in items:
        sequence, slot = item.sequence, item.slot
        position = sequence.num_computed_tokens
        if position < sequence.num_prompt_tokens:
            prefills.append(item)
            continue
        place = len(source)
        rows.add(item)
        source.append(pool.source(slot))
        # A matter of its position alone, so that its bits do not depend on when it was scheduled.
        if (position + 1) % fold_every == 0:
            target.append(pool.target(slot))
        else:
            kept.add(place)
            target.append(source[place])
        slots.append(slot)
        # Tokens since the last fold, or since the prompt.
        counts.append(min(position % fold_every, position - sequence.num_prompt_tokens))
    num_decodes = len(source)
    if needs_tiles:
        rows.pad(row_tiles(num_decodes))
    segments = []
    for item in prefills:
        start, slot = len(rows.token_ids), item.slot
        segment = PrefillSegment(start, item.num_tokens, pool.source(slot), pool.target(slot))
        segments.append(segment)
        rows.add(item)
        if needs_tiles:
            rows.pad(prompt_tiles(item.num_tokens))

    # One transfer for all.
    parts = rows.token_ids, rows.positions, source, target, slots, counts
    integers = to_device(np.asarray(list(chain(*parts)), dtype=np.int64), device)
    sizes = [len(part) for part in parts]
    token_ids, positions, source_rows, target_rows, *where = integers.split_with_sizes(sizes)
    pending = PendingTokens(pool.pending, *where) if pool.num_pending_tokens else None
    return Batch(
        token_ids=token_ids,
        positions=positions,
        tiles=tuple(rows.tiles),
        recurrence=PooledRecurrence(
            pool.states, source_rows, target_rows, segments, pool.caches, pending
        ),
        rows=tuple(rows.slices),
        num_decodes=num_decodes,
        kept=frozenset(kept),
    )


@dataclass(slots=True)
class _Rows:
    """Rows under construction."""

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slices: list[slice] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)

    def add(self, item: ScheduledSequence) -> None:
        sequence, num_tokens = item.sequence, item.num_tokens
        start, position = len(self.token_ids), sequence.num_computed_tokens
        self.token_ids.extend(sequence.tokens_to_compute(num_tokens))
        self.positions.extend(range(position, position + num_tokens))
        self.slices.append(slice(start, start + num_tokens))

    def pad(self, tiles: Seq[int]) -> None:
        """Fill up to the end of `tiles`, which begin where the last ones ended."""
        self.tiles.extend(tiles)
        padding = [0] * (sum(self.tiles) - len(self.token_ids))
        self.token_ids.extend(padding)
        self.positions.extend(padding)
