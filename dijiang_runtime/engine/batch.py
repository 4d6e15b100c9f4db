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

from dijiang_runtime.engine.scheduler import ScheduledSequence
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
    decodes = [item for item in items if not item.sequence.is_prefilling]
    prefills = [item for item in items if item.sequence.is_prefilling]
    rows = _Rows()
    for item in decodes:
        rows.add(item)
    if needs_tiles:
        rows.pad(row_tiles(len(decodes)))
    kept = frozenset(i for i, item in enumerate(decodes) if not _folds(item, pool))
    source = [pool.source(item.slot) for item in decodes]
    target = [source[i] if i in kept else pool.target(item.slot) for i, item in enumerate(decodes)]
    segments = []
    for item in prefills:
        start, slot = len(rows.token_ids), item.slot
        segment = PrefillSegment(start, item.num_tokens, pool.source(slot), pool.target(slot))
        segments.append(segment)
        rows.add(item)
        if needs_tiles:
            rows.pad(prompt_tiles(item.num_tokens))

    slots = [item.slot for item in decodes]
    counts = [_num_pending(item, pool) for item in decodes]
    # One transfer for all.
    parts = rows.token_ids, rows.positions, source, target, slots, counts
    integers = to_device(np.asarray(list(chain(*parts)), dtype=np.int64), device)
    sizes = [len(part) for part in parts]
    token_ids, positions, source_rows, target_rows, *where = torch.split(integers, sizes)
    pending = PendingTokens(pool.pending, *where) if pool.num_pending_tokens else None
    return Batch(
        token_ids=token_ids,
        positions=positions,
        tiles=tuple(rows.tiles),
        recurrence=PooledRecurrence(
            pool.states, source_rows, target_rows, segments, pool.caches, pending
        ),
        rows=tuple(rows.slices),
        num_decodes=len(decodes),
        kept=kept,
    )


def _folds(item: ScheduledSequence, pool: StatePool) -> bool:
    """Whether a decode takes the tokens that are pending, and its own, into the state.

    A matter of its position alone, so that its bits do not depend on when it was scheduled.
    """
    return (item.sequence.num_computed_tokens + 1) % (pool.num_pending_tokens + 1) == 0


def _num_pending(item: ScheduledSequence, pool: StatePool) -> int:
    """Tokens of a decode that are pending: those since the last fold, or since the prompt."""
    position = item.sequence.num_computed_tokens
    since_fold = position % (pool.num_pending_tokens + 1)
    return min(since_fold, position - item.sequence.num_prompt_tokens)


@dataclass(slots=True)
class _Rows:
    """Rows under construction."""

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slices: list[slice] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)

    def add(self, item: ScheduledSequence) -> None:
        start, position = len(self.token_ids), item.sequence.num_computed_tokens
        self.token_ids.extend(item.sequence.tokens_to_compute(item.num_tokens))
        self.positions.extend(range(position, position + item.num_tokens))
        self.slices.append(slice(start, start + item.num_tokens))

    def pad(self, tiles: Seq[int]) -> None:
        """Fill up to the end of `tiles`, which begin where the last ones ended."""
        self.tiles.extend(tiles)
        padding = [0] * (sum(self.tiles) - len(self.token_ids))
        self.token_ids.extend(padding)
        self.positions.extend(padding)
