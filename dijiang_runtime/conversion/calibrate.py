"""Statistics of the parent's attention on a text, from which the new parameters start.

The parent runs once over a few thousand tokens. How far back each of its heads looks becomes the
half-life of the head that takes its place; how large its output is, against that of the new
attention for the same input, becomes the scale of the gate.

    L layers    Hq query heads    H key/value heads    T length    d head dim
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dijiang_runtime.conversion.data import evaluation_blocks, load_tokenizer, pack_documents
from dijiang_runtime.conversion.dijiang_model import DiJiangModel
from dijiang_runtime.conversion.distillation import attention_records
from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.vanilla import load_vanilla

# The projection behind the heads: GPT-NeoX, LLaMA, OPT, ours.
_OUTPUT_PROJECTION = re.compile(r"(dense|o_proj|out_proj)$")
_BATCH = 4
# A head that looks at the current token alone still passes something on to the next.
_MIN_HALF_LIFE = 0.25
# A new attention that points elsewhere has no good scale; these keep the block alive and sane.
_SCALES = (0.25, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """The text that the parent is watched on."""

    data: tuple[Path, ...]
    num_tokens: int = 16_384
    context: int = 512


class Calibration:
    """A parent in memory, and the blocks of text that it is watched on."""

    def __init__(self, parent: Path, options: CalibrationOptions) -> None:
        """
        Raises:
            ConversionError, DataError: the parent or the text cannot be used.
        """
        self._teacher = load_vanilla(parent)
        ids = pack_documents(
            options.data, load_tokenizer(parent), eos_token_id=self._teacher.eos_token_id
        )
        positions = self._teacher.model.config.max_position_embeddings
        context = min(options.context, positions)
        self._blocks = evaluation_blocks(ids[: options.num_tokens + 1], context)[:, :-1]

    @torch.no_grad()
    def half_lives(self, num_kv_heads: int) -> Tensor:
        """Half-lives in tokens from the attention-weighted mean look-back, float64 [L, H].

        A query head's look-back is the mean of n - j over all queries n, weighted by its attention
        to key j. The first token is left out: softmax attention parks there what it does not need.
        """
        model = self._teacher.model
        model.set_attn_implementation("eager")
        totals: Tensor | None = None
        for batch in self._blocks.split(_BATCH):
            output = model(input_ids=batch, use_cache=False, output_attentions=True)
            looks = torch.stack([_look_back(layer) for layer in output.attentions])
            totals = looks if totals is None else totals + looks
        if totals is None or not bool(torch.isfinite(totals).all()):
            raise ConversionError("The parent's attention on the calibration text is not finite.")
        distance, mass = totals.unbind(1)
        mean = (distance / mass.clamp(min=1e-12)).unflatten(1, (num_kv_heads, -1)).mean(-1)
        return mean.clamp(min=_MIN_HALF_LIFE)

    @torch.no_grad()
    def output_scales(self, student: DiJiangModel) -> Tensor:
        """The factor on each query head's output that brings it closest to the parent's, [L, Hq].

        One-dimensional least squares: sum(y_T y_S) / sum(y_S^2) over the text, both computed from
        the input that the parent's layer sees.
        """
        heads, dim = student.decoder.config.num_heads, student.decoder.config.head_dim
        product = power = torch.zeros(())
        theirs = _output_projections(self._teacher.attention_blocks())
        ours = _output_projections(student.attention_blocks())
        for batch in self._blocks.split(_BATCH):
            with attention_records(self._teacher) as (inputs, _), _inputs_of(theirs) as targets:
                self._teacher.logits(batch)
            with _inputs_of(ours) as outputs:
                student.attention_outputs(inputs)
            for_heads = [
                torch.stack([x.reshape(-1, heads, dim) for x in records]).double()
                for records in (targets, outputs)
            ]
            product = product + (for_heads[0] * for_heads[1]).sum((1, 3))
            power = power + for_heads[1].square().sum((1, 3))
        return (product / power.clamp(min=1e-12)).clamp(*_SCALES)


def inverse_silu(values: Tensor) -> Tensor:
    """The positive x with SiLU(x) = value, for positive values, by bisection in float64."""
    values = values.double()
    low, high = torch.zeros_like(values), values + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        below = nn.functional.silu(middle) < values
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _look_back(attention: Tensor) -> Tensor:
    """Sums over [B, Hq, T, T] weights of distance and of mass, float64 [2, Hq]."""
    n = torch.arange(attention.shape[-1], dtype=torch.float64)
    weights = attention.double().clone()
    weights[..., 0] = 0.0
    distance = (n[:, None] - n[None, :]).clamp(min=0)
    return torch.stack([(weights * distance).sum((0, 2, 3)), weights.sum((0, 2, 3))])


def _output_projections(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The module of each attention block that multiplies the concatenated heads."""
    return [
        next(m for name, m in block.named_modules() if _OUTPUT_PROJECTION.search(name))
        for block in blocks
    ]


@contextmanager
def _inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Record what goes into each of these modules inside the `with` block, in order."""
    inputs: list[Tensor] = []

    def record(module: nn.Module, args: Any) -> None:
        inputs.append(args[0])

    handles = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
