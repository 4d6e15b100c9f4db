import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from dijiang_runtime.conversion.checkpoint import CHECKPOINT
from dijiang_runtime.conversion.convert import ConvertOptions, convert
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.loop import TrainReport, lr_factor
from dijiang_runtime.conversion.options import LoopOptions, TrainOptions
from dijiang_runtime.conversion.provenance import read_provenance
from dijiang_runtime.conversion.train import train

NEOX_CONFIG = {
    "model_type": "gpt_neox",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_dropout": 0.1,
}
STEP_TOKENS = 4 * 16


class Interrupted(Exception):
    """Stands for Ctrl-C or a crash."""


@pytest.fixture
def scratch_options(stories: Path, tokenizer_folder: Path, tmp_path: Path) -> TrainOptions:
    """Train a vanilla model with dropout from random weights for 12 steps."""
    config = tmp_path / "parent.json"
    config.write_text(json.dumps(NEOX_CONFIG))
    return TrainOptions(
        model=tokenizer_folder,
        config=config,
        data=(str(stories),),
        heldout=str(stories),
        out=tmp_path / "out",
        tokens=12 * STEP_TOKENS,
        context=16,
        batch_size=4,
        lr=5e-3,
        loop=LoopOptions(log_every=1, evaluate_every=6, save_every=4),
    )


@pytest.fixture
def distil_options(stories: Path, parents: dict[str, Path], tmp_path: Path) -> TrainOptions:
    """Teach a converted model for 12 steps, the first 6 of them alignment."""
    convert(parents["llama"], tmp_path / "converted", ConvertOptions())
    return TrainOptions(
        model=tmp_path / "converted",
        data=(str(stories),),
        teacher=parents["llama"],
        out=tmp_path / "out",
        tokens=12 * STEP_TOKENS,
        context=16,
        batch_size=4,
        align_fraction=0.5,
        loop=LoopOptions(log_every=1, save_every=4),
    )


def reports_of(options: TrainOptions) -> list[TrainReport]:
    reports: list[TrainReport] = []
    train(options, reports.append)
    return reports


def run_until(options: TrainOptions, step: int) -> None:
    def interrupt(report: TrainReport) -> None:
        if report.step == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(options, interrupt)


@pytest.mark.parametrize("kind", ["scratch_options", "distil_options"])
@pytest.mark.parametrize("step", [5, 7, 9])
def test_an_interrupted_training_ends_with_the_same_weights(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, step: int
) -> None:
    options: TrainOptions = request.getfixturevalue(kind)
    train(replace(options, out=tmp_path / "through"))
    run_until(options, step)
    resumed = reports_of(options)

    assert resumed[0].step == step // 4 * 4 + 1, "it goes on from the last checkpoint"
    expected = load_file(tmp_path / "through" / "model.safetensors")
    found = load_file(options.out / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)
    assert not (options.out / CHECKPOINT).exists(), "a finished training leaves no checkpoint"


def test_training_from_random_weights_learns_the_text(scratch_options: TrainOptions) -> None:
    options = replace(scratch_options, tokens=60 * STEP_TOKENS)
    reports = reports_of(options)
    heldout = [report.heldout_loss for report in reports if report.heldout_loss is not None]
    assert heldout[-1] < heldout[0] - 0.5
    assert reports[-1].num_tokens == options.tokens
    assert (options.out / "tokenizer.json").is_file()
    assert read_provenance(options.out)[-1]["heldout_loss"] == pytest.approx(heldout[-1])


def test_a_checkpoint_of_other_options_is_not_resumed(scratch_options: TrainOptions) -> None:
    run_until(scratch_options, 5)
    other = replace(scratch_options, lr=1e-3)
    with pytest.raises(TrainingError, match="another lr"):
        train(other)
    assert reports_of(replace(other, restart=True))[0].step == 1


def test_a_checkpoint_survives_a_crash_while_the_next_is_written(
    scratch_options: TrainOptions,
) -> None:
    run_until(scratch_options, 5)
    folder = scratch_options.out / CHECKPOINT
    # What a crash leaves between the two renames, with the new checkpoint half written.
    folder.rename(folder.with_name(f"{CHECKPOINT}.old"))
    folder.with_name(f"{CHECKPOINT}.new").mkdir()
    assert reports_of(scratch_options)[0].step == 5


