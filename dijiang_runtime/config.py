"""EngineConfig: what the engine is told at start. One frozen value, resolved once."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

CHUNK_SIZE = 64
"""Tokens per block of the chunkwise operator. Prompts are cut at absolute multiples of it, so that
the arithmetic does not depend on how a prompt was split."""

Positive = Annotated[int, Meta(ge=1)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one engine. The command line's flags follow from these fields; the descriptions
    are their help."""

    model: Annotated[Path, Meta(description="A DiJiang model folder.")]
    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="Where the model runs.")] = (
        "auto"
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        Meta(
            description="Of the weights, the vocabulary projection included. auto: what a packed "
            "folder holds, otherwise see docs/performance.md. The recurrent state is always "
            "float32."
        ),
    ] = "auto"
    max_slots: Annotated[
        Positive | None,
        Meta(
            description="Sequences that may run at once. Default: as many as the state memory "
            "holds, at most 256.",
        ),
    ] = None
    state_memory_bytes: Annotated[
        Positive | None,
        Meta(description="Memory for recurrent states. Default: a quarter of what is free."),
    ] = None
    max_model_len: Annotated[
        Positive | None,
        Meta(
            description="Longest prompt plus answer, in tokens. Default: the model's positions "
            "where they are a hard limit, else 1,048,576.",
        ),
    ] = None
    max_batched_tokens: Annotated[
        int,
        Meta(ge=1, description="Token budget of one step: decodes first, prompts with the rest."),
    ] = 512
    max_queued_requests: Annotated[int, Meta(ge=0, description="Requests that may wait.")] = 256
    max_queued_tokens: Annotated[
        int,
        Meta(ge=0, description="Prompt tokens that may wait, beside the longest prompt that does."),
    ] = 1_048_576
    max_logprobs: Annotated[
        int, Meta(ge=0, description="Most alternatives a request may ask for with each token.")
    ] = 20
    num_threads: Annotated[
        Positive | None,
        Meta(description="CPU threads of one step. Default: all cores but one, which HTTP needs."),
    ] = None
    cuda_graphs: Annotated[
        bool,
        Meta(
            description="On a GPU, record decode steps of some batch sizes at start and replay "
            "them."
        ),
    ] = True
    async_scheduling: Annotated[
        bool,
        Meta(
            description="On a GPU, begin the next step of sequences that decode before the last "
            "one's tokens are read."
        ),
    ] = True
    step_timeout_seconds: Annotated[
        float,
        Meta(
            gt=0.0,
            description="A step that takes longer means that the engine hangs: it is killed and "
            "started again.",
        ),
    ] = 30.0
    load_timeout_seconds: Annotated[
        float,
        Meta(
            gt=0.0,
            description="Loading that takes longer means that the engine hangs: it is killed and "
            "tried again.",
        ),
    ] = 900.0
