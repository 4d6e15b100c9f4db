"""What every request passes before its route, as pure ASGI: id, limits, API key.

The order is fixed by `app.py`: `RequestMiddleware` is outermost, so that everything below it,
refusals included, carries a request id and is counted.
"""

import logging
import re
import time
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dijiang_runtime.errors import InvalidRequestError
from server.api_keys import ApiKeys
from server.errors import (
    AuthenticationError,
    BodyTooLargeError,
    ClientDisconnectedError,
    error_response,
)
from server.metrics import Metrics

logger = logging.getLogger(__name__)

Outcome = Literal["ok", "error", "aborted", "rejected"]

PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/health", "/"})
"""All that may be asked without a key: the probes, and the playground, a page that holds no data.
Any other path, existing or not, needs one."""

_CLIENT_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(slots=True)
class RequestRecord:
    """What became of one HTTP request; routes and streams write to it."""

    request_id: str
    status: int = 0
    accepted: bool = False
    """The engine has the request: from here on a failure is ours."""
    key_hash: str = ""
    """Hex SHA-256 of the API key that it came with; empty where none is asked for."""
    user_hash: str = ""
    """Of the `user` that the client named; only that is ever logged of it."""
    outcome: Outcome | None = None
    """Set where the status alone does not tell: a stream that failed, a client that left."""

    def final_outcome(self) -> Outcome:
        if self.outcome is not None:
            return self.outcome
        if self.status < 400:
            return "ok" if self.status else "aborted"
        refused = self.status < 500 or (self.status == 503 and not self.accepted)
        return "rejected" if refused else "error"


def record_of(scope: Scope) -> RequestRecord:
    """The record that `RequestMiddleware` made for this request."""
    record: RequestRecord = scope["state"]["record"]
    return record


class RequestMiddleware:
    """Gives every request an id and a record, counts it, and answers what nobody caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(_request_id(Headers(scope=scope).get("x-request-id")))
        scope.setdefault("state", {})["record"] = record
        started = time.perf_counter()
        self.metrics.http_request_started(scope["method"], scope["path"])
        try:
            await self._answer(scope, receive, send, record)
        finally:
            self.metrics.http_request_finished(
                scope["method"], scope["path"], record.status, record.final_outcome()
            )
            if self.access_log:
                # %r: a path is the client's, and may hold line breaks and escape codes.
                logger.info(
                    "%s %s %r %d %.1f ms%s",
                    record.request_id,
                    scope["method"],
                    scope["path"],
                    record.status,
                    1e3 * (time.perf_counter() - started),
                    f" user={record.user_hash}" if record.user_hash else "",
                )

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, record: RequestRecord
    ) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except (ClientDisconnectedError, ClientDisconnect):
            record.outcome = "aborted"
        except Exception as exc:
            logger.exception("%s failed", record.request_id)
            record.outcome = "error"
            if record.status:
                raise  # The answer has begun: only the server can cut it off.
            await error_response(exc, record.request_id)(scope, receive, send_with_id)


class LimitsMiddleware:
    """Refuses bodies that are too long, before and while they are read."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_headers(Headers(scope=scope))
        except InvalidRequestError as exc:
            refusal = error_response(exc, record_of(scope).request_id)
            # What follows on this connection is a body that nobody reads.
            refusal.headers["Connection"] = "close"
            await refusal(scope, receive, send)
            return
        num_bytes = 0

        async def counted_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                raise BodyTooLargeError(self.max_body_bytes)
            return message

        await self.app(scope, counted_receive, send)

    def _check_headers(self, headers: Headers) -> None:
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may believe the one and we the other: where does the next request begin?
            raise InvalidRequestError("Content-Length and Transfer-Encoding exclude each other.")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise InvalidRequestError("The Content-Length header is not a number.")
        # Compare lengths of digits first: a number of 5,000 digits is not worth converting.
        if len(length) > 18 or int(length) > self.max_body_bytes:
            raise BodyTooLargeError(self.max_body_bytes)


class AuthMiddleware:
    """Asks for an API key on every path except `PUBLIC_PATHS`, when any key is configured."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The path alone decides, never the URL: that one is put together from the Host header.
        is_guarded = scope["type"] != "lifespan" and scope["path"] not in PUBLIC_PATHS
        if not (self.keys.are_required and is_guarded):
            await self.app(scope, receive, send)
            return
        digest = self._valid_key(scope)
        if digest is None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            refusal = error_response(AuthenticationError(), record_of(scope).request_id)
            await refusal(scope, receive, send)
            return
        if scope["type"] == "http":
            record_of(scope).key_hash = digest.hex()
        await self.app(scope, receive, send)

    def _valid_key(self, scope: Scope) -> bytes | None:
        """The SHA-256 of the key that the request came with, if it is one of ours."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1 or values[0][:7].lower() != b"bearer ":
            return None
        return self.keys.find(values[0][7:].strip())


def _request_id(from_client: str | None) -> str:
    """The client's own id where it is harmless to repeat, else a new one."""
    if from_client is not None and _CLIENT_REQUEST_ID.fullmatch(from_client):
        return from_client
    return f"req-{uuid4().hex}"
