"""Where the recurrent states of a forward pass come from and go to.

The decoder computes features, values and decays for a flat list of tokens; a recurrence knows which
token belongs to which sequence. It is handed to the decoder as an argument, layer by layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dijiang_runtime.ops import dispatch, torch_ops, training, windowed
from dijiang_runtime.ops.linear import CHUNK_TILE
from dijiang_runtime.ops.windowed import WindowInputs


class Recurrence(Protocol):
    """Attention over the N tokens of one forward pass.

    N tokens    Hq query heads    H key/value heads    K features    V value dim
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        """Return the read-outs [N, Hq, V] of q [N, Hq, K], k [N, H, K], v [N, H, V].

        `log_decay` has shape [H], or [N, H] where it depends on the position.
        """
        ...

    def attend_windowed(self, layer: int, inputs: WindowInputs, positions: Tensor) -> Tensor:
        """Return the outputs [N, Hq, d] of a model with a window; `positions` is [N]."""
        ...


class FreshSequences:
    """`batch` sequences of equal length that all begin with an empty state: training, evaluation.

    Differentiable. Float64 inputs are computed in float64.
    """

    def __init__(self, batch: int, length: int) -> None:
        self.batch = batch
        self.length = length

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.batch, self.length)) for x in (q, k, v))
        if log_decay.dim() == 1:
            return training.chunkwise(q, k, v, log_decay).flatten(0, 1)
        log_decay = log_decay[: self.length]  # Positions are the same in every sequence.
        # As in `training.chunkwise`: a sum over a whole sequence does not survive bfloat16.
        with torch.autocast(q.device.type, enabled=False):
            v = v.to(q.dtype)
            state = k.new_zeros(self.batch, k.shape[2], k.shape[3], v.shape[3])
            o, _ = torch_ops.chunk(q, k, v, log_decay, state)
        return o.flatten(0, 1)

    def attend_windowed(self, layer: int, inputs: WindowInputs, positions: Tensor) -> Tensor:
        x = inputs.map(lambda rows: rows.unflatten(0, (self.batch, self.length)))
        return windowed.whole(x).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class PrefillSegment:
    """Consecutive tokens of one prompt inside a batch."""

    start: int
    """Its first row in the batch."""
    length: int
    """Tokens, padding not counted. A multiple of the chunk size unless the prompt ends here."""
    source: int
    """Row of the states that holds the state before the segment."""
    target: int
    """Row that receives the state after it."""


@dataclass(frozen=True, slots=True)
class PendingTokens:
    """Tokens that the decodes of a step have read and their states have not taken in."""

    store: Tensor
    """Of all slots. Shape `StateSpec.pending_shape`, float32."""
    slots: Tensor
    """The slot of each decode. Int64."""
    counts: Tensor
    """How many tokens are pending there, before the step. Int64."""


class PooledRecurrence:
    """The rows of one engine step: decodes first, then parts of prompts, states by index.

    Every sequence is computed with shapes that depend on it alone, so that its bits do not depend
    on its neighbours. Writes `target` rows only.
    """

    def __init__(
        self,
        states: Tensor,
        decode_source: Tensor,
        decode_target: Tensor,
        prefills: Sequence[PrefillSegment] = (),
        caches: Tensor | None = None,
        pending: PendingTokens | None = None,
    ) -> None:
        """
        Args:
            states: All states. Shape [layers, rows, H, K, V], float32.
            decode_source: State row of each decode, which come first in the batch. Int64.
            decode_target: Where its next state goes. Int64.
            prefills: Parts of prompts, in batch order, after the decodes. Rows that belong to
                neither are padding: their read-out is 0.
            caches: Keys and values of the windows, of a model that has them. Shape
                [layers, rows, H, 2, S + W + 1, d], float32; rows as in `states`.
            pending: Of a model that leaves tokens pending. A decode whose target is its source
                keeps its state and adds its token to them; another one takes all of them in.
        """
        self.states = states
        self.decode_source = decode_source
        self.decode_target = decode_target
        self.prefills = prefills
        self.caches = caches
        self.pending = pending
        self._finite: list[Tensor] = []

    def finite_rows(self) -> Tensor:
        """Which rows have left a state behind, in every layer, that holds only finite values.

        Not all that is wrong with a state shows in the model's output at once: the state after a
        prompt chunk is first read by the next step, and an infinite feature mass divides a
        read-out to 0. A decode's read-out sums over the whole of its next state, so that it is
        finite only if the state is. Shape [N], bool.
        """
        if len(self._finite) == 1:
            return self._finite[0]
        return torch.stack(self._finite).all(dim=0)

    def report_finite(self, rows: Tensor) -> None:
        """Say for a layer, or for all of them, which rows have left finite values behind. [N]"""
        self._finite.append(rows)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        states = self.states[layer]
        out = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
        if num_decodes := self.decode_source.shape[0]:
            decay = log_decay if log_decay.dim() == 1 else log_decay[:num_decodes]
            out[:num_decodes] = dispatch.step(
                q[:num_decodes],
                k[:num_decodes],
                v[:num_decodes],
                decay,
                states,
                self.decode_source,
                self.decode_target,
            )
        for segment in self.prefills:
            state = states[segment.source].unsqueeze(0)
            # Chunk by chunk, so that no product's shape depends on how the prompt was cut.
            for offset in range(0, segment.length, CHUNK_TILE):
                first = segment.start + offset
                rows = slice(first, first + min(CHUNK_TILE, segment.length - offset))
                decay = log_decay if log_decay.dim() == 1 else log_decay[rows]
                o, state = torch_ops.chunk(
                    q[rows].unsqueeze(0), k[rows].unsqueeze(0), v[rows].unsqueeze(0), decay, state
                )
                out[rows] = o[0]
            states[segment.target] = state[0]
        self._note_finite_rows(out, states)
        return out

    def attend_windowed(self, layer: int, inputs: WindowInputs, positions: Tensor) -> Tensor:
        assert self.caches is not None, "a model with windows is given their caches"
        states, caches = self.states[layer], self.caches[layer]
        out = torch.zeros_like(inputs.q)
        if num_decodes := self.decode_source.shape[0]:
            decodes = inputs.rows(slice(num_decodes))

            def linear_step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                named = states, self.decode_source, self.decode_target
                return dispatch.step(q, k, v, decodes.log_decay, *named)

            out[:num_decodes] = windowed.step(
                decodes,
                positions[:num_decodes],
                caches,
                self.decode_source,
                self.decode_target,
                linear_step,
            )
        for segment in self.prefills:
            state, cache = states[segment.source, None], caches[segment.source, None]
            for offset in range(0, segment.length, CHUNK_TILE):
                first = segment.start + offset
                rows = slice(first, first + min(CHUNK_TILE, segment.length - offset))
                part = inputs.rows(rows).map(lambda x: x.unsqueeze(0))
                start = positions[first : first + 1]
                o, state, cache = windowed.chunk(part, state, cache, start)
                out[rows] = o[0]
            states[segment.target], caches[segment.target] = state[0], cache[0]
        self._note_finite_rows(out, states, caches)
        return out

    def _note_finite_rows(self, out: Tensor, *stores: Tensor) -> None:
        finite = out.isfinite().flatten(1).all(dim=1)
        for segment in self.prefills:
            for store in stores:
                finite[segment.start] &= store[segment.target].isfinite().all()
        self.report_finite(finite)
