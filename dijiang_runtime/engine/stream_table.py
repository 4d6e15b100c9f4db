"""The requests that run in one engine, as whoever sends them keeps them. Knows no torch."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from dijiang_runtime import errors
from dijiang_runtime.engine.admission import (
    AdmissionRate,
    QueueLimits,
    check_queue,
    validate_request,
)
from dijiang_runtime.engine.messages import Abort, AddRequest, ClientMessage, EngineInfo
from dijiang_runtime.engine.stream import OWN_ENDS, RequestStream
from dijiang_runtime.request import Request, RequestOutput

logger = logging.getLogger(__name__)


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
