"""How a request ends before its answer does: the client leaves, or the server stops."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from server.errors import ClientDisconnectedError, DeadlineExceededError, ServerDrainingError

T = TypeVar("T")


class Lifecycle:
    """Whether the server takes new work, and the tasks that still produce answers.

    Owned by the app. The runner calls `begin_drain`, waits on `wait_until_idle`, and at the end of
    the grace period calls `end_remaining`.
    """

    def __init__(self, on_deadline: Callable[[], None]) -> None:
        """`on_deadline` is called for every answer that was not complete in its time."""
        self.on_deadline = on_deadline
        self.is_draining = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_active(self) -> int:
        """Requests that are being answered."""
        return len(self._tasks)

    def check_accepting(self) -> None:
        """Raise `ServerDrainingError` unless new work is welcome."""
        if self.is_draining:
            raise ServerDrainingError()

    def begin_drain(self) -> None:
        """Take no new work from now on."""
        self.is_draining = True

    async def wait_until_idle(self) -> None:
        """Return when no request is being answered."""
        await self._idle.wait()

    def end_remaining(self) -> None:
        """Cancel what still runs; each request then ends with an error."""
        for task in self._tasks:
            task.cancel()

    def add(self, task: asyncio.Task[Any]) -> None:
        """Count a task as running until it is done."""
        self._tasks.add(task)
        self._idle.clear()
        task.add_done_callback(self._discard)

    def _discard(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()


async def run_for_client(
    work: Coroutine[Any, Any, T],
    left: Coroutine[Any, Any, None],
    lifecycle: Lifecycle,
    *,
    deadline: float | None = None,
) -> T:
    """Run `work` until it is done, `left` returns, its deadline has come, or the server stops.

    The deadline is a time of the event loop's clock.

    The work runs in a task of its own, so that ending it early never cancels the caller, who has
    the last word to say.

    Raises:
        ClientDisconnectedError: `left` returned first.
        DeadlineExceededError: the deadline came first.
        ServerDrainingError: the grace period ended first.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(left)
    lifecycle.add(task)
    try:
        now = asyncio.get_running_loop().time()
        await asyncio.wait(
            {task, watcher},
            timeout=None if deadline is None else max(0.0, deadline - now),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not task.done():
            if watcher.done():
                raise ClientDisconnectedError
            lifecycle.on_deadline()
            raise DeadlineExceededError
        if task.cancelled():
            raise ServerDrainingError("The server shut down before the answer was complete.")
        return task.result()
    finally:
        # Not awaited: this may be running because the caller itself was cancelled.
        task.cancel()
        watcher.cancel()


async def client_left(receive: Receive) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
