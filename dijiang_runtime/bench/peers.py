"""Other engines that run the vanilla parent, each in a process that works when it is told to."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dijiang_runtime.errors import DiJiangError
from dijiang_runtime.models.config import ModelConfig

HERE = Path(__file__).parent


class PeerError(DiJiangError):
    """A peer did not start, or broke off."""


class Peer:
    """One engine in a process of its own. Between its jobs it waits and takes no time."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read()

    def prefill(self, length: int) -> float:
        """Seconds that a prompt takes."""
        return self._ask(kind="prefill", length=length)

    def decode(self, batch: int, position: int, steps: int) -> float:
        """Seconds per step of so many sequences at a position."""
        return self._ask(kind="decode", batch=batch, position=position, steps=steps)

    def _ask(self, **job: Any) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise PeerError(f"{self.name} broke off: {last}")
        return json.loads(line)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


def llama_cpp(python: Path, config: ModelConfig, threads: int, context: int) -> Peer:
    """llama.cpp with q8_0 matrices, through a Python that has `llama_cpp` and `gguf`."""
    shape = _shape(config, threads, context)
    script = str(HERE / "llama_worker.py")
    return Peer("llama.cpp q8_0", [str(python), script, json.dumps(shape)])


def transformers(
    config: ModelConfig, threads: int, context: int, dtype: str, device: str = "cpu"
) -> Peer:
    """transformers, in this Python."""
    shape = _shape(config, threads, context) | {"dtype": dtype, "device": device}
    script = str(HERE / "transformers_worker.py")
    return Peer(f"transformers {dtype}", [sys.executable, script, json.dumps(shape)])


def _shape(config: ModelConfig, threads: int, context: int) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
    shape = {name: getattr(config, name) for name in names}
    return {**shape, "rotary_dim": config.rotary_dim, "threads": threads, "context": context}
