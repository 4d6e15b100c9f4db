"""Between the host and a device, without waiting where that is possible.

A copy that starts in pinned memory is queued behind the kernels that were launched before it, and
the host goes on.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(values: npt.ArrayLike, device: torch.device) -> Tensor:
    """An array on the device. On the CPU it may share the array's memory."""
    x = torch.from_numpy(np.ascontiguousarray(values))
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class Readback:
    """Tensors on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = [x.to("cpu", non_blocking=True) for x in tensors]
        self._event = torch.cuda.Event() if any(x.is_cuda for x in tensors) else None
        if self._event is not None:
            self._event.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, which waits for them, and for nothing launched after them."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies


def to_host(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the host, which waits for them once."""
    return Readback(*tensors).wait()


def take_rows(x: Tensor, rows: list[int]) -> Tensor:
    """These rows of x; x itself where they are all of them, in order."""
    if rows == list(range(len(x))):
        return x
    return x.index_select(0, to_device(np.asarray(rows, dtype=np.int64), x.device))
