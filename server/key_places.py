"""The places that one API key has: how many requests of it may run at once."""

from collections import Counter
from typing import Protocol

FIRST_GUESS_SECONDS = 1.0
WEIGHT_OF_NEWEST = 0.2


class KeyPlaces(Protocol):
    """Where a request takes a place when it arrives, and gives it back when it has ended."""

    async def take(self, key: str) -> float | None:
        """Take a place for a request of a key. Returns None if there was one, else the seconds
        after which there may be."""
        ...

    def give_back(self, key: str, seconds: float) -> None:
        """Free the place that a request had for so long."""
        ...


class LocalKeyPlaces:
    """Counts by itself. Keys are named by their hash, and an empty name is all clients together."""

    def __init__(self, limit: int) -> None:
        """`limit` is the number of places of each key."""
        self._limit = limit
        self._taken: Counter[str] = Counter()
        self._seconds = FIRST_GUESS_SECONDS
        """Recent mean duration of a request."""

    async def take(self, key: str) -> float | None:
        return self.take_now(key)

    def take_now(self, key: str) -> float | None:
        """`take` for who cannot wait."""
        if self._taken[key] >= self._limit:
            # With so many running, one of them ends about that often.
            return self._seconds / self._limit
        self._taken[key] += 1
        return None

    def give_back(self, key: str, seconds: float) -> None:
        self.forget(key)
        self._seconds += WEIGHT_OF_NEWEST * (seconds - self._seconds)

    def forget(self, key: str) -> None:
        """Free a place whose request has ended nobody knows when."""
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]
