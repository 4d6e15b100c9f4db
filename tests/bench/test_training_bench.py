import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dijiang_runtime.bench import training
from dijiang_runtime.bench.training import TrainingBenchOptions, parallel
from dijiang_runtime.ops.training import chunkwise
from server.cli import app
from tests.bench.alone import peak_alone


def test_both_forms_compute_the_same_outputs_and_gradients() -> None:
    """Otherwise the comparison would say nothing."""
    torch.manual_seed(0)
    results = []
    for form in (chunkwise, parallel):
        generator = torch.Generator().manual_seed(3)
        inputs = [torch.randn(2, 100, 3, d, generator=generator).softmax(-1) for d in (16, 16, 9)]
        inputs.append(torch.tensor([-0.7, -0.01, 0.0]))
        for x in inputs:
            x.requires_grad_()
        o = form(*inputs)
        (o * torch.linspace(-1, 1, o.numel()).view_as(o)).sum().backward()
        results.append([o.detach(), *(x.grad for x in inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def take_80_mib_three_times_in_turn() -> None:
    for _ in range(3):
        # What is this large goes back to the system at once; of smaller pieces the allocator may
        # keep some, in holes too small for the next.
        held = [torch.ones(10 * 2**20) for _ in range(2)]
        del held


def test_the_peak_is_that_of_what_is_alive_at_once() -> None:
    assert 76 * 2**20 < peak_alone(take_80_mib_three_times_in_turn) < 96 * 2**20


def test_the_parallel_form_is_left_out_where_it_does_not_fit() -> None:
    options = TrainingBenchOptions(lengths=(64, 4096), rounds=2, heads=2)

    class Machine:
        available = 64 * 2**20

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.psutil, "virtual_memory", Machine)
        short, long = training.run(options, lambda text: None)["training_by_length"]
    assert short["ratio"] == pytest.approx(
        short["chunkwise"]["tokens_per_second"] / short["parallel"]["tokens_per_second"]
    )
    assert "parallel" not in long
    assert long["ratio"] is None
    # 4,096 tokens of two heads have scores of 128 MiB, and the parallel form holds several of them.
    assert long["chunkwise"]["peak_bytes"] is None or long["chunkwise"]["peak_bytes"] < 96 * 2**20


def test_the_command_prints_and_writes_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "length": 128,
        "ratio": 2.0,
        "chunkwise": {
            "tokens_per_second": 2e4,
            "peak_bytes": 3 * 2**20,
            "seconds": {"num_rounds": 7, "num_disturbed": 1},
        },
        "parallel": {"tokens_per_second": 1e4, "peak_bytes": None},
    }
    machine = {"cpu": "c", "threads": 1, "cores": 2, "load_average": 0.5, "torch": "t"}
    result = {"machine": {**machine, "commit": "abc"}, "training_by_length": [row]}
    monkeypatch.setattr(training, "run", lambda options, progress: result)
    file = tmp_path / "out.json"
    answer = CliRunner().invoke(app, ["bench", "--training", "--threads", "1", "--json", str(file)])
    assert answer.exit_code == 0, answer.output
    assert json.loads(file.read_text()) == result
    for text in ("20,000", "10,000", "2.00", "3.0"):
        assert text in answer.output
