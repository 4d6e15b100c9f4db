"""What `dijiang bench` times is what it says, and it times things fairly."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dijiang_runtime.bench import engine, timing
from dijiang_runtime.bench.engine import FAR, NEAR, Bench, BenchOptions
from dijiang_runtime.bench.facts import SHAPES, shape_config
from dijiang_runtime.engine.lookahead import LookAheadRunner
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.engine.scheduler_output import SchedulerOutput
from dijiang_runtime.engine.sequence import StepResult
from dijiang_runtime.errors import InvalidRequestError, RequestFailedError
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE
from dijiang_runtime.request import RequestError
from server import cli

Step = tuple[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def one_call_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.0)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every step that is executed: what kind, and at which positions."""
    seen: list[Step] = []
    execute = ModelRunner.execute

    def recorded(self: ModelRunner, plan: SchedulerOutput) -> Any:
        kind = "decode" if plan.decodes else "prefill"
        seen.append((kind, tuple(item.sequence.num_computed_tokens for item in plan)))
        return execute(self, plan)

    monkeypatch.setattr(ModelRunner, "execute", recorded)
    return seen


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Decoder:
    return load_model(tiny_model)


def run(model: Decoder, **options: Any) -> dict[str, Any]:
    options = {"batches": (1, 3), "prompt_lengths": (70, 200), "rounds": 2, **options}
    return Bench(model, BenchOptions(**options), lambda text: None).run()


def test_the_cost_of_copying_a_state_is_that_of_its_bytes(model: Decoder) -> None:
    copy = run(model)["state_copy"]
    assert copy["bytes"] == model.config.state.num_bytes
    seconds = copy["copy_seconds"]["median"]
    assert copy["copied_bytes_per_second"] == pytest.approx(copy["bytes"] / seconds)
    assert copy["empty_seconds"]["median"] > 0


def test_every_contender_runs_once_in_every_turn() -> None:
    calls: list[int] = []
    contenders = {key: lambda key=key: calls.append(key) for key in (1, 2, 3)}
    timings = timing.alternate(contenders, rounds=4)
    # One warm-up and one call to estimate the duration; then rounds, in turns.
    turns = calls[6:]
    assert turns == [1, 2, 3] * (len(turns) // 3)
    assert len(turns) // 3 >= timings[1].num_rounds >= 4


def test_disturbed_rounds_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.0, 0.9, 0.0, 0.9, 0.0])
    monkeypatch.setattr(timing.ForeignLoad, "share", lambda self: next(shares))
    found = timing.alternate({1: lambda: None}, rounds=3)[1]
    assert (found.num_rounds, found.num_disturbed) == (3, 2)


def test_on_a_machine_that_never_rests_every_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.ForeignLoad, "share", lambda self: 0.9)
    found = timing.alternate({1: lambda: None}, rounds=3)[1]
    assert (found.num_rounds, found.num_disturbed) == (6, 6)


def test_decode_is_timed_at_the_positions_it_is_reported_for(
    model: Decoder, steps: list[Step]
) -> None:
    result = run(model)
    decoded = {positions for kind, positions in steps if kind == "decode"}
    assert decoded == {(NEAR,), (NEAR,) * 3, (FAR,)}
    assert [row["position"] for row in result["decode_by_position"]["rows"]] == [NEAR, FAR]
    assert result["decode_by_position"]["prompt_was_run"] is False


def test_a_decode_that_looks_ahead_moves_on_from_its_position(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)
    monkeypatch.setattr(engine, "_STEPS_AHEAD", 5)
    planned: list[tuple[int, ...]] = []
    execute = LookAheadRunner.execute

    def recorded(self: LookAheadRunner, plan: SchedulerOutput) -> Any:
        planned.append(tuple(item.sequence.num_computed_tokens for item in plan))
        return execute(self, plan)

    monkeypatch.setattr(LookAheadRunner, "execute", recorded)
    options = BenchOptions(batches=(2,), rounds=2, looks_ahead=True)
    bench = Bench(load_model(tiny_model), options, lambda text: None)

    bench.decode_seconds(batch=2, position=9, steps=10)

    assert planned == 2 * [(p, p) for p in range(9, 14)]
    runner: Any = bench._decoder
    # Of each five all but the first are there when they are wanted, and none is in vain.
    assert runner.num_adopted == 2 * 2 * 4
    assert runner._begun is None


