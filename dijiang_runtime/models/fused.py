"""A decoder whose layers are a few fused kernels each, for CUDA devices.

The torch decoder says what they must compute; `tests/models/test_fused.py` holds them to it, in
Triton's interpreter where there is no GPU. Rows that decode and rows of prompts go through passes
of their own, so that a row meets the same kernels whatever else is in the step.

N tokens    D hidden    Hq query heads    H key/value heads    d head dim
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.decoder import OPT_POSITION_OFFSET, Decoder
from dijiang_runtime.models.fused_layer import FusedLayer, affine_of, fused_layer, matrix_of
from dijiang_runtime.models.recurrence import PooledRecurrence, PrefillSegment
from dijiang_runtime.models.rotary import rotary_angles
from dijiang_runtime.ops.linear import Tiles


def is_covered(config: ModelConfig) -> bool:
    """Whether the kernels compute every part of such a model: all but a window's softmax."""
    return not config.attention.window


@dataclass(frozen=True, slots=True)
class _Pass:
    """Rows that are computed alike: all decode, or all are of prompts."""

    token_ids: Tensor
    positions: Tensor
    states: Tensor
    where: tuple[Tensor, Tensor] | Tensor
    """Source and target of each row; or the parts of prompts, [n, 4]."""

    @property
    def is_prompt(self) -> bool:
        return isinstance(self.where, Tensor)


