"""When the cycle collector runs in a server."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable

import pytest

from server import garbage
from server.garbage import FEW_REQUESTS, collect_when_quiet
from server.lifecycle import Lifecycle


class Node:
    """Refers to itself, so that only the collector finds it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
async def collecting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lifecycle]:
    monkeypatch.setattr(garbage, "QUIET_SECONDS", 0.01)
    lifecycle, before = Lifecycle(on_deadline=lambda: None), gc.get_threshold()
    task = asyncio.create_task(collect_when_quiet(lambda: lifecycle.num_active))
    await asyncio.sleep(0)
    assert gc.get_freeze_count() > 0
    yield lifecycle
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


async def happens(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)
    return condition()


async def test_garbage_is_collected_while_few_requests_run(collecting: Lifecycle) -> None:
    lost = weakref.ref(Node())
    assert await happens(lambda: lost() is None)


async def test_nothing_is_looked_through_while_many_run(collecting: Lifecycle) -> None:
    tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(FEW_REQUESTS + 1)]
    for task in tasks:
        collecting.add(task)
    await asyncio.sleep(0.05)
    lost = weakref.ref(Node())
    assert not await happens(lambda: lost() is None, 0.2)
    for task in tasks:
        task.cancel()
    assert await happens(lambda: lost() is None)
