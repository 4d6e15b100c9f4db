"""Train a model folder from text: cross-entropy, or distillation from its vanilla parent."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from dijiang_runtime.conversion import checkpoint
from dijiang_runtime.conversion.curves import TensorBoardLog
from dijiang_runtime.conversion.data import evaluation_blocks, load_tokenizer, pack_documents
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.evaluate import mean_loss
from dijiang_runtime.conversion.folder import copy_generation_config, copy_tokenizer
from dijiang_runtime.conversion.loop import TrainingLoop, TrainReport
from dijiang_runtime.conversion.options import TrainOptions
from dijiang_runtime.conversion.provenance import add_step
from dijiang_runtime.conversion.sampling import SamplingOptions, sample_documents
from dijiang_runtime.conversion.sources import source_name
from dijiang_runtime.conversion.stages import check_stages, plan_stages
from dijiang_runtime.conversion.tables import with_decay_tables
from dijiang_runtime.conversion.trainable import TrainableModel, load_model_folder, new_model
from dijiang_runtime.conversion.vanilla import VanillaModel, load_vanilla
from dijiang_runtime.conversion.workers import Workers, join_workers

logger = logging.getLogger(__name__)

SELF_GENERATED = "self-generated.txt"
"""The text that the teacher wrote, in the output folder."""

Report = Callable[[TrainReport], None]


def train(options: TrainOptions, report: Report | None = None) -> TrainableModel:
    """Train and write the finished model folder to `options.out`; return the model.

    A checkpoint in `options.out` is gone on from, and removed when the training is finished.

    Raises:
        TrainingError: options that contradict each other, or a training that diverged.
        DataError, ConversionError, ModelLoadError: unusable text, tokenizer, teacher or model.
    """
    _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    workers = join_workers(options.device)
    if options.batch_size % workers.count:
        raise TrainingError(
            f"batch_size {options.batch_size} is not divisible by {workers.count} processes."
        )
    try:
        return _train(options, workers, report)
    finally:
        workers.close()


def _train(options: TrainOptions, workers: Workers, report: Report | None) -> TrainableModel:
    model = _initial_model(options)
    if options.decay_tables:
        model = with_decay_tables(model)
    teacher = load_vanilla(options.teacher) if options.teacher is not None else None
    check_stages(model, teacher, options)
    _warn_of_short_context(model, teacher, options)
    for part in (model, teacher):
        if part is not None:
            part.module.to(workers.device)
    if options.gradient_checkpointing:
        model.checkpoint_gradients()
    log = TensorBoardLog(options.out) if options.tensorboard and workers.is_main else None
    _prepare_folder(options, workers)
    stages = plan_stages(model, teacher, _token_ids(model, options), options)
    evaluate = _heldout_evaluation(model, options, workers)

    def tell(progress: TrainReport) -> None:
        if log is not None:
            log.write(progress)
        if report is not None:
            report(progress)

    loop = TrainingLoop(
        model.module,
        options.out,
        options.loop,
        workers,
        fingerprint=_fingerprint(options),
        evaluate=evaluate,
        report=tell if workers.is_main else None,
    )
    try:
        loop.run(stages)
    finally:
        if log is not None:
            log.close()
    heldout_loss = evaluate() if evaluate is not None else None
    if workers.is_main:
        _finish(model, options, heldout_loss)
    workers.wait()
    return model


def _warn_of_short_context(
    model: TrainableModel, teacher: VanillaModel | None, options: TrainOptions
) -> None:
    longest = max(options.context, options.long_context if options.long_fraction else 0)
    length = teacher.max_length if teacher is not None else model.max_length
    if length is not None and longest < length:
        logger.warning(
            "Training sequences have %d tokens, but the parent reads %d: later tokens are not "
            "learned, and may become worse than before. Raise --context, or use --long-fraction.",
            longest,
            length,
        )


def _prepare_folder(options: TrainOptions, workers: Workers) -> None:
    if workers.is_main:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.restart:
            checkpoint.delete_checkpoint(options.out)
            (options.out / SELF_GENERATED).unlink(missing_ok=True)
        if options.self_generate:
            _self_generate(options)
    workers.wait()


def _self_generate(options: TrainOptions) -> None:
    """Let the teacher write its text, unless it lies there from before an interruption."""
    path = options.out / SELF_GENERATED
    if path.is_file() or options.teacher is None:
        return
    sampling = SamplingOptions(
        num_bytes=None,
        num_tokens=options.self_generate,
        max_length=4 * options.context,
        keep_unfinished=True,
        min_characters=1,
        temperature=1.0,
        top_p=1.0,
        seed=options.loop.seed,
    )
    unfinished = path.with_suffix(".new")
    sample_documents(options.teacher, unfinished, sampling)
    unfinished.replace(path)


def _token_ids(model: TrainableModel, options: TrainOptions) -> Any:
    own = [str(options.out / SELF_GENERATED)] if options.self_generate else []
    return pack_documents(
        [*options.data, *own],
        load_tokenizer(options.model),
        eos_token_id=model.eos_token_id,
        text_column=options.text_column,
    )


def _finish(model: TrainableModel, options: TrainOptions, heldout_loss: float | None) -> None:
    """Write the finished folder; only then is the checkpoint of no more use."""
    model.module.requires_grad_(True).eval()
    model.save(options.out, getattr(torch, options.dtype))
    copy_tokenizer(options.model, options.out)
    copy_generation_config(options.model, options.out)
    add_step(
        options.model,
        options.out,
        {
            "command": "train",
            "from": "random weights" if options.config is not None else None,
            "objective": "cross-entropy" if options.teacher is None else "KL to the teacher",
            "data": [source_name(source) for source in options.data],
            "self_generated_tokens": options.self_generate or None,
            "tokens": options.tokens,
            "context": options.context,
            "batch_size": options.batch_size,
            "lr": options.lr,
            "decay_tables": options.decay_tables or None,
            "align_fraction": options.align_fraction or None,
            "long_fraction": options.long_fraction or None,
            "long_context": options.long_context if options.long_fraction else None,
            "seed": options.loop.seed,
            "heldout_loss": heldout_loss,
        },
    )
    checkpoint.delete_checkpoint(options.out)


def _check(options: TrainOptions) -> None:
    if not options.data and not options.self_generate:
        raise TrainingError("There is no text: name some with --data, or use --self-generate.")
    if options.self_generate and options.teacher is None:
        raise TrainingError("--self-generate needs a teacher: name the parent with --teacher.")
    for name in ("align_fraction", "long_fraction"):
        if not 0 <= getattr(options, name) <= 1:
            raise TrainingError(f"{name} is {getattr(options, name)}, not between 0 and 1.")
    if options.align_fraction + options.long_fraction > 1:
        raise TrainingError("align_fraction and long_fraction are more than 1 together.")
    if options.align_fraction and options.teacher is None:
        raise TrainingError("Alignment needs a teacher: name the parent with --teacher.")
    if options.out.resolve() == options.model.resolve() and options.config is None:
        raise TrainingError("The output folder is the model's own; choose another.")
    is_finished = any(options.out.glob("*.safetensors"))
    if is_finished and not options.restart:
        raise TrainingError(
            f"{options.out} holds a finished model. Choose another folder, or restart the training."
        )


def _initial_model(options: TrainOptions) -> TrainableModel:
    if options.config is not None:
        return new_model(options.config, options.loop.seed)
    return load_model_folder(options.model)


def _heldout_evaluation(
    model: TrainableModel, options: TrainOptions, workers: Workers
) -> Callable[[], float] | None:
    if options.heldout is None:
        return None
    token_ids = pack_documents(
        [options.heldout],
        load_tokenizer(options.model),
        eos_token_id=model.eos_token_id,
        text_column=options.text_column,
        max_tokens=options.heldout_tokens + 1,
    )
    blocks = evaluation_blocks(token_ids, options.context).to(workers.device)
    # Every process computes all of it: its result may not depend on how many there are.
    return lambda: mean_loss(model.logits, blocks, options.batch_size)


_WITHOUT_EFFECT = frozenset(
    {"model", "out", "heldout", "heldout_tokens", "device", "threads", "dtype", "tensorboard"}
    | {"restart", "log_every", "evaluate_every", "save_every"}
)


def _fingerprint(options: TrainOptions) -> dict[str, Any]:
    """The options that decide the weights, in JSON's types."""
    loop = msgspec.structs.asdict(options.loop)
    fields = {**msgspec.structs.asdict(options), **loop}
    changes = {
        "data": [source_name(source) for source in options.data],
        "teacher": options.teacher is not None,
        "config": options.config is not None,
    }
    fields.update(changes)
    return {k: v for k, v in fields.items() if k not in _WITHOUT_EFFECT and k != "loop"}
