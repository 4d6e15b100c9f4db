"""What the client raises.

* ClientError
  x ServerUnreachableError     no server answered at that address, or not in time
  x ProtocolError              what answered is not an OpenAI-compatible API
  x StreamError                a stream broke off, or the server ended it with an error event
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

from collections.abc import Mapping
from typing import Any

import httpx


class ClientError(Exception):
    """Base of everything the client raises on purpose."""


class ServerUnreachableError(ClientError):
    """No server answered at this address, or not in time."""


class ProtocolError(ClientError):
    """What answered at this address is not an OpenAI-compatible API."""


class StreamError(ClientError):
    """A stream ended before its answer did. What came before it is incomplete."""

    def __init__(self, message: str, *, type: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.type = type
        self.code = code


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


def error_from_response(response: httpx.Response) -> APIError:
    """The error that a response with an error status, already read, stands for."""
    body = _error_object(response)
    status = response.status_code
    cls = STATUS_ERRORS.get(status, ServerError if status >= 500 else APIError)
    return cls(
        _text(body, "message") or f"HTTP {status} {response.reason_phrase}".rstrip(),
        status_code=status,
        type=_text(body, "type"),
        param=_text(body, "param"),
        code=_text(body, "code"),
        request_id=response.headers.get("x-request-id"),
        retry_after_seconds=_seconds(response.headers.get("retry-after")),
    )


def error_from_event(error: Any) -> StreamError:
    """The error that an `{"error": …}` event in a stream stands for."""
    body = error if isinstance(error, Mapping) else {"message": error}
    message = _text(body, "message") or "The server ended the stream with an error."
    return StreamError(message, type=_text(body, "type"), code=_text(body, "code"))


def _error_object(response: httpx.Response) -> Mapping[str, Any]:
    """The `error` object of an OpenAI error body; empty where a proxy answered something else."""
    try:
        error = response.json()["error"]
    except (ValueError, TypeError, LookupError):
        return {}
    return error if isinstance(error, Mapping) else {"message": error}


def _text(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    return None if value is None else str(value)


def _seconds(header: str | None) -> float | None:
    # A date is allowed there too; no server of ours sends one.
    try:
        return None if header is None else float(header)
    except ValueError:
        return None
