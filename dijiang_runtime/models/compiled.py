"""A decoder whose whole step is one call into the compiled kernels.

The torch decoder says what the kernels must compute; `tests/models/test_compiled.py` holds them to
it. What they do not cover runs in torch, with packed matrices all the same.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.decoder import OPT_POSITION_OFFSET, Decoder
from dijiang_runtime.models.layers import RMSNorm
from dijiang_runtime.models.packed import PackedLinear, pack_model
from dijiang_runtime.models.recurrence import PendingTokens, PooledRecurrence
from dijiang_runtime.ops import cpu
from dijiang_runtime.ops.cpu.library import (
    FORMATS,
    NUMBERS,
    BatchStruct,
    Context,
    DecoderStruct,
    LayerStruct,
    MatrixStruct,
    NormStruct,
)
from dijiang_runtime.ops.cpu.packed import WeightFormat, multiply_by
from dijiang_runtime.ops.cpu.sampling import Panels, RowScan, TokenSet
from dijiang_runtime.ops.linear import CHUNK_TILE, Tiles

NUM_PENDING_TOKENS = 3
"""Tokens that a state may lag behind. Writing a state takes as long as reading it, so it is written
every fourth step; more would save little, and their own keys and values must be read as well."""

_LANES = 16
_NORMS = {"layernorm": 0, "rmsnorm": 1}
_ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3}


def is_covered(config: ModelConfig) -> bool:
    """Whether the kernels compute every part of such a model."""
    attention = config.attention
    return attention.feature_map == "softmax" and not attention.decay_tables


def prepare(model: Decoder, weight_format: WeightFormat) -> "Decoder | CompiledDecoder":
    """Pack a model's matrices, in place, and compile its step where the kernels cover it."""
    context = cpu.context()
    return compile_packed(pack_model(model, weight_format, context), context)


def compile_packed(model: Decoder, context: Context) -> "Decoder | CompiledDecoder":
    """Compile the step of a model whose matrices are packed, where the kernels cover it."""
    return CompiledDecoder(model, context) if is_covered(model.config) else model


