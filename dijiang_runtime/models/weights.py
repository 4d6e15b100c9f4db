"""Reading tensors from the safetensors files of a model folder, one at a time."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dijiang_runtime.errors import ModelLoadError

PACKED_KEY, LAYOUT_KEY = "dijiang_packed", "dijiang_layout"
"""In the metadata of a packed folder's files; see `models.packed_folder`."""
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class TensorSource:
    """The tensors of a model folder by name. Files are mapped; nothing is read before `get`."""

    def __init__(self, folder: Path, *, keep_mapped: bool = True) -> None:
        """
        Args:
            keep_mapped: False gives each tensor a mapping of its own, which ends with the tensor:
                a folder larger than memory can be read through, one tensor after the other.

        Raises:
            ModelLoadError: no safetensors files, or a damaged one.
        """
        self._files: dict[str, Any] = {}
        self._read: set[str] = set()
        self.metadata: dict[str, str] = {}
        """Of the files' headers."""
        for path in _weight_files(folder):
            handle = _open(path)
            self.metadata |= handle.metadata() or {}
            for name in handle.keys():
                self._files[name] = handle if keep_mapped else path

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    @property
    def unread_names(self) -> frozenset[str]:
        """Tensors that nobody has asked for yet."""
        return self.names - self._read

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ModelLoadError: there is none of that name.
        """
        tensor: Tensor = self._file(name).get_tensor(name)
        self._read.add(name)
        return tensor

    def _file(self, name: str) -> Any:
        try:
            file = self._files[name]
        except KeyError:
            raise ModelLoadError(f"The weights hold no tensor {name!r}.") from None
        return _open(file) if isinstance(file, Path) else file


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as exc:
        raise ModelLoadError(f"{path} cannot be read as safetensors: {exc}.") from exc


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        # A shard is a file beside the index; a path out of the folder is not followed.
        if any(Path(name).name != name for name in names):
            raise ModelLoadError(f"{index} names a shard outside its folder.")
        return [folder / name for name in names]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ModelLoadError(
            f"{folder} holds pickled weights (.bin, .pt), which are never loaded because they can "
            "run code. Save the model with save_pretrained(..., safe_serialization=True)."
        )
    raise ModelLoadError(f"{folder} holds no {SINGLE_FILE}.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelLoadError: the file is missing, no JSON, or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelLoadError(f"{path} cannot be read: {exc}.") from exc
    if not isinstance(data, dict):
        raise ModelLoadError(f"{path} is not a JSON object.")
    return data


def first_non_finite(tensor: Tensor) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity, or None."""
    # The extremes, of which a NaN is both, cost no memory. A mask would be a quarter of the tensor.
    if tensor.numel() == 0 or all(bool(torch.isfinite(x)) for x in torch.aminmax(tensor)):
        return None
    return tuple(int(i) for i in (~torch.isfinite(tensor)).nonzero()[0])
