"""What a training is told. The command line's flags follow from these fields."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]


class LoopOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the optimiser walks, and how often the loop speaks, evaluates and saves."""

    warmup_fraction: Annotated[
        Fraction, Meta(description="Share of a stage with a rising learning rate.")
    ] = 0.02
    min_lr_fraction: Annotated[
        Fraction, Meta(description="The cosine ends at this fraction of the peak.")
    ] = 0.1
    weight_decay: Annotated[float, Meta(ge=0.0, description="Of weight matrices alone.")] = 0.1
    max_grad_norm: Annotated[float, Meta(gt=0.0, description="Longer gradients are cut.")] = 1.0
    bfloat16: Annotated[
        bool,
        Meta(
            description="Autocast to bfloat16; weights and optimizer stay float32. Faster on GPUs "
            "and CPUs with bfloat16 units."
        ),
    ] = False
    log_every: Annotated[Count, Meta(description="Steps between reports.")] = 20
    evaluate_every: Annotated[Count, Meta(description="Steps between held-out losses.")] = 500
    save_every: Annotated[Count, Meta(description="Steps between checkpoints.")] = 500
    seed: Annotated[int, Meta(description="Of the order of the data and of random weights.")] = 0


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One training. Paths do not change the result; everything else does."""

    model: Path
    """A DiJiang folder, or a vanilla one. With `config`, only its tokenizer is used."""
    data: Annotated[
        tuple[str, ...],
        Meta(
            description="Text: .txt, .jsonl, .parquet, plain or .gz, or datasets:ID[:CONFIG]"
            "[:SPLIT]. Repeatable: what is named twice is read twice as often."
        ),
    ] = ()
    out: Annotated[Path, Meta(description="Folder of the trained model, and of checkpoints.")]
    text_column: Annotated[
        str, Meta(description="Field that holds the text in JSONL, Parquet and data sets.")
    ] = "text"
    teacher: Annotated[
        Path | None,
        Meta(description="Vanilla parent to learn from. Default: learn from the text alone."),
    ] = None
    self_generate: Annotated[
        int,
        Meta(ge=0, description="Tokens of text that the teacher writes first, to learn from too."),
    ] = 0
    config: Annotated[
        Path | None,
        Meta(description="Start from random weights of this config.json, DiJiang or vanilla."),
    ] = None
    heldout: Annotated[
        str | None, Meta(description="Text whose loss is measured at intervals, as --data.")
    ] = None
    heldout_tokens: Annotated[Count, Meta(description="Of that text.")] = 65_536
    tokens: Annotated[Count, Meta(description="Tokens to train on, all stages together.")] = (
        5_000_000
    )
    context: Annotated[int, Meta(ge=2, description="Tokens of a training sequence.")] = 256
    batch_size: Annotated[Count, Meta(description="Sequences in a step, over all processes.")] = 16
    lr: Annotated[float, Meta(description="Peak learning rate.")] = 1e-3
    align_fraction: Annotated[
        Fraction,
        Meta(description="Share of the tokens that first align attention with the teacher's."),
    ] = 0.0
    align_lr: Annotated[float, Meta(description="Peak learning rate of that stage.")] = 3e-3
    long_fraction: Annotated[
        Fraction, Meta(description="Share of the tokens that come last, as long sequences.")
    ] = 0.0
    long_context: Annotated[
        int, Meta(ge=2, description="Tokens of a sequence in that stage, which has no teacher.")
    ] = 2048
    long_lr: Annotated[float, Meta(description="Peak learning rate of that stage.")] = 3e-4
    decay_tables: Annotated[
        bool,
        Meta(
            description="Train one factor for every head and position instead of fixed decays, as "
            "the authors' published code does (official preset). To compare with; it learns less."
        ),
    ] = False
    gradient_checkpointing: Annotated[
        bool,
        Meta(description="Compute each layer twice instead of keeping what is inside it."),
    ] = False
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="Where the training runs.")
    ] = "auto"
    threads: Annotated[Count | None, Meta(description="CPU threads. Default: one per core.")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Meta(description="Of the finished weights on disk; training itself is in float32."),
    ] = "float32"
    tensorboard: Annotated[
        bool, Meta(description="Write curves for TensorBoard to OUT/tensorboard.")
    ] = False
    restart: Annotated[bool, Meta(description="Begin anew, whatever the output folder holds.")] = (
        False
    )
    loop: LoopOptions = LoopOptions()
