"""The event stream decoder, against the WHATWG rules and every way to cut a stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.sse import Event, SSEDecoder


def decode(*chunks: bytes) -> list[Event]:
    decoder = SSEDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


STREAM = (
    b": ping - 2026\r\n\r\n"
    b'data: {"text": "Z\xc3\xbcrich \xf0\x9f\xa6\x8a"}\n\n'
    b"event: error\rdata:one\rdata: two\r\r"
    b"id: 7\nretry: 100\ndata\n\n"
    b"data:  [DONE]\r\n\r\n"
)
EVENTS = [
    Event('{"text": "Zürich 🦊"}'),
    Event("one\ntwo", event="error"),
    Event(""),
    Event(" [DONE]"),
]


def test_a_stream_is_read_whole() -> None:
    assert decode(STREAM) == EVENTS


def test_a_stream_may_be_cut_at_any_byte() -> None:
    for cut in range(len(STREAM) + 1):
        assert decode(STREAM[:cut], STREAM[cut:]) == EVENTS, cut


def test_a_stream_may_come_byte_by_byte() -> None:
    assert decode(*(bytes([byte]) for byte in STREAM)) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=6).map(sorted))
def test_a_stream_may_be_cut_into_pieces_of_any_size(cuts: list[int]) -> None:
    bounds = [0, *cuts, len(STREAM)]
    assert decode(*(STREAM[a:b] for a, b in zip(bounds, bounds[1:], strict=False))) == EVENTS


@pytest.mark.parametrize(
    "stream", [b": ping\n\n", b"\n\n\n", b"event: lonely\n\n", b"id: 1\n\n", b""]
)
def test_what_holds_no_data_is_no_event(stream: bytes) -> None:
    assert decode(stream) == []


def test_an_event_that_the_end_of_the_stream_cuts_is_not_returned() -> None:
    assert decode(b"data: whole\n\ndata: cut", b"\n") == [Event("whole")]


def test_an_event_is_returned_with_its_last_byte() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\r\n\r") == [Event("a")]
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"data: b\n") == []
    assert decoder.feed(b"\n") == [Event("b")]


def test_the_name_of_an_event_does_not_outlive_it() -> None:
    assert decode(b"event: error\n\ndata: a\n\n") == [Event("a")]


def test_a_byte_order_mark_at_the_start_is_ignored() -> None:
    assert decode(b"\xef\xbb\xbfdata: a\n\n", b"\xef\xbb\xbfdata: b\n\n") == [Event("a")]


def test_bytes_that_are_no_utf8_do_not_stop_the_stream() -> None:
    assert decode(b"data: \xff\n\ndata: b\n\n") == [Event("\ufffd"), Event("b")]


def test_line_ends_inside_a_character_string_are_only_the_three_of_the_format() -> None:
    text = "a\u2028b\x0bc\x0cd\x85e"
    assert decode(f"data: {text}\n\n".encode()) == [Event(text)]