def test_a_prompt_is_run_in_the_chunks_of_the_server(model: Decoder, steps: list[Step]) -> None:
    run(model, prompt_lengths=(200,), max_batched_tokens=130)
    assert {positions for kind, positions in steps if kind == "prefill"} == {(0,), (128,)}


def test_a_prompt_of_100_000_tokens_takes_the_state_of_one_of_100(
    model: Decoder, steps: list[Step]
) -> None:
    result = run(model, full=True)["decode_by_position"]
    prefilled = [positions[0] for kind, positions in steps if kind == "prefill"]
    assert max(prefilled) >= FAR - 512
    assert result["prompt_was_run"] is True
    # Two buffers of 2 layers, 4 heads, 32 features by 17 numbers, in float32.
    assert result["state_bytes"] == 2 * 2 * 4 * 32 * 17 * 4


def test_a_step_that_fails_is_not_timed_as_if_it_had_not(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(self: ModelRunner, plan: SchedulerOutput) -> list[StepResult]:
        return [StepResult(error=RequestError("NumericalError", "oh")) for _ in plan]

    monkeypatch.setattr(ModelRunner, "execute", execute)
    with pytest.raises(RequestFailedError, match="oh"):
        run(model)


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_are_the_published_ones(name: str) -> None:
    config = shape_config(name)
    layer = 12 * config.hidden_size**2  # Attention and MLP of a Transformer layer, without biases.
    num_parameters = config.num_layers * layer + 2 * config.vocab_size * config.hidden_size
    unit = {"m": 1e6, "b": 1e9}[name[-1]]
    assert num_parameters == pytest.approx(float(name[len("pythia-") : -1]) * unit, rel=0.02)


def test_an_unknown_shape_is_told_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match="pythia-70m"):
        shape_config("pythia-1t")


def test_the_command_writes_what_it_measured(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    result = CliRunner().invoke(
        cli.app, ["bench", str(tiny_model), "--rounds", "2", "--threads", "1", "--json", str(file)]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert report["machine"]["threads"] == 1
    assert [row["batch"] for row in report["decode_by_batch"]] == [1, 8, 32]
    for title in ("Decode by batch", "Decode by position", "Prefill by length"):
        assert title in result.output
    ratio = report["decode_by_position"]["ratio"]
    assert f"{ratio:.3f}" in result.output


def test_the_command_tells_what_rows_cost_their_neighbours(
    tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    options = ["--neighbours", "--rounds=2", "--threads=1", "--dtype=float32", f"--json={file}"]
    result = CliRunner().invoke(cli.app, ["bench", str(tiny_model), *options])
    assert result.exit_code == 0, result.output
    steps = json.loads(file.read_text())["steps"]
    assert [step["rows"] for step in steps] == [1, 8] * (len(steps) // 2)
    for step in steps:
        cost = step["cost"]
        assert cost["lower_quartile"] <= cost["median"] <= cost["upper_quartile"]
        assert min(step["seconds"], step["plain_seconds"]) > 0 and step["num_pairs"] == 16
        assert step["kind"] in result.output


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_refused_before_any_work(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(cli.app, ["bench", "--device", device])
    assert result.exit_code != 0
    assert device in str(result.exception) + result.output


def test_the_clock_is_read_when_a_gpu_has_done_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: waited.append("done"))
    timing.alternate({1: lambda: waited.append("work")}, rounds=3)
    # But for the warm-up, all work has been waited for before it and after it.
    assert "".join(w[0] for w in waited[1:]) == "dwd" * ((len(waited) - 1) // 3)
