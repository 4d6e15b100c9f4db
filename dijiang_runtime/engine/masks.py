"""Which tokens may come next. Knows no torch."""

from collections.abc import Iterable
from typing import Self

import numpy as np
import numpy.typing as npt


class TokenMask:
    """A set of tokens, one bit for each. Its address is kept: asking numpy takes microseconds."""

    def __init__(self, bits: npt.NDArray[np.int32]) -> None:
        """`bits` has shape [V / 32, rounded up]; token 0 is the lowest bit of the first number."""
        self.bits = bits
        self.address: int = bits.ctypes.data
        self.num_bytes = bits.nbytes

    @classmethod
    def of_all(cls, vocab_size: int) -> Self:
        return cls(np.full(-(-vocab_size // 32), -1, dtype=np.int32))

    @classmethod
    def of(cls, token_ids: Iterable[int], vocab_size: int) -> Self:
        allowed = np.zeros(-(-vocab_size // 32) * 32, dtype=np.bool_)
        allowed[list(token_ids)] = True
        return cls(np.packbits(allowed, bitorder="little").view(np.int32))
