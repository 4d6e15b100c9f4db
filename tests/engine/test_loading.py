import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine import loading
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.errors import ContextLengthError, ModelLoadError
from dijiang_runtime.models.loader import load_config
from dijiang_runtime.ops.cpu.library import targets
from tests.engine.requests import make_request

MIB = 2**20


def count_slots(folder: Path, **options: object) -> int:
    model = load_config(folder)
    return loading.count_slots(EngineConfig(model=folder, **options), model)  # type: ignore[arg-type]


def test_as_many_slots_as_the_state_memory_holds(tiny_model: Path) -> None:
    per_slot = 2 * load_config(tiny_model).state.num_bytes

    # One more is scratch.
    assert count_slots(tiny_model, state_memory_bytes=11 * per_slot) == 10
    assert count_slots(tiny_model, state_memory_bytes=11 * per_slot - 1) == 9
    assert count_slots(tiny_model, state_memory_bytes=10**12) == 256
    assert count_slots(tiny_model, state_memory_bytes=11 * per_slot, max_slots=4) == 4


def test_a_quarter_of_the_free_memory_is_the_default(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_slot = 2 * load_config(tiny_model).state.num_bytes
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: 40 * per_slot)

    assert count_slots(tiny_model) == 9
    assert count_slots(tiny_model, max_slots=39) == 39


def test_states_leave_room_for_the_pages_of_mapped_weights(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny_model)
    per_slot = 2 * config.state.num_bytes
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: 100 * per_slot)

    options = EngineConfig(model=tiny_model)
    assert loading.count_slots(options, config, mapped_bytes=60 * per_slot) == 9
    with pytest.raises(ModelLoadError, match="do not fit"):
        loading.count_slots(options, config, mapped_bytes=200 * per_slot)


@pytest.mark.parametrize(
    "options",
    [
        {"state_memory_bytes": 1000},
        {"state_memory_bytes": MIB, "max_slots": 1000},
        {"max_slots": 10**9},
        {"max_slots": 0},
    ],
)
def test_states_that_do_not_fit_are_refused_with_the_figures(
    tiny_model: Path, options: dict[str, int]
) -> None:
    with pytest.raises(ModelLoadError, match=r"slots of [\d,]+ bytes each"):
        count_slots(tiny_model, **options)


def test_the_memory_budget_is_logged_in_one_line(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dijiang_runtime")

    engine = make_engine(max_slots=5)

    [line] = [r.getMessage() for r in caplog.records if "state memory" in r.getMessage()]
    assert "per sequence" in line and "5 slots" in line and "in total" in line
    assert engine.info.state_bytes_total == 6 * engine.info.state_bytes_per_sequence


def test_a_model_without_a_limit_takes_very_long_sequences(
    make_engine: Callable[..., Engine],
) -> None:
    assert make_engine().info.max_model_len == 1_048_576
    engine = make_engine(max_model_len=100)

    engine.add_request(make_request("fits", [5] * 90, max_tokens=10))
    with pytest.raises(ContextLengthError):
        engine.add_request(make_request("too long", [5] * 91, max_tokens=10))


def test_a_model_with_learned_positions_has_a_hard_limit(
    make_engine: Callable[..., Engine], make_tiny_model: Callable[..., Path]
) -> None:
    folder = make_tiny_model(family="opt", learned_positions=True, rotary_dim=0)

    assert make_engine(model=folder).info.max_model_len == 256
    with pytest.raises(ModelLoadError, match="256 positions"):
        make_engine(model=folder, max_model_len=257)


def test_the_engine_tells_what_it_runs_on(make_engine: Callable[..., Engine]) -> None:
    info = make_engine(device="cpu", dtype="bfloat16").info

    assert (info.device, info.dtype, info.num_threads) == ("cpu", "bfloat16", 1)
    assert info.load_seconds > 0 and info.warmup_seconds > 0


def test_warming_up_leaves_no_trace(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()

    stats = engine.take_stats()

    assert (stats.prompt_tokens, stats.slots_used, stats.step_seconds) == (0, 0, ())
    assert not engine.has_work


@pytest.mark.skipif(not targets(), reason="built without a C++ compiler")
def test_tokens_are_chosen_in_as_many_threads_as_the_model_is_computed_in(
    make_engine: Callable[..., Engine],
) -> None:
    runner = make_engine(num_threads=2)._runner
    assert isinstance(runner, ModelRunner)

    assert runner.sampler.kernels is not None
    assert runner.sampler.kernels.context.num_threads == 2
    # Torch is left with one: its threads would spin on the cores that the kernels need.
    assert torch.get_num_threads() == 1
