"""EngineConfig: what the engine is told at start. One frozen value, resolved once."""

from pathlib import Path
from typing import Literal

import msgspec

CHUNK_SIZE = 64
"""Tokens per block of the chunkwise operator. Prompts are cut at absolute multiples of it, so that
the arithmetic does not depend on how a prompt was split."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one engine. The command line's flags follow from these fields."""

    model: Path
    """A DiJiang model folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights. The recurrent state is always float32."""
    max_slots: int | None = None
    """Sequences that may run at once. None: as many as `state_memory_bytes` holds, at most 256."""
    state_memory_bytes: int | None = None
    """Memory for recurrent states. None: a quarter of what is free at start."""
    max_model_len: int | None = None
    """Longest prompt plus answer, in tokens. None: the model's positions where they are a hard
    limit, else 1,048,576."""
    max_batched_tokens: int = 512
    """Token budget of one step: decodes first, prompts with the rest."""
    max_queued_requests: int = 256
    max_queued_tokens: int = 1_048_576
    """Prompt tokens that may wait, beside the first request in the queue."""
    max_logprobs: int = 20
    num_threads: int | None = None
    """CPU threads of one step. None: the cores this process may use."""
    step_timeout_seconds: float = 30.0
    """A step that takes longer means that the engine hangs: it is killed and started again."""
