from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine


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
