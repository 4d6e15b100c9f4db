"""The client's side of a running request: a `RequestStream`. Knows no torch."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from dijiang_runtime import errors
from dijiang_runtime.engine.merge import merge_outputs
from dijiang_runtime.request import FinishReason, Request, RequestError, RequestOutput

OWN_ENDS = (FinishReason.STOP, FinishReason.LENGTH)

_MAX_UNREAD = 256
"""Outputs that a stream keeps apart for a reader that does not come."""


class RequestStream:
    """The outputs of one request, as an asynchronous iterator of deltas.

    What arrives while the consumer is busy is handed out as one output, or by `unread` all at once,
    so what waits here is bounded by the request's own max_tokens. Leaving the `with` block aborts
    the request if it still runs.
    """

    def __init__(
        self, request: Request, on_abort: Callable[[str], None], *, is_admitted: bool = True
    ) -> None:
        self.request = request
        self._on_abort = on_abort
        self._is_admitted = is_admitted
        self._unread: list[RequestOutput] = []
        self._error: errors.DiJiangError | None = None
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        """Done when there is news for the consumer that waits."""
        self.on_news: Callable[[], None] | None = None
        """Called instead, where nobody waits: then outputs are had by `take`."""
        self.has_begun = False
        """Whether the engine has said anything of it."""

    @property
    def request_id(self) -> str:
        return self.request.request_id

    def abort(self) -> None:
        """End the request early and free its slot. Does nothing if it has ended."""
        if not self._ended:
            self.push(RequestOutput(request_id=self.request_id, finish_reason=FinishReason.ABORT))
            self._on_abort(self.request_id)

    def admit(self) -> None:
        """Note that there is room for the request."""
        self._is_admitted = True
        self._wake()

    async def admitted(self) -> None:
        """Return when there is room for the request. Raises the error that refused it."""
        while not self._is_admitted and not self._unread:
            if self._error is not None:
                raise self._error
            if self._ended:
                return
            await self._news()

    def push(self, output: RequestOutput) -> None:
        """Add an output. What follows the last one is dropped."""
        if self._ended:
            return
        if output.error is not None:
            self.fail(to_exception(output.error))
            return
        self._unread.append(output)
        if len(self._unread) > _MAX_UNREAD:
            self._unread = [merge_outputs(self._unread)]
        self._ended = output.finished
        self._wake()

    def fail(self, error: errors.DiJiangError) -> None:
        """End the request with an error, which the consumer gets after what it has not read."""
        if not self._ended:
            self._error = error
            self._ended = True
            self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        if outputs := await self.unread():
            return merge_outputs(outputs)
        raise StopAsyncIteration

    async def unread(self) -> list[RequestOutput]:
        """What has come since the last call, oldest first, after waiting for it; nothing once the
        request has ended. Raises the error that ended it."""
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self._ended:
                return []
            await self._news()
        outputs, self._unread = self._unread, []
        return outputs

    def take(self) -> list[RequestOutput]:
        """What has come since the last call, without waiting. An error is the last output."""
        outputs, self._unread = self._unread, []
        if self._error is not None:
            outputs.append(failure(self.request_id, self._error))
        return outputs

    async def _news(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader

    def _wake(self) -> None:
        if self.on_news is not None:
            self.on_news()
        elif self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Never awaits: the task that leaves may have been cancelled.
        self.abort()


def failure(request_id: str, error: errors.DiJiangError) -> RequestOutput:
    """The last output of a request that failed. `to_exception` is the way back."""
    retry_after: float | None = getattr(error, "retry_after_seconds", None)
    return RequestOutput(
        request_id=request_id,
        finish_reason=FinishReason.ERROR,
        error=RequestError(type(error).__name__, str(error), retry_after),
    )


def to_exception(error: RequestError) -> errors.DiJiangError:
    """The exception that a `RequestError` of the engine stands for."""
    match error.kind:
        case errors.NumericalError.__name__:
            return errors.NumericalError()
        case errors.InvalidRequestError.__name__:
            return errors.InvalidRequestError(error.message)
        case errors.QueueTimeoutError.__name__:
            return errors.QueueTimeoutError()
        case errors.EngineOverloadedError.__name__:
            seconds = error.retry_after_seconds or 1.0
            return errors.EngineOverloadedError(error.message, retry_after_seconds=seconds)
        case errors.EngineDeadError.__name__:
            return errors.EngineDeadError(error.message)
        case _:
            return errors.RequestFailedError(error.message)