class FusedDecoder:
    """What the engine needs of a decoder. Rows need no tiles: their bits never depend on others."""

    needs_tiles = False
    num_pending_tokens = 0

    def __init__(self, model: Decoder) -> None:
        """`model` is on its device, in its dtype, and has a config that is covered. Its matrices
        become parts of joint ones."""
        # Imports Triton, which a CPU does without.
        from dijiang_runtime.ops import triton

        self._ops = triton
        self.config = model.config
        self.model = model
        self._layers = [fused_layer(layer, model.config) for layer in model.layers]

    def hidden(
        self,
        token_ids: Tensor,
        positions: Tensor,
        recurrence: PooledRecurrence,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """Return the final hidden states [N, D]. Arguments as for `Decoder.hidden`.

        Every row belongs to a decode or to a part of a prompt: there is no padding.
        """
        num_decodes = len(recurrence.decode_source)
        hidden, finite = [], []
        if num_decodes:
            rows = slice(num_decodes)
            where = recurrence.decode_source, recurrence.decode_target
            x, good = self.decode(token_ids[rows], positions[rows], recurrence.states, *where)
            hidden.append(x)
            finite.append(good)
        if recurrence.prefills:
            rows = slice(num_decodes, None)
            parts = _parts(recurrence.prefills, num_decodes, token_ids.device)
            step = _Pass(token_ids[rows], positions[rows], recurrence.states, parts)
            x, good = self._run(step)
            hidden.append(x)
            finite.append(good.repeat_interleave(parts[:, 1], output_size=len(x)))
        recurrence.report_finite(torch.cat(finite))
        return torch.cat(hidden) if len(hidden) > 1 else hidden[0]

    def decode(
        self, token_ids: Tensor, positions: Tensor, states: Tensor, source: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute one token of every row. The host waits for nothing.

        Args:
            token_ids, positions: [N], int64.
            states: Shape [layers, rows, H, K, V], float32.
            source, target: Rows to read and to write. [N], int64.

        Returns:
            The final hidden states [N, D], and which rows are finite, state included. [N], bool.
        """
        return self._run(_Pass(token_ids, positions, states, (source, target)))

    def logits(self, hidden: Tensor, tiles: Tiles | None = None) -> Tensor:
        """Return the logits [N, V] of hidden states [N, D], float32."""
        model = self.model
        if model.has_projections:
            hidden = self._linear(hidden, matrix_of(model.project_out), is_prompt=False)
        tied = self.config.tie_word_embeddings
        weight = model.embed_tokens.weight if tied else model.lm_head.weight
        return self._linear(hidden, (weight, None), is_prompt=False)

    def _run(self, step: _Pass) -> tuple[Tensor, Tensor]:
        """The hidden states, and which rows, or which parts of prompts, are finite. [n], bool"""
        model = self.model
        x = F.embedding(step.token_ids, model.embed_tokens.weight).float()
        if model.has_projections:
            x = self._linear(x, matrix_of(model.project_in), is_prompt=step.is_prompt)
        if self.config.learned_positions:
            at = step.positions + OPT_POSITION_OFFSET
            x = x + F.embedding(at, model.embed_positions.weight).float()
        angles = None
        if self.config.rotary_dim:
            angles = rotary_angles(step.positions, model.rotary_frequencies, torch.float32)
        finite = []
        for i, layer in enumerate(self._layers):
            x, good = self._run_layer(layer, x, step, angles, step.states[i])
            finite.append(good)
        if self.config.final_norm:
            [x] = self._norm(x, affine_of(model.final_norm), out_dtype=torch.float32)
        return x, (torch.stack(finite) > 0).all(dim=0).all(dim=1)

    def _run_layer(
        self,
        layer: FusedLayer,
        x: Tensor,
        step: _Pass,
        angles: tuple[Tensor, Tensor] | None,
        states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dtype, is_prompt = layer.o[0].dtype, step.is_prompt
        if not self.config.norm_first:
            y, finite = self._attend(layer, x, step, angles, states)
            x = self._linear(y, layer.o, is_prompt=is_prompt, residual=x)
            [x] = self._norm(x, layer.attention_norm, out_dtype=torch.float32)
            x = self._mlp(layer, x, x, is_prompt)
            [x] = self._norm(x, layer.mlp_norm, out_dtype=torch.float32)
            return x, finite
        if self.config.parallel_residual:
            both = layer.attention_norm, layer.mlp_norm
            normed, mlp_in = self._norm(x, *both, out_dtype=dtype)
        else:
            [normed] = self._norm(x, layer.attention_norm, out_dtype=dtype)
        y, finite = self._attend(layer, normed, step, angles, states)
        x = self._linear(y, layer.o, is_prompt=is_prompt, residual=x)
        if not self.config.parallel_residual:
            [mlp_in] = self._norm(x, layer.mlp_norm, out_dtype=dtype)
        return self._mlp(layer, mlp_in, x, is_prompt), finite

    def _attend(
        self,
        layer: FusedLayer,
        x: Tensor,
        step: _Pass,
        angles: tuple[Tensor, Tensor] | None,
        states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gated read-out [N, Hq d], and per head which rows or parts are finite."""
        ops, dtype, options = self._ops, layer.o[0].dtype, self.config.attention
        rows = ops.linear(x, *layer.qkvg, is_prompt=step.is_prompt)
        has_norm = layer.group_norm is not None
        kept: dict[str, Any] = {
            "gated": options.gate and not has_norm,
            "out_dtype": torch.float32 if has_norm else dtype,
        }
        inputs = rows, layer.heads, angles, step.positions, states
        if isinstance(step.where, Tensor):
            y, finite = ops.prefill(*inputs, step.where, **kept)
        else:
            y, finite = ops.decode(*inputs, *step.where, **kept)
        if layer.group_norm is not None:
            gate = rows[:, layer.heads.gate_offset :] if options.gate else None
            groups = {"num_groups": options.num_groups, "eps": 1e-5}
            y = ops.group_norm(y, *layer.group_norm, gate, out_dtype=dtype, **groups)
        return y, finite

    def _mlp(self, layer: FusedLayer, x: Tensor, residual: Tensor, is_prompt: bool) -> Tensor:
        inner = self._ops.linear(
            x,
            *layer.up,
            is_prompt=is_prompt,
            activation=self.config.activation,
            gated=self.config.gated_mlp,
        )
        return self._linear(inner, layer.down, is_prompt=is_prompt, residual=residual)

    def _linear(
        self,
        x: Tensor,
        matrix: tuple[Tensor, Tensor | None],
        *,
        is_prompt: bool,
        residual: Tensor | None = None,
    ) -> Tensor:
        """A product in float32."""
        weight, bias = matrix
        return self._ops.linear(
            x, weight, bias, is_prompt=is_prompt, residual=residual, out_dtype=torch.float32
        )

    def _norm(
        self, x: Tensor, *affines: tuple[Tensor, Tensor | None], out_dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        is_rms = self.config.norm == "rmsnorm"
        eps = self.config.norm_eps
        return self._ops.norm(x, *affines, eps=eps, is_rms=is_rms, out_dtype=out_dtype)


def _parts(prefills: Sequence[PrefillSegment], first: int, device: torch.device) -> Tensor:
    """First row after the decodes, length, source and target of each part. [n, 4], int64."""
    rows = [[s.start - first, s.length, s.source, s.target] for s in prefills]
    # From pinned memory a device takes it when it comes to it: the host does not wait.
    parts = torch.tensor(rows, pin_memory=device.type == "cuda")
    return parts.to(device, non_blocking=True)