class CompiledDecoder:
    """What the engine needs of a decoder. Rows need no tiles: their bits never depend on others."""

    needs_tiles = False
    num_pending_tokens = NUM_PENDING_TOKENS

    def __init__(self, model: Decoder, context: Context) -> None:
        """`model` has packed matrices and a config that is covered."""
        self.config = model.config
        self.context = context
        self.model = model
        self._kept: list[object] = []  # What the kernels' structures point to.
        self._struct = self._decoder()
        self._head = self._matrix(model.lm_head)
        self.nanoseconds: ctypes.Array[ctypes.c_int64] | None = None
        """Of each of `PHASES`, added to in every step where a benchmark has set it."""

    def hidden(
        self,
        token_ids: Tensor,
        positions: Tensor,
        recurrence: PooledRecurrence,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """Return the final hidden states [N, D]. Arguments as for `Decoder.hidden`.

        `recurrence` is told which rows are finite, here with their hidden states.
        """
        model = self.model
        if self._struct.embedding is None:
            x = F.embedding(token_ids, model.embed_tokens.weight).float()
            if model.has_projections:
                x = model.project_in(x)
            if self.config.learned_positions:
                x = x + F.embedding(positions + OPT_POSITION_OFFSET, model.embed_positions.weight)
            x = x.float().contiguous()
        else:
            token_ids = token_ids.long().contiguous()  # As the kernels read them.
            x = torch.empty(len(token_ids), self.config.hidden_size)
        prefills = recurrence.prefills
        segments = (ctypes.c_int64 * (4 * len(prefills)))(
            *(n for s in prefills for n in (s.start, s.length, s.source, s.target))
        )
        finite = torch.ones(len(x), dtype=torch.bool)
        pending = recurrence.pending or self._none_pending(len(recurrence.decode_source))
        caches = recurrence.caches
        batch = BatchStruct(
            x=x.data_ptr(),
            token_ids=token_ids.data_ptr(),
            positions=positions.data_ptr(),
            num_rows=len(x),
            num_decodes=len(recurrence.decode_source),
            num_segments=len(prefills),
            source=recurrence.decode_source.data_ptr(),
            target=recurrence.decode_target.data_ptr(),
            segments=ctypes.addressof(segments),
            states=recurrence.states.data_ptr(),
            layer_stride=recurrence.states.stride(0),
            caches=0 if caches is None else caches.data_ptr(),
            cache_layer_stride=0 if caches is None else caches.stride(0),
            finite=finite.data_ptr(),
            pending=pending.store.data_ptr(),
            pending_layer_stride=pending.store.stride(0),
            pending_head_stride=pending.store.stride(2),
            pending_rows=pending.slots.data_ptr(),
            pending_counts=pending.counts.data_ptr(),
            nanoseconds=ctypes.addressof(self.nanoseconds) if self.nanoseconds else None,
        )
        context = self.context
        context.kernels.dijiang_forward(
            context.handle, ctypes.byref(self._struct), ctypes.byref(batch)
        )
        recurrence.report_finite(finite)
        return x

    def logits(self, hidden: Tensor, tiles: Tiles | None = None) -> Tensor:
        """Return the logits [N, V] of hidden states [N, D]."""
        if self.model.has_projections:
            hidden = self.model.project_out(hidden)
        return multiply_by(self._head, hidden, self.config.vocab_size, self.context)

    def chosen_logits(
        self,
        hidden: Tensor,
        rows: Sequence[int],
        masks: Sequence[TokenSet | None],
        temperatures: Sequence[float],
    ) -> tuple[Tensor, RowScan]:
        """Return the logits [n, V] of n rows of hidden states [N, D], and what was found on the
        way to them.

        Args:
            masks: The tokens that may come in each of these rows; None: all. The logits of the
                others are there, but what is found is not of them.
            temperatures: Of each row, at which somebody wants the masses of its panels;
                0 where nobody does.
        """
        if self.model.has_projections:
            hidden = self.model.project_out(hidden)
        num_rows, vocab_size = len(rows), self.config.vocab_size
        logits = torch.empty(num_rows, vocab_size)
        panels = Panels.empty(vocab_size, masks, temperatures)
        finite, likeliest = (ctypes.c_bool * num_rows)(), (ctypes.c_int64 * num_rows)()
        self.context.kernels.dijiang_logits(
            self.context.handle,
            ctypes.byref(self._head),
            hidden.data_ptr(),
            (ctypes.c_int64 * num_rows)(*rows),
            num_rows,
            hidden.shape[1],
            logits.data_ptr(),
            ctypes.byref(panels.struct),
            finite,
            likeliest,
        )
        return logits, RowScan(finite[:], likeliest[:], panels)

    def _none_pending(self, num_decodes: int) -> PendingTokens:
        none = torch.zeros(num_decodes, dtype=torch.int64)
        return PendingTokens(torch.empty(self.config.state.pending_shape(1, 0)), none, none)

    def _decoder(self) -> DecoderStruct:
        config, attention, state = self.config, self.config.attention, self.config.state
        columns = attention.num_features // (2 if attention.negated_half else 1)
        layers = [self._layer(layer) for layer in self._layers()]
        padded = columns + -columns % _LANES
        has_groups = attention.readout == "group_norm"
        return DecoderStruct(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            inner_size=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_features=attention.num_features,
            projection_columns=columns,
            projection_stride=config.head_dim * padded if attention.per_head else 0,
            value_dim=state.value_dim,
            rotary_dim=config.rotary_dim,
            norm=_NORMS[config.norm],
            activation=_ACTIVATIONS[config.activation],
            norm_first=config.norm_first,
            parallel_residual=config.parallel_residual,
            negated_half=attention.negated_half,
            num_groups=attention.num_groups if has_groups else 0,
            format=FORMATS[self._layers()[0].attention.o_proj.panels.dtype],
            norm_eps=config.norm_eps,
            group_eps=self._layers()[0].attention.readout_norm.eps if has_groups else 0.0,
            query_scale=config.query_scale,
            window=attention.window,
            sinks=attention.sinks,
            # As in the parent, of which OPT has already applied all.
            score_scale=config.head_dim**-0.5 / config.query_scale,
            rotary_frequencies=self._keep(self.model.rotary_frequencies)
            if config.rotary_dim
            else None,
            embedding=self._embedding(),
            embedding_number=NUMBERS.get(self.model.embed_tokens.weight.dtype, 0),
            final_norm=self._norm(self.model.final_norm),
            layers=(LayerStruct * config.num_layers)(*layers),
        )

    def _embedding(self) -> int | None:
        """Where the embedding lies, if it is all that the first layer reads."""
        table = self.model.embed_tokens.weight
        is_all = not self.model.has_projections and not self.config.learned_positions
        return self._keep(table) if is_all and table.dtype in NUMBERS else None

    def _layers(self) -> list[Any]:
        return list(self.model.layers)

    def _layer(self, layer: Any) -> LayerStruct:
        attention, mlp = layer.attention, layer.mlp
        options = self.config.attention
        projection = attention.feature_map.projection.float()
        rate = -attention.log_decay_rate.double().exp()
        # powers[h, n] = γ_h ** n
        powers = (rate[:, None] * torch.arange(CHUNK_TILE + 1, dtype=torch.float64)).exp()
        return LayerStruct(
            attention_norm=self._norm(layer.attention_norm),
            mlp_norm=self._norm(layer.mlp_norm),
            readout_norm=self._norm(
                attention.readout_norm if options.readout == "group_norm" else None
            ),
            query_norm=self._norm(attention.q_norm if self.config.qk_norm else None),
            key_norm=self._norm(attention.k_norm if self.config.qk_norm else None),
            q=self._matrix(attention.q_proj),
            k=self._matrix(attention.k_proj),
            v=self._matrix(attention.v_proj),
            gate=self._matrix(attention.gate if options.gate else None),
            o=self._matrix(attention.o_proj),
            up=self._matrix(mlp.up),
            mlp_gate=self._matrix(mlp.gate),
            down=self._matrix(mlp.down),
            projection=self._keep(F.pad(projection, (0, -projection.shape[-1] % _LANES))),
            powers=self._keep(powers.float()),
            window_mix=self._keep(attention.window_mix.float()) if options.window else None,
            window_mix_query=self._keep(attention.window_mix_query.float())
            if options.window
            else None,
        )

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _matrix(self, layer: nn.Module | None) -> MatrixStruct:
        if layer is None:
            return MatrixStruct()
        assert isinstance(layer, PackedLinear), "matrices were packed before"
        matrix = layer.matrix
        self._kept.append(matrix)
        return matrix.struct()

    def _norm(self, norm: Any) -> NormStruct:
        if norm is None or isinstance(norm, nn.Identity):
            return NormStruct()
        bias = None if isinstance(norm, RMSNorm) else norm.bias
        return NormStruct(
            weight=self._keep(norm.weight.float()),
            bias=None if bias is None else self._keep(bias.float()),
        )
