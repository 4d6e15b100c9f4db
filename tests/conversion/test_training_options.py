"""What else a training can do: long text, text of its own, checkpointing, curves, processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from dijiang_runtime.conversion.convert import ConvertOptions, convert
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.loop import TrainReport
from dijiang_runtime.conversion.options import LoopOptions, TrainOptions
from dijiang_runtime.conversion.train import SELF_GENERATED, train

STEP_TOKENS = 4 * 16


@pytest.fixture
def options(stories: Path, parents: dict[str, Path], tmp_path: Path) -> TrainOptions:
    """All three stages, four steps each."""
    convert(parents["llama"], tmp_path / "converted", ConvertOptions())
    return TrainOptions(
        model=tmp_path / "converted",
        data=(str(stories),),
        teacher=parents["llama"],
        out=tmp_path / "out",
        tokens=12 * STEP_TOKENS,
        context=16,
        batch_size=4,
        align_fraction=1 / 3,
        long_fraction=1 / 3,
        long_context=32,
        device="cpu",
        loop=LoopOptions(log_every=1, save_every=5),
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_long_sequences_come_last_with_as_many_tokens_a_step(options: TrainOptions) -> None:
    reports: list[TrainReport] = []
    train(options, reports.append)
    stages = [report.stage for report in reports]
    assert stages == ["align"] * 4 + ["distil"] * 4 + ["long"] * 4
    assert reports[-1].num_tokens == 12 * STEP_TOKENS
    assert reports[8].lr < reports[4].lr, "the stage has a rate of its own"


@pytest.mark.parametrize("step", [4, 9, 11])
def test_a_training_with_every_option_is_resumed_with_the_same_weights(
    options: TrainOptions, tmp_path: Path, step: int
) -> None:
    options = replace(options, self_generate=200, gradient_checkpointing=True, tensorboard=True)
    options = replace(options, loop=replace(options.loop, bfloat16=True, save_every=1))

    def interrupt(report: TrainReport) -> None:
        if report.step == step:
            raise KeyboardInterrupt

    train(replace(options, out=tmp_path / "through"))
    with pytest.raises(KeyboardInterrupt):
        train(options, interrupt)
    resumed: list[TrainReport] = []
    train(options, resumed.append)

    assert resumed[0].step == step
    expected, found = weights(tmp_path / "through"), weights(options.out)
    assert all(expected[name].equal(found[name]) for name in expected)


def test_gradient_checkpointing_changes_no_weight(options: TrainOptions, tmp_path: Path) -> None:
    train(options)
    train(replace(options, gradient_checkpointing=True, out=tmp_path / "again"))
    expected, found = weights(options.out), weights(tmp_path / "again")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_the_teacher_writes_the_text_where_there_is_none(options: TrainOptions) -> None:
    train(replace(options, data=(), self_generate=500))
    assert len((options.out / SELF_GENERATED).read_text()) > 500
    step = json.loads((options.out / "provenance.json").read_text())[-1]
    assert step["self_generated_tokens"] == 500


def test_tensorboard_gets_the_curves(options: TrainOptions) -> None:
    train(replace(options, tensorboard=True))
    [path] = (options.out / "tensorboard").iterdir()
    data, at = path.read_bytes(), 0
    scalars: dict[str, list[int]] = {}
    while at < len(data):
        # A record: length, its checksum, the event, its checksum.
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append(event.step)
        at += 16 + size
    assert scalars["optimizer/lr"] == list(range(1, 13))
    assert scalars["distil/loss"] == [5, 6, 7, 8]
    assert {"optimizer/grad_norm", "speed/tokens_per_second", "long/loss"} <= scalars.keys()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_end_with_the_weights_of_one(options: TrainOptions, tmp_path: Path) -> None:
    train(replace(options, out=tmp_path / "one"))
    arguments = ["train", str(options.model), "--device", "cpu", "--threads", "1"]
    for name in ("teacher", "context", "batch_size", "tokens", "out", "long_context"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    for name in ("align_fraction", "long_fraction"):
        arguments += [f"--{name.replace('_', '-')}", repr(getattr(options, name))]
    arguments += ["--data", options.data[0]]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launch, "--module", "server.cli", *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    expected, found = weights(tmp_path / "one"), weights(options.out)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "--self-generate"),
        ({"teacher": None, "align_fraction": 0.0, "self_generate": 5}, "needs a teacher"),
        ({"align_fraction": 0.7, "long_fraction": 0.7}, "more than 1 together"),
        ({"long_context": 65}, "more than the 64 tokens of a step"),
        ({"context": 129}, "only 128 positions"),
    ],
)
def test_contradictory_options_are_refused(
    options: TrainOptions, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(replace(options, **changes))


def test_sequences_shorter_than_the_parents_are_warned_of(
    options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    train(replace(options, tokens=3 * STEP_TOKENS))
    assert "have 32 tokens, but the parent reads 128" in caplog.text
