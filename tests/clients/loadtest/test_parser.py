"""The response parser, against h11 and every way to cut a response."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import ProtocolError
from clients.loadtest.parser import ResponseParser

CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;name=value\r\n\n\r\n00A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
)
SIZED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\nConnection: close\r\n\r\nlate"
EMPTY = b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n"
UNSIZED = b"HTTP/1.0 200 OK\r\n\r\nall that comes"


def parse(*pieces: bytes) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser()
    body = b"".join(parser.feed(piece) for piece in pieces)
    return parser, body


def reference(response: bytes) -> tuple[int, bytes]:
    """What h11 makes of it."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(response)
    connection.receive_data(b"")
    status, body = 0, b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
    return status, body


@pytest.mark.parametrize("response", [CHUNKED, SIZED, EMPTY, UNSIZED])
def test_a_response_cut_at_any_byte_is_what_h11_reads(response: bytes) -> None:
    expected = reference(response)
    for cut in range(len(response) + 1):
        parser, body = parse(response[:cut], response[cut:])
        parser.end()
        assert (parser.status, body) == expected, cut
        assert parser.is_complete


@settings(deadline=None)
@given(st.lists(st.integers(0, len(CHUNKED)), max_size=8).map(sorted))
def test_a_response_may_be_cut_into_pieces_of_any_size(cuts: list[int]) -> None:
    bounds = [0, *cuts, len(CHUNKED)]
    pieces = [CHUNKED[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    parser, body = parse(*pieces)
    assert parser.is_complete
    assert body == reference(CHUNKED)[1]


def test_a_body_is_returned_as_soon_as_it_is_there() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert parser.feed(b"5\r\nhel") == b"hel"
    assert parser.feed(b"lo") == b"lo"
    assert parser.feed(b"\r\n3\r\nyou\r\n") == b"you"
    assert not parser.is_complete


@pytest.mark.parametrize(
    ("response", "keeps_alive"), [(CHUNKED, True), (EMPTY, True), (SIZED, False), (UNSIZED, False)]
)
def test_a_connection_is_kept_only_where_the_next_response_can_be_found(
    response: bytes, keeps_alive: bool
) -> None:
    parser, _ = parse(response)
    parser.end()
    assert parser.keeps_alive is keeps_alive


@pytest.mark.parametrize("response", [CHUNKED, SIZED])
def test_a_response_that_breaks_off_is_not_complete(response: bytes) -> None:
    for cut in range(len(response)):
        parser, _ = parse(response[:cut])
        parser.end()
        assert not parser.is_complete, cut


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nwhat\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
    ],
)
def test_what_is_not_http_is_an_error(response: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(response)
