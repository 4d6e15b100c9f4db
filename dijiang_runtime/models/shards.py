"""Writing a model's tensors to safetensors files one at a time, never holding a second one.

The safetensors library writes a whole file from tensors that are all in memory. A model may be
larger than memory, but its names, shapes and dtypes are known beforehand: so the headers are
written first and every tensor then goes to its place.

Format: github.com/huggingface/safetensors, "Format". A little-endian uint64 header length, a JSON
header, and the tensors' bytes without holes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dijiang_runtime.models.weights import INDEX_FILE, SINGLE_FILE

DEFAULT_SHARD_BYTES = 5 * 10**9
"""Five gigabytes, as the hub's models are usually cut."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int8: "I8",
}
_LINE = 64
"""Bytes of a cache line. Tensors of whole lines begin with one."""
# A tensor is cast and written in runs of rows of at most so many numbers.
_RUN = 2**22


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class ShardWriter:
    """The safetensors files of a model folder, filled in any order.

    One file `model.safetensors` where everything fits into `shard_bytes`, otherwise numbered shards
    and the index that names them, as transformers lays them out.
    """

    def __init__(
        self,
        folder: Path,
        specs: Mapping[str, TensorSpec],
        *,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Create the files. `specs` are in the model's order; a shard holds consecutive tensors.

        Args:
            metadata: What every header says beside the tensors.
        """
        self._metadata = {"format": "pt", **(metadata or {})}
        self._specs = dict(specs)
        self._missing = set(specs)
        self._places: dict[str, tuple[Path, int]] = {}
        shards = _cut(self._specs, shard_bytes)
        names = [SINGLE_FILE]
        if len(shards) > 1:
            count = len(shards)
            names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
            _write_index(folder, dict(zip(names, shards, strict=True)), self._specs)
        for name, shard in zip(names, shards, strict=True):
            self._create(folder / name, shard)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor where it belongs, cast to the dtype of its spec."""
        spec = self._specs[name]
        if tuple(tensor.shape) != spec.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(spec.shape)}.")
        path, offset = self._places[name]
        flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
        with path.open("r+b") as file:
            file.seek(offset)
            for run in flat.split(_RUN):
                data = run.to(device="cpu", dtype=spec.dtype).contiguous().view(torch.uint8)
                file.write(data.numpy().data)
        self._missing.discard(name)

    def _rank(self, name: str) -> tuple[bool, int]:
        spec = self._specs[name]
        return spec.num_bytes % _LINE != 0, -spec.dtype.itemsize

    @property
    def missing(self) -> frozenset[str]:
        """Tensors that have not been written yet; their bytes are zero."""
        return frozenset(self._missing)

    def _create(self, path: Path, names: list[str]) -> None:
        header: dict[str, Any] = {"__metadata__": self._metadata}
        offset = 0
        # Whole lines first, and then wide numbers: so every tensor is aligned to the size of its
        # numbers, without holes.
        for name in sorted(names, key=self._rank):
            spec = self._specs[name]
            end = offset + spec.num_bytes
            header[name] = {
                "dtype": _DTYPES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _LINE)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        for name in names:
            self._places[name] = (path, 8 + len(text) + header[name]["data_offsets"][0])


def _cut(specs: Mapping[str, TensorSpec], shard_bytes: int) -> list[list[str]]:
    """Names by shard: as many as fit, at least one."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.num_bytes
    return shards


def _write_index(
    folder: Path, shards: Mapping[str, list[str]], specs: Mapping[str, TensorSpec]
) -> None:
    index = {
        "metadata": {"total_size": sum(spec.num_bytes for spec in specs.values())},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
