"""The queries and keys that a parent computes for a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dijiang_runtime.conversion.data import evaluation_blocks, load_tokenizer, pack_documents
from dijiang_runtime.conversion.vanilla import load_vanilla
from dijiang_runtime.kernelization.error import QueriesAndKeys

_RECORDING = "dijiang_recording"


@torch.no_grad()
def parent_queries_and_keys(
    parent: Path, data: Sequence[Path], *, num_tokens: int, num_heads: int
) -> QueriesAndKeys:
    """Rotated queries and keys of heads spread over the layers, each divided by d^1/4.

    Args:
        data: Text files; their first `num_tokens` tokens are read.
        num_heads: How many heads at most.
    """
    from transformers import AttentionInterface

    teacher = load_vanilla(parent)
    ids = pack_documents(data, load_tokenizer(parent), eos_token_id=teacher.eos_token_id)
    records: list[tuple[Tensor, Tensor]] = []

    def record(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        records.append((query[0].double() * scale**0.5, key[0].double() * scale**0.5))
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return out.transpose(1, 2), None

    AttentionInterface.register(_RECORDING, record)
    teacher.model.config._attn_implementation = _RECORDING
    teacher.logits(evaluation_blocks(ids[: num_tokens + 1], num_tokens)[:1, :-1])
    q, k = (torch.cat(heads) for heads in zip(*records, strict=True))
    step = max(1, len(q) // num_heads)
    return QueriesAndKeys(parent.resolve().name, q[::step][:num_heads], k[::step][:num_heads])
