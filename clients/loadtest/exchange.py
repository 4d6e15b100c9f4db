"""One streamed answer: the bytes of its response in, a filled `RequestRecord` out. No I/O."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from clients.errors import ProtocolError
from clients.loadtest.parser import ResponseParser
from clients.loadtest.records import Recorder, RequestRecord
from clients.sse import SSEDecoder

MAX_ERROR_BYTES = 65_536


class Exchange:
    """Takes what a connection receives for one request.

    Args:
        record: Filled as events arrive.
        recorder: Its running totals count the events.
        keep_text: Whether to collect the answer's text, for the next turn.
        on_end: Called once, when the response is complete or has failed.
    """

    def __init__(
        self,
        record: RequestRecord,
        recorder: Recorder,
        *,
        keep_text: bool,
        on_end: Callable[[], None],
    ) -> None:
        self.record = record
        self.parser = ResponseParser()
        self.is_ended = False
        self.has_begun = False
        self.pieces: list[str] = []
        self._recorder = recorder
        self._keep_text = keep_text
        self._on_end = on_end
        self._sse = SSEDecoder()
        self._is_done = False
        self._error_body = b""

    def feed(self, data: bytes, now: float) -> None:
        """Take what arrived at `now`."""
        self.has_begun = True
        try:
            body = self.parser.feed(data)
            if self.parser.status == 200:
                for event in self._sse.feed(body):
                    self._take(event.data, now)
            elif len(self._error_body) < MAX_ERROR_BYTES:
                self._error_body += body
        except ProtocolError as exc:
            self.fail("protocol", str(exc))
            return
        except (ValueError, TypeError, LookupError, AttributeError):
            self.fail("protocol", "An event is not a chunk of an OpenAI-compatible answer.")
            return
        if self.parser.is_complete:
            self._finish()

    def connection_lost(self) -> None:
        """Say that nothing more will come."""
        self.parser.end()
        if not self.is_ended:
            self._finish()

    def fail(self, kind: str, message: str) -> None:
        """End as failed, unless it has ended already."""
        if not self.is_ended:
            self.is_ended = True
            self.record.error, self.record.error_message = kind, message[:500]
            self._on_end()

    def _finish(self) -> None:
        """Judge the response, of which nothing more will come."""
        status = self.parser.status
        if status not in (0, 200):
            self.fail(f"http_{status}", _error_message(self._error_body, status))
        elif status == 0:
            self.fail("cut", "The connection was closed before the response began.")
        elif not self._is_done and not (self.record.finish_reason and self.parser.is_complete):
            if self.parser.is_complete and not self.record.last_token:
                self.fail("protocol", "The response is not an event stream.")
            else:
                self.fail("cut", "The stream ended before the answer did.")
        elif not self.is_ended:
            self.is_ended = True
            self._on_end()

    def _take(self, data: str, now: float) -> None:
        if data == "[DONE]":
            self._is_done = True
            return
        body = json.loads(data)
        if "error" in body:
            error = body["error"]
            message = error.get("message") if isinstance(error, Mapping) else error
            self.fail("stream_error", str(message))
            return
        record = self.record
        for choice in body["choices"]:
            if text := _text(choice):
                record.token_times.append(now)
                record.last_token = now
                self._recorder.num_events += 1
                if self._keep_text:
                    self.pieces.append(text)
            if reason := choice.get("finish_reason"):
                record.finish_reason = reason
                record.last_token = now
        if usage := body.get("usage"):
            record.prompt_tokens = usage.get("prompt_tokens", -1)
            record.output_tokens = usage.get("completion_tokens", -1)
            details = usage.get("prompt_tokens_details") or {}
            record.cached_tokens = details.get("cached_tokens", -1)


def _text(choice: Mapping[str, Any]) -> str:
    """What a choice adds that a user would see arrive: text, reasoning, or a tool call."""
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or ""
    text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    if not text and (calls := delta.get("tool_calls")):
        text = calls[0].get("function", {}).get("arguments")
    return text or ""


def _error_message(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, LookupError):
        return f"HTTP {status}"
