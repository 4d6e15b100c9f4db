"""The decoder: one implementation for every family, driven by `ModelConfig`.

    N tokens, of any number of sequences    D hidden    V vocabulary    B batch    T length

Two ways in. `forward` is the ordinary [B, T] pass of training and evaluation, differentiable.
`hidden` and `logits` serve the engine: a flat list of tokens, whose states a `Recurrence` knows.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dijiang_runtime.models.attention import Attention
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.layers import MLP, Linear, make_norm
from dijiang_runtime.models.recurrence import FreshSequences, Recurrence
from dijiang_runtime.models.rotary import rotary_angles, rotary_frequencies
from dijiang_runtime.ops.linear import Tiles, linear

OPT_POSITION_OFFSET = 2
"""OPT keeps position p in row p + 2 of its table."""


class DecoderLayer(nn.Module):
    """Attention and MLP around one residual stream, in the order that the family wants."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.parallel_residual = config.parallel_residual
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        recurrence: Recurrence,
        tiles: Tiles | None,
    ) -> Tensor:
        """Return the residual stream after the layer."""
        normed = self.attention_norm(x) if self.norm_first else x
        attended = self.attention(normed, positions, angles, recurrence, tiles)
        if self.parallel_residual:
            return x + self.mlp(self.mlp_norm(x), tiles) + attended
        x = x + attended
        if self.norm_first:
            return x + self.mlp(self.mlp_norm(x), tiles)
        x = self.attention_norm(x)
        return self.mlp_norm(x + self.mlp(x, tiles))


class Decoder(nn.Module):
    """A DiJiang language model. Constructed with random weights; `models.loader` fills them."""

    rotary_frequencies: Tensor
    needs_tiles = True
    """Whether a row's bits depend on the size of the tile that it is computed in."""
    num_pending_tokens = 0
    """Tokens that a state may lag behind its sequence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        width = config.embedding_dim or config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        if config.learned_positions:
            rows = config.max_position_embeddings + OPT_POSITION_OFFSET
            self.embed_positions = nn.Embedding(rows, config.hidden_size)
        self.has_projections = width != config.hidden_size
        if self.has_projections:
            self.project_in = Linear(width, config.hidden_size, bias=False)
            self.project_out = Linear(config.hidden_size, width, bias=False)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_layers))
        self.final_norm = make_norm(config) if config.final_norm else nn.Identity()
        if not config.tie_word_embeddings:
            self.lm_head = Linear(width, config.vocab_size, bias=False)
        if config.rotary_dim:
            frequencies = rotary_frequencies(config)
            self.register_buffer("rotary_frequencies", frequencies, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """GPT-NeoX's small initialisation, for training from scratch."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention):
                module.initialise_gate()

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the logits [B, T, V] of token ids [B, T], each sequence from an empty state."""
        batch, length = token_ids.shape
        self.check_positions(length)
        positions = torch.arange(length, device=token_ids.device).repeat(batch)
        x = self.hidden(token_ids.flatten(), positions, FreshSequences(batch, length))
        return self.logits(x).unflatten(0, (batch, length))

    def hidden(
        self,
        token_ids: Tensor,
        positions: Tensor,
        recurrence: Recurrence,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """Return the final hidden states [N, D].

        Args:
            token_ids: Shape [N], int64.
            positions: Place of each token in its sequence, from 0. Shape [N], int64.
            recurrence: Knows which tokens form a sequence, and their states.
            tiles: Row tiles of every matrix product, or None for one product over all rows.
        """
        x = self.embed_tokens(token_ids)
        # Half-precision weights are multiplied as such; everything between is float32 or wider.
        x = x if x.dtype == torch.float64 else x.float()
        if self.has_projections:
            x = self.project_in(x, tiles)
        if self.config.learned_positions:
            x = x + self.embed_positions(positions + OPT_POSITION_OFFSET)
        angles = None
        if self.config.rotary_dim:
            angles = rotary_angles(positions, self.rotary_frequencies, x.dtype)
        recompute = self.gradient_checkpointing and self.training
        for layer in self.layers:
            inputs = (x, positions, angles, recurrence, tiles)
            x = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
        return self.final_norm(x)

    def logits(self, hidden: Tensor, tiles: Tiles | None = None) -> Tensor:
        """Return the logits [N, V] of hidden states [N, D], float32 or wider."""
        if self.has_projections:
            hidden = self.project_out(hidden, tiles)
        if self.config.tie_word_embeddings:
            return linear(hidden, self.embed_tokens.weight, None, tiles)
        return self.lm_head(hidden, tiles)

    def check_positions(self, length: int) -> None:
        """Raise ValueError if the model has no position `length - 1`."""
        limit = self.config.position_limit
        if limit is not None and length > limit:
            raise ValueError(f"This model has {limit} positions; {length} were asked for.")
