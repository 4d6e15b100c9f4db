"""The client's side of running requests: one `RequestStream` each, and the table of them."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from dijiang_runtime import errors
from dijiang_runtime.engine.admission import (
    AdmissionRate,
    QueueLimits,
    check_queue,
    validate_request,
)
from dijiang_runtime.engine.merge import merge_outputs
from dijiang_runtime.engine.messages import Abort, AddRequest, ClientMessage, EngineInfo
from dijiang_runtime.request import FinishReason, Request, RequestError, RequestOutput

logger = logging.getLogger(__name__)

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


class StreamTable:
    """The requests that one engine has not ended yet. Decides who is let in.

    An aborted request counts until the engine confirms it, so the count here is never below the
    engine's own.
    """

    def __init__(
        self, info: EngineInfo, send: Callable[[ClientMessage], None], *, admits: bool = True
    ) -> None:
        """
        Args:
            admits: Whether a request that passes here is let in. Otherwise others use the engine
                as well, and whoever shares it out has the last word: `admit`, or an error.
        """
        self._info = info
        self._send = send
        self._admits = admits
        self._limits = QueueLimits(info.max_queued_requests, info.max_queued_tokens)
        self._rate = AdmissionRate()
        self._streams: dict[str, RequestStream] = {}
        self._num_waiting_tokens = 0
        """Prompt tokens of those that the engine has not begun."""
        self._ended = asyncio.Event()
        self.num_finished = 0
        """Requests that came to an end of their own."""

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, request: Request) -> RequestStream:
        """Send a request to the engine.

        Raises:
            InvalidRequestError: the request is wrong.
            EngineOverloadedError: the queue is full.
        """
        info = self._info
        validate_request(
            request,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            max_logprobs=info.max_logprobs,
        )
        if request.request_id in self._streams:
            raise errors.InvalidRequestError("request_id is in use.", param="request_id")
        self._check_queue(request)
        self._send(AddRequest(request))
        stream = RequestStream(request, self._abort, is_admitted=self._admits)
        self._streams[request.request_id] = stream
        self._num_waiting_tokens += len(request.prompt_token_ids)
        return stream

    def admit(self, request_ids: Iterable[str]) -> None:
        """Note who was let in."""
        for request_id in request_ids:
            if request_id in self._streams:
                self._streams[request_id].admit()
            else:
                # Given up here while it was on its way, when the engine before this one died.
                self._send(Abort(request_id))

    def _check_queue(self, request: Request) -> None:
        num_slots = self._info.num_slots
        num_queued = len(self._streams) - num_slots
        # Ten thousand that wait are not looked through for each that comes.
        if num_queued < 0 or self._limits.surely_fits(num_queued, self._num_waiting_tokens):
            return
        # In order of admission, as far as it can be told from here: the last are those that
        # wait. Sorting keeps the order of arrival among equals.
        streams = sorted(
            self._streams.values(), key=lambda s: (not s.has_begun, s.request.priority)
        )
        queued = [len(s.request.prompt_token_ids) for s in streams[num_slots:]]
        check_queue(queued, len(request.prompt_token_ids), self._limits, self._rate)

    def deliver(self, outputs: Iterable[RequestOutput]) -> None:
        """Hand outputs of the engine to their streams."""
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                logger.warning("request %s is unknown here", output.request_id)
                continue
            stream.push(output)
            if not stream.has_begun:
                stream.has_begun = True
                self._num_waiting_tokens -= len(stream.request.prompt_token_ids)
            if output.finished:
                saturated = len(self._streams) > self._info.num_slots
                self._rate.observe(time.monotonic(), saturated=saturated)
                del self._streams[output.request_id]
                self.num_finished += output.finish_reason in OWN_ENDS
                self._ended.set()

    def fail_all(self, error: errors.DiJiangError) -> None:
        """End every request with an error: the engine is gone."""
        for stream in self._streams.values():
            logger.warning("request %s lost its engine", stream.request_id)
            stream.fail(error)
        self._streams.clear()
        self._num_waiting_tokens = 0

    async def wait_until_empty(self, timeout_seconds: float) -> None:
        """Return when every request has ended, or after so long."""
        deadline = time.monotonic() + timeout_seconds
        while self._streams and time.monotonic() < deadline:
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), deadline - time.monotonic())

    def _abort(self, request_id: str) -> None:
        if request_id in self._streams:
            self._send(Abort(request_id))


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
