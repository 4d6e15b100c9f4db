"""What the client raises.

* ClientError
  x ServerUnreachableError     no server answered at that address; nothing of an answer came
  x RequestTimeoutError        a limit of `Timeouts` passed; `limit` says which
  x ProtocolError              what answered is not an OpenAI-compatible API
  x StreamError                an answer ended before its end: the server sent an error event
    + ConnectionLostError      the connection broke off
  x APIError                   the server refused; mirrors the status code
    + BadRequestError          400, 422: the request is wrong; `param` names the field
    + AuthenticationError      401: the API key is missing or unknown
    + PermissionDeniedError    403
    + NotFoundError            404: no such model or path
    + RequestTooLargeError     413
    + RateLimitError           429: the queue is full; `retry_after_seconds` says for how long
    + ServerError              5xx
      - ServiceUnavailableError  503: starting, draining, or the engine is being restarted
"""

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from json import loads
from typing import Any, Literal

import httpx

LimitName = Literal["first_token", "between_tokens", "total"]


class ClientError(Exception):
    """Base of everything the client raises on purpose."""


class ServerUnreachableError(ClientError):
    """No server answered at this address: nothing of an answer has come."""


class RequestTimeoutError(ClientError):
    """The server took longer than the client wants to wait."""

    def __init__(self, limit: LimitName, seconds: float) -> None:
        waited_for = {
            "first_token": "The answer did not begin",
            "between_tokens": "The answer did not go on",
            "total": "The answer was not complete",
        }
        super().__init__(f"{waited_for[limit]} within {seconds:g} s.")
        self.limit = limit
        self.seconds = seconds


class ProtocolError(ClientError):
    """What answered at this address is not an OpenAI-compatible API."""


class StreamError(ClientError):
    """An answer that had begun ended before its end. What came of it is incomplete."""

    def __init__(self, message: str, *, type: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.type = type
        self.code = code


class ConnectionLostError(StreamError):
    """The connection broke off in mid-answer."""


class APIError(ClientError):
    """The server answered with an error status and, as a rule, an OpenAI error body."""

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.type = type
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


class BadRequestError(APIError):
    """The request is wrong."""


class AuthenticationError(APIError):
    """The API key is missing or unknown."""


class PermissionDeniedError(APIError):
    """The key does not open this."""


class NotFoundError(APIError):
    """No such model, or no such path."""


class RequestTooLargeError(APIError):
    """The body is larger than the server accepts."""


class RateLimitError(APIError):
    """The server has more to do than it accepts. Try again later."""


class ServerError(APIError):
    """The server failed."""


class ServiceUnavailableError(ServerError):
    """The server is starting, draining, or restarting its engine."""


STATUS_ERRORS: Mapping[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    413: RequestTooLargeError,
    422: BadRequestError,
    429: RateLimitError,
    503: ServiceUnavailableError,
}


def error_from_response(response: httpx.Response, content: bytes) -> APIError:
    """The error that a response with an error status and this body stands for."""
    body = _error_object(content)
    status = response.status_code
    cls = STATUS_ERRORS.get(status, ServerError if status >= 500 else APIError)
    return cls(
        _text(body, "message") or f"HTTP {status} {response.reason_phrase}".rstrip(),
        status_code=status,
        type=_text(body, "type"),
        param=_text(body, "param"),
        code=_text(body, "code"),
        request_id=response.headers.get("x-request-id"),
        retry_after_seconds=parse_retry_after(response.headers.get("retry-after"), time.time()),
    )


def error_from_event(error: Any) -> StreamError:
    """The error that an `{"error": …}` event in a stream stands for."""
    body = error if isinstance(error, Mapping) else {"message": error}
    message = _text(body, "message") or "The server ended the stream with an error."
    return StreamError(message, type=_text(body, "type"), code=_text(body, "code"))


def _error_object(content: bytes) -> Mapping[str, Any]:
    """The `error` object of an OpenAI error body; empty where a proxy answered something else."""
    try:
        error = loads(content)["error"]
    except (ValueError, TypeError, LookupError):
        return {}
    return error if isinstance(error, Mapping) else {"message": error}


def _text(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    return None if value is None else str(value)


def parse_retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a `Retry-After` header, which holds either them or an HTTP date.

    `now` is the time of day, in seconds since 1970.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - now
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
