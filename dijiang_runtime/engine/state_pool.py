"""The recurrent states of all running sequences."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dijiang_runtime.models.config import StateSpec


class StatePool:
    """Owns every state, two rows to a slot. The scheduler hands out the slots.

    A slot has the same size however long its sequence grows, so the pool is allocated once. A step
    reads a slot's committed row and writes the other; `commit` makes that one the committed row.
    Or it reads the committed row alone and leaves its token pending, where a repetition of the step
    would write the same. A step that fails changes nothing. Slot 0 is scratch: padding reads and
    writes it.
    """

    def __init__(
        self,
        spec: StateSpec,
        num_slots: int,
        device: torch.device | str = "cpu",
        num_pending_tokens: int = 0,
    ) -> None:
        num_rows = 2 * (num_slots + 1)
        self.states: Tensor = torch.zeros(
            spec.state_shape(num_rows), dtype=torch.float32, device=device
        )
        # Keys and values of the windows; nothing where the model has none.
        self.caches: Tensor = torch.zeros(
            spec.cache_shape(num_rows), dtype=torch.float32, device=device
        )
        self.num_pending_tokens = num_pending_tokens
        self.pending: Tensor = torch.zeros(
            spec.pending_shape(num_slots + 1, num_pending_tokens),
            dtype=torch.float32,
            device=device,
        )
        # Which of its two rows a slot's committed state is in: 0 or 1.
        self._committed = [0] * (num_slots + 1)

    @staticmethod
    def bytes_per_slot(spec: StateSpec, num_pending_tokens: int = 0) -> int:
        return 2 * spec.num_bytes + 4 * math.prod(spec.pending_shape(1, num_pending_tokens))

    @property
    def num_bytes(self) -> int:
        return self.states.nbytes + self.caches.nbytes + self.pending.nbytes

    @property
    def scratch(self) -> tuple[int, int]:
        """Source and target of padding."""
        return self.source(0), self.target(0)

    def source(self, slot: int) -> int:
        """The row that holds the slot's state."""
        return 2 * slot + self._committed[slot]

    def target(self, slot: int) -> int:
        """The row that a step writes the slot's next state to."""
        return 2 * slot + 1 - self._committed[slot]

    def reset(self, slots: Iterable[int]) -> None:
        """Empty the states of slots that were just handed out: forget who held them before."""
        for slot in slots:
            self.states[:, self.source(slot)].zero_()
            self.caches[:, self.source(slot)].zero_()
            self.pending[:, slot].zero_()

    def fork(self, slot: int, into: int) -> None:
        """Make what the step wrote for `slot` the next state of the slot `into` as well."""
        for store in (self.states, self.caches):
            store[:, self.target(into)] = store[:, self.target(slot)]

    def commit(self, slots: Iterable[int]) -> None:
        """Make what the step wrote the states of these slots."""
        for slot in slots:
            self._committed[slot] ^= 1
