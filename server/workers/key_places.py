"""The places of API keys, as a worker asks the main process for them."""

import asyncio
from collections import deque
from collections.abc import Callable

from server.workers.messages import GiveBackPlace, Place, TakePlace, WorkerMessage


class HostedKeyPlaces:
    """Implements `KeyPlaces` over the line to the main process, which counts for all workers."""

    def __init__(self, send: Callable[[WorkerMessage], None]) -> None:
        self._send = send
        self._asked: deque[tuple[str, asyncio.Future[float | None]]] = deque()
        """Those who wait for an answer. Answers come in the order of the questions."""

    async def take(self, key: str) -> float | None:
        answer: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._asked.append((key, answer))
        self._send(TakePlace(key))
        return await answer

    def give_back(self, key: str, seconds: float) -> None:
        self._send(GiveBackPlace(key, seconds))

    def on_answer(self, place: Place) -> None:
        key, answer = self._asked.popleft()
        if not answer.cancelled():
            answer.set_result(place.retry_after_seconds)
        elif place.retry_after_seconds is None:
            # Who asked for it was cancelled meanwhile.
            self.give_back(key, 0.0)
