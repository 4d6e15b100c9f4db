"""What `dijiang bench-http` compares: the engine's steps, and events as a client sees them."""

import json
import socket
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clients.loadtest.connections import parse_address
from clients.loadtest.errors import LoadTestError
from clients.loadtest.raw_streams import StreamTimes, read_streams
from dijiang_runtime.bench.made_up import made_up_tokenizer
from dijiang_runtime.bench.streams import steady_gaps, steady_speed
from dijiang_runtime.tokenizer import Tokenizer
from server import cli

STREAM = b'c\r\ndata: {"a":1}\n\ndata: {}\n\n\r\ndata: [DONE]\n\n\r\n0\r\n\r\n'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_counted_wherever_the_reads_cut_them(size: int) -> None:
    stream = StreamTimes()
    for start in range(0, len(STREAM), size):
        stream.feed(STREAM[start : start + size], now=float(start))
    stream.finish()
    assert len(stream.times) == 2


def test_a_stream_without_its_end_was_cut() -> None:
    stream = StreamTimes()
    stream.feed(STREAM[:-40], now=0.0)
    with pytest.raises(LoadTestError, match="cut after"):
        stream.finish()


def test_all_streams_are_read_to_their_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    assert connection.recv(1000) == b"a request"
                    connection.sendall(STREAM)

        server = threading.Thread(target=answer)
        server.start()
        address = parse_address(f"http://127.0.0.1:{listener.getsockname()[1]}")
        streams = read_streams(address, [b"a request"] * 3, timeout_seconds=5.0)
        server.join()
    assert [len(stream.times) for stream in streams] == [2, 2, 2]


def test_only_the_time_in_which_all_streams_run_counts() -> None:
    # From 2, where the second one begins, to 5, where the first one ends.
    streams = [[1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 3.0, 5.0, 6.0, 9.0]]
    assert steady_speed(streams, 5) == pytest.approx((3 + 2) / 3)
    assert sorted(steady_gaps(streams)) == [1.0, 1.0, 1.0, 1.0, 2.0]


def test_events_that_stand_for_several_tokens_count_as_such() -> None:
    assert steady_speed([[0.0, 1.0, 2.0]], 6) == pytest.approx(2 * 2 / 2)


def test_every_made_up_token_has_text() -> None:
    tokenizer = Tokenizer(made_up_tokenizer(5000))
    assert tokenizer.vocab_size == 5000
    assert all(tokenizer.token_bytes(i) for i in range(5000))


def test_the_command_measures_both(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = ["--streams=2", "--tokens=400", "--rounds=1", "--dtype=float32", f"--json={file}"]
    result = CliRunner().invoke(cli.app, ["bench-http", str(tiny_model), *options])
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    speeds = [report[side]["tokens_per_second"]["p50"] for side in ("engine", "server")]
    ratio = report["server"]["ratio"]["p50"]
    assert ratio == pytest.approx(speeds[1] / speeds[0])
    assert report["ready_seconds"] > 0
    assert f"{ratio:.3f}" in result.output
