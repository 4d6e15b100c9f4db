"""The chunks of a stream are what h11 would write."""

import h11
import pytest

from server.http_protocol import StrictConnection

REQUEST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"
STREAM: list[h11.Event] = [
    h11.Response(status_code=200, headers=[(b"content-type", b"text/event-stream")]),
    h11.Data(data=b"data: 1\n\n"),
    h11.Data(data=b""),
    h11.Data(data=b"x" * 5000),
    h11.EndOfMessage(),
]
WHOLE: list[h11.Event] = [
    h11.Response(status_code=200, headers=[(b"content-length", b"2")]),
    h11.Data(data=b"ab"),
    h11.EndOfMessage(),
]


def written(connection: h11.Connection, answers: list[list[h11.Event]]) -> list[bytes]:
    """What the connection writes for a request after the other."""
    parts: list[bytes] = []
    for answer in answers:
        connection.receive_data(REQUEST)
        while not isinstance(connection.next_event(), h11.EndOfMessage):
            pass
        parts += [connection.send(event) or b"" for event in answer]
        connection.start_next_cycle()
    return parts


@pytest.mark.parametrize("answers", [[STREAM], [WHOLE], [STREAM, WHOLE, STREAM], [WHOLE, STREAM]])
def test_answers_are_framed_as_h11_frames_them(answers: list[list[h11.Event]]) -> None:
    ours = written(StrictConnection(h11.SERVER), answers)
    assert ours == written(h11.Connection(h11.SERVER), answers)


def test_an_answer_to_an_old_client_has_no_chunks() -> None:
    answers = []
    for connection in (StrictConnection(h11.SERVER), h11.Connection(h11.SERVER)):
        connection.receive_data(b"GET / HTTP/1.0\r\n\r\n")
        while not isinstance(connection.next_event(), h11.EndOfMessage):
            pass
        answers.append([connection.send(event) for event in STREAM])
    assert answers[0] == answers[1]
