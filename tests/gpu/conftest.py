"""`make test-gpu`. Without a CUDA device all of it is skipped."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine


@pytest.fixture(autouse=True)
def needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def make_engine(tiny_model: Path) -> Callable[..., Engine]:
    """Engines on the GPU over the tiny model, or over `model=...`."""

    def make(**options: object) -> Engine:
        fields = {"model": tiny_model, "max_slots": 32, "device": "cuda", "dtype": "float32"}
        return Engine.from_config(EngineConfig(**{**fields, **options}))  # type: ignore[arg-type]

    return make


@pytest.fixture
def forbid_waiting() -> Iterator[Callable[[], None]]:
    """Once called, an operation that makes the host wait for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")
