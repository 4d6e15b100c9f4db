"""What an exception becomes on the wire: one table, one body, in responses and in streams.

* DiJiangError (dijiang_runtime.errors)
  x InvalidRequestError
    + UnknownModelError          the model named is not served here
    + UnsupportedParameterError  a field that would change the answer, and is not implemented
    + BodyTooLargeError          the body is over the limit
    + UnsupportedMediaTypeError  the body is not plain JSON
  x AuthenticationError          no API key, or a wrong one
  x ServerDrainingError          the server is stopping
  x KeyLimitError                the API key has as many requests running as it may
  x DeadlineExceededError        the answer was not complete within its time

ClientDisconnectedError is not one of them: nobody is left to tell.
"""

import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from dijiang_runtime.errors import (
    ContextLengthError,
    DiJiangError,
    EngineDeadError,
    EngineOverloadedError,
    GrammarCheckError,
    InvalidRequestError,
    NumericalError,
    QueueTimeoutError,
    RequestFailedError,
)


class UnknownModelError(InvalidRequestError):
    """The model named is not served here."""

    def __init__(self, served: tuple[str, ...]) -> None:
        super().__init__(
            f"This server has no model of that name. It serves: {', '.join(served)}.",
            param="model",
        )


class UnsupportedParameterError(InvalidRequestError):
    """A field that would change the answer, and is not implemented. Ignoring it would deceive."""


class BodyTooLargeError(InvalidRequestError):
    """The body is longer than the server reads."""

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__(f"The request body is larger than {max_body_bytes} bytes.")


class UnsupportedMediaTypeError(InvalidRequestError):
    """The body is not plain JSON."""


class AuthenticationError(DiJiangError):
    """No API key, or a wrong one."""

    def __init__(self) -> None:
        super().__init__("Send a valid API key in the header 'Authorization: Bearer KEY'.")


class ServerDrainingError(DiJiangError):
    """The server is stopping: it takes no new work, or its time for running work is over."""

    def __init__(self, message: str = "The server is shutting down. Try again.") -> None:
        super().__init__(message)
        self.retry_after_seconds = 1.0


class KeyLimitError(DiJiangError):
    """The API key has as many requests running as it may."""

    def __init__(self, limit: int, *, retry_after_seconds: float) -> None:
        super().__init__(f"At most {limit} requests may run at once. Wait for one of yours to end.")
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceededError(DiJiangError):
    """The answer was not complete within the request's timeout, or the server's."""

    def __init__(self) -> None:
        super().__init__("The answer was not complete within the request's time limit.")


class ClientDisconnectedError(Exception):
    """The client left, or stopped reading, before its answer was complete."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The value of `error` in an OpenAI error response."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every error."""

    error: ErrorBody


# The first class that matches wins: the more specific stands first.
OPENAI_ERRORS: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (AuthenticationError, 401, "invalid_request_error", "invalid_api_key"),
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (BodyTooLargeError, 413, "invalid_request_error", "request_too_large"),
    (UnsupportedMediaTypeError, 415, "invalid_request_error", "unsupported_media_type"),
    (UnsupportedParameterError, 400, "invalid_request_error", "unsupported_parameter"),
    (ContextLengthError, 400, "invalid_request_error", "context_length_exceeded"),
    (InvalidRequestError, 400, "invalid_request_error", None),
    (EngineOverloadedError, 429, "rate_limit_error", "engine_overloaded"),
    (KeyLimitError, 429, "rate_limit_error", "too_many_requests"),
    (NumericalError, 500, "server_error", "numerical_error"),
    (RequestFailedError, 500, "server_error", "request_failed"),
    (ServerDrainingError, 503, "server_error", "server_draining"),
    (QueueTimeoutError, 503, "server_error", "queue_timeout"),
    (GrammarCheckError, 503, "server_error", "grammar_check_unavailable"),
    (DeadlineExceededError, 504, "server_error", "deadline_exceeded"),
    (EngineDeadError, 503, "server_error", "engine_dead"),
)

HTTP_ERRORS = {
    404: ErrorBody("There is nothing at this URL.", "invalid_request_error", None, "not_found"),
    405: ErrorBody(
        "This URL does not take this method.", "invalid_request_error", None, "method_not_allowed"
    ),
}
"""What the router refuses by itself."""


def describe(exc: Exception, request_id: str) -> tuple[int, ErrorBody]:
    """The status and the body of an exception. One that we do not know says nothing of itself."""
    for error_type, status, kind, code in OPENAI_ERRORS:
        if isinstance(exc, error_type):
            param = getattr(exc, "param", None)
            return status, ErrorBody(message=str(exc), type=kind, param=param, code=code)
    message = f"The server failed to answer. Quote request {request_id} when you report this."
    return 500, ErrorBody(message=message, type="server_error", param=None, code="internal_error")


def encode_error(body: ErrorBody) -> bytes:
    """The JSON of an error response, and of the last event of a stream that failed."""
    return msgspec.json.encode(ErrorResponse(body))


def error_response(exc: Exception, request_id: str) -> Response:
    """The response for an exception raised before the first byte of an answer was sent."""
    status, body = describe(exc, request_id)
    headers: dict[str, str] = {}
    retry_after = getattr(exc, "retry_after_seconds", None)
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status == 504:
        # OpenAI's libraries try again by themselves unless they are told not to.
        headers["X-Should-Retry"] = "false"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (413, 415):
        # The rest of the body is not read, so the connection cannot carry another request.
        headers["Connection"] = "close"
    return _json_response(status, body, headers)


def http_error_response(status: int, headers: Mapping[str, str] | None) -> Response:
    """The response for what the router refuses: an unknown URL, a wrong method."""
    fallback = ErrorBody("The request was refused.", "invalid_request_error", None, None)
    return _json_response(status, HTTP_ERRORS.get(status, fallback), dict(headers or {}))


def _json_response(status: int, body: ErrorBody, headers: dict[str, str]) -> Response:
    return Response(encode_error(body), status, headers, media_type="application/json")
