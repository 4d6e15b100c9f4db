from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE


@pytest.fixture
def make_engine(tiny_model: Path) -> Callable[..., Engine]:
    """Engines over the tiny model, or over `model=...`, on one thread."""
    num_threads = torch.get_num_threads()

    def make(**options: object) -> Engine:
        fields = {"model": tiny_model, "max_slots": 32, "num_threads": 1, "dtype": "float32"}
        fields |= options
        return Engine.from_config(EngineConfig(**fields))  # type: ignore[arg-type]

    yield make
    torch.set_num_threads(num_threads)


@pytest.fixture(params=["kernels", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels, or what runs on devices and without a compiler."""
    if request.param == "torch":
        monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)
