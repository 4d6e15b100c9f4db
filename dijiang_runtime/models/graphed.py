"""Decode steps of a few sizes, recorded at start and replayed: CUDA graphs.

Launching the kernels of a step one by one takes Python longer than few rows take a GPU. A recorded
step is launched as a whole. It is recorded for some numbers of rows; a step of fewer is padded, and
its padding reads and writes the scratch slot. No kernel is chosen by the number of rows, so a row's
bits do not depend on whether its step was recorded.

Only `CudaRecorder` knows CUDA.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dijiang_runtime.models.fused import FusedDecoder
from dijiang_runtime.models.recurrence import PooledRecurrence
from dijiang_runtime.ops.linear import Tiles

logger = logging.getLogger(__name__)

MAX_ROWS = 1024
"""Steps of more rows keep a GPU busy for longer than their launches take."""

_MEMORY_SHARE = 1 / 8
"""Of the memory that is free: recording ends when so much of it has been taken."""

Work = Callable[[], tuple[Tensor, ...]]


class Recorder(Protocol):
    """Records work on a device, so that it can be done again without Python."""

    def record(self, work: Work) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """Return what the work returns, and a call that does it again, into those tensors."""
        ...

    def free_bytes(self) -> int:
        """Memory of the device that nothing holds."""
        ...


class CudaRecorder:
    """Recordings are CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        # Once without recording, on another stream: kernels are compiled and loaded by that.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = work()
        return outputs, graph.replay

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]


@dataclass(frozen=True, slots=True)
class _RecordedStep:
    """One step of so many rows. All tensors stay where they are."""

    inputs: Tensor
    """Token, position, source and target of each row. [4, size], int64."""
    hidden: Tensor  # [size, D]
    finite: Tensor  # [size], bool
    replay: Callable[[], None]

    @property
    def size(self) -> int:
        return self.inputs.shape[1]


class GraphedDecoder:
    """A fused decoder that replays steps in which all rows decode. Else it is that decoder."""

    needs_tiles = False
    num_pending_tokens = 0

    def __init__(
        self,
        decoder: FusedDecoder,
        states: Tensor,
        scratch: tuple[int, int],
        recorder: Recorder,
        sizes: Sequence[int],
    ) -> None:
        """
        Args:
            states: The states that steps read and write, for good.
            scratch: Source and target of padding, in `states`.
            sizes: Numbers of rows to record.
        """
        self.config = decoder.config
        self.model = decoder.model
        self._decoder = decoder
        self._states = states
        self._padding = torch.tensor([0, 0, *scratch], device=states.device).unsqueeze(1)
        self._steps = self._record_all(recorder, sizes)

    @property
    def sizes(self) -> list[int]:
        """The numbers of rows that are recorded, ascending."""
        return [step.size for step in self._steps]

    def hidden(
        self,
        token_ids: Tensor,
        positions: Tensor,
        recurrence: PooledRecurrence,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """Return the final hidden states [N, D], valid until the next call. Arguments as for
        `FusedDecoder.hidden`."""
        step = self._recorded_for(recurrence)
        if step is None:
            return self._decoder.hidden(token_ids, positions, recurrence, tiles)
        rows = token_ids, positions, recurrence.decode_source, recurrence.decode_target
        num_rows = len(token_ids)
        step.inputs[:, :num_rows] = torch.stack(rows)
        # Padding is written each time: what a larger step has left here are sequences' states.
        step.inputs[:, num_rows:] = self._padding
        step.replay()
        recurrence.report_finite(step.finite[:num_rows])
        return step.hidden[:num_rows]

    def logits(self, hidden: Tensor, tiles: Tiles | None = None) -> Tensor:
        """Return the logits [N, V] of hidden states [N, D], float32."""
        return self._decoder.logits(hidden, tiles)

    def _recorded_for(self, recurrence: PooledRecurrence) -> _RecordedStep | None:
        """The smallest recorded step that holds these rows."""
        if recurrence.prefills or recurrence.states is not self._states:
            return None
        num_rows = len(recurrence.decode_source)
        return next((step for step in self._steps if step.size >= num_rows), None)

    @torch.no_grad()
    def _record_all(self, recorder: Recorder, sizes: Sequence[int]) -> list[_RecordedStep]:
        """Record from the largest size on, as far as it goes. Ascending by size."""
        started, free = time.perf_counter(), recorder.free_bytes()
        taken = 0
        steps: list[_RecordedStep] = []
        for size in sorted(sizes, reverse=True):
            if taken > free * _MEMORY_SHARE:
                logger.warning("steps of %d rows and fewer are not recorded: no memory", size)
                break
            try:
                steps.insert(0, self._record(recorder, size))
            except Exception:
                logger.warning("steps of %d rows and fewer are not recorded", size, exc_info=True)
                break
            taken = free - recorder.free_bytes()
        if steps:
            logger.info(
                "recorded decode steps of %s rows in %.1f s, %.1f MiB",
                ", ".join(str(step.size) for step in steps),
                time.perf_counter() - started,
                taken / 2**20,
            )
        return steps

    def _record(self, recorder: Recorder, size: int) -> _RecordedStep:
        inputs = self._padding.repeat(1, size)
        token_ids, positions, source, target = inputs

        def step() -> tuple[Tensor, Tensor]:
            return self._decoder.decode(token_ids, positions, self._states, source, target)

        (hidden, finite), replay = recorder.record(step)
        return _RecordedStep(inputs, hidden, finite, replay)


def sizes_to_record(max_rows: int) -> list[int]:
    """1, 2, 4, then multiples of 8, 32 and at last 128, up to `max_rows`, which is one of them."""
    most = min(max_rows, MAX_ROWS)
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, MAX_ROWS, 128)]
    return [size for size in sizes if size < most] + [most]
