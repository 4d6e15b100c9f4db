"""What both clients do alike around httpx: addresses, headers, and errors."""

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from clients.errors import (
    ConnectionLostError,
    ProtocolError,
    ServerUnreachableError,
)
from clients.timeouts import Limit
from clients.wire import Call

DEFAULT_BASE_URL = "http://127.0.0.1:8000"


def parse_base_url(text: str) -> str:
    """An address, given with or without `/v1`, as requests need it.

    Raises:
        ServerUnreachableError: it is none.
    """
    base_url = text.rstrip("/").removesuffix("/v1")
    try:
        url = urlsplit(base_url)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError as exc:
        raise ServerUnreachableError(f"{text!r} is not an address: {exc}.") from exc
    if not is_address:
        raise ServerUnreachableError(f"{text!r} is not an address such as {DEFAULT_BASE_URL}.")
    return base_url


def request_headers(api_key: str | None) -> dict[str, str]:
    key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"Content-Type": "application/json", **key}


def build_request(
    http: httpx.Client | httpx.AsyncClient, call: Call[object], timeout: httpx.Timeout
) -> httpx.Request:
    return http.build_request(call.method, call.path, content=call.body, timeout=timeout)


def check_event_stream(response: httpx.Response) -> None:
    """Raise ProtocolError unless a response that should be a stream is one."""
    content_type = response.headers.get("content-type", "none")
    if not content_type.startswith("text/event-stream"):
        raise ProtocolError(f"The answer should be a stream of events, but is {content_type}.")


def lift_read_timeout(response: httpx.Response) -> None:
    """Let reads of the body take any time: httpx would go on with the limit for the head."""
    response.request.extensions["timeout"]["read"] = None


@contextlib.contextmanager
def sending_errors(base_url: str, limit: Limit) -> Iterator[None]:
    """Turn httpx's errors into ours, for what happens before a response."""
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as exc:
        raise limit.error() from exc
    except httpx.RemoteProtocolError as exc:
        # The other cause is a connection that was closed before it had a response.
        if "disconnected" not in str(exc):
            raise ProtocolError(f"What answers at {base_url} does not speak HTTP ({exc}).") from exc
        raise ServerUnreachableError(f"The server at {base_url} hung up ({exc}).") from exc
    except httpx.TransportError as exc:
        raise ServerUnreachableError(f"No server answers at {base_url} ({exc}).") from exc


@contextlib.contextmanager
def reading_errors(limit: Limit) -> Iterator[None]:
    """Turn httpx's errors into ours, for what happens in mid-response."""
    try:
        yield
    except httpx.ReadTimeout as exc:
        raise limit.error() from exc
    except httpx.TransportError as exc:
        raise ConnectionLostError(f"The connection broke in mid-answer: {exc}") from exc
    except httpx.DecodingError as exc:
        raise ProtocolError(f"The answer cannot be unpacked: {exc}") from exc