def test_checkpoints_hold_no_pickles(scratch_options: TrainOptions) -> None:
    run_until(scratch_options, 5)
    suffixes = {path.suffix for path in (scratch_options.out / CHECKPOINT).iterdir()}
    assert suffixes == {".safetensors", ".json"}


def test_a_gradient_that_is_not_finite_stops_the_training(
    scratch_options: TrainOptions, distil_options: TrainOptions
) -> None:
    # The sum of the squares of gradients this large overflows.
    weights = distil_options.model / "model.safetensors"
    tensors = load_file(weights)
    tensors["embed_tokens.weight"] *= 1e30
    tensors["final_norm.weight"] *= 1e30
    from safetensors.torch import save_file

    save_file(tensors, weights)
    with pytest.raises(TrainingError, match="not finite at step 0 of stage distil"):
        train(replace(distil_options, align_fraction=0.0))


def test_alignment_brings_the_blocks_closer_and_changes_attention_alone(
    distil_options: TrainOptions,
) -> None:
    options = replace(distil_options, align_fraction=1.0, tokens=150 * STEP_TOKENS, align_lr=1e-2)
    losses = [report.loss for report in reports_of(options)]
    assert losses[-1] < 0.7 * losses[0]

    before = load_file(options.model / "model.safetensors")
    after = load_file(options.out / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if ".attention." in name}


def test_distillation_brings_the_model_closer_to_its_parent(distil_options: TrainOptions) -> None:
    options = replace(distil_options, align_fraction=0.0, tokens=40 * STEP_TOKENS, lr=5e-3)
    losses = [report.loss for report in reports_of(options)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_official_preset_keeps_its_map_and_decays_frozen(
    parents: dict[str, Path], distil_options: TrainOptions, tmp_path: Path
) -> None:
    convert(parents["llama"], tmp_path / "official", ConvertOptions(preset="official"))
    train(replace(distil_options, model=tmp_path / "official"))
    before = load_file(tmp_path / "official" / "model.safetensors")
    after = load_file(distil_options.out / "model.safetensors")
    unchanged = {name for name in before if before[name].equal(after[name])}
    assert unchanged == {
        f"layers.{layer}.attention.{name}"
        for layer in (0, 1)
        for name in ("feature_map.projection", "log_decay_rate")
    }


def test_the_whole_history_is_in_the_card(distil_options: TrainOptions) -> None:
    train(distil_options)
    assert [step["command"] for step in read_provenance(distil_options.out)] == ["convert", "train"]
    card = (distil_options.out / "README.md").read_text()
    assert "KL to the teacher" in card
    assert str(distil_options.out.parent) not in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None, "align_fraction": 0.5}, "needs a teacher"),
        ({"align_fraction": 1.5}, "between 0 and 1"),
    ],
)
def test_contradictory_options_are_refused(
    distil_options: TrainOptions, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(replace(distil_options, **changes))


def test_a_model_is_not_trained_onto_itself(distil_options: TrainOptions) -> None:
    with pytest.raises(TrainingError, match="model's own"):
        train(replace(distil_options, out=distil_options.model))


def test_a_finished_model_is_not_trained_over_unasked(distil_options: TrainOptions) -> None:
    train(distil_options)
    with pytest.raises(TrainingError, match="finished model"):
        train(distil_options)
    assert reports_of(replace(distil_options, restart=True))[0].step == 1


def test_a_teacher_of_another_vocabulary_is_refused(
    distil_options: TrainOptions, parents: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    GPTNeoXForCausalLM(GPTNeoXConfig(**{**NEOX_CONFIG, "vocab_size": 310})).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(TrainingError, match="310 token logits, the model 300"):
        train(replace(distil_options, teacher=tmp_path / "other"))


def test_the_learning_rate_warms_up_and_ends_at_its_fraction() -> None:
    options = LoopOptions(warmup_fraction=0.1, min_lr_fraction=0.2)
    curve = [lr_factor(position, options) for position in torch.linspace(0, 1, 101).tolist()]
    assert 0 < curve[0] < 0.1
    assert curve[10] == pytest.approx(1.0)
    assert curve[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(curve[10:], curve[11:], strict=False))
