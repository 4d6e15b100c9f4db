"""`dijiang chat`, in a pipe and in a pseudo-terminal, against a fake server."""

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from clients.chat.conversation import Conversation
from clients.chat.figures import Memory, Timing, format_bytes
from clients.client import Client
from clients.messages import Delta, Message, Usage
from clients.terminal import printable
from tests.clients.terminal import Terminal


def run_chat(*args: str, stdin: str = "", url: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", "chat", "--base-url", url, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def contents(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_a_pipe_gets_just_the_answer(fake_server: Any) -> None:
    result = run_chat("--max-tokens", "5", "--seed", "1", stdin="Tell me.\n", url=fake_server.url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "Once upon a time.\n", "")
    [body] = fake_server.bodies
    assert contents(body) == ["Tell me."]
    assert (body["max_tokens"], body["seed"], body["stream"]) == (5, 1, True)


def test_an_absent_server_is_one_line_and_exit_code_1() -> None:
    result = run_chat(stdin="Hello", url="http://127.0.0.1:9")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "No server answers at http://127.0.0.1:9" in result.stderr


def test_a_refusal_is_one_line_and_exit_code_1(fake_server: Any) -> None:
    fake_server.refusal = (401, {"error": {"message": "Wrong API key.", "type": "x"}})
    result = run_chat(stdin="Hello", url=fake_server.url)
    assert (result.returncode, result.stderr) == (1, "dijiang: Wrong API key.\n")


def test_an_empty_pipe_is_a_usage_error(fake_server: Any) -> None:
    assert run_chat(stdin=" \n", url=fake_server.url).returncode == 2
    assert fake_server.bodies == []


def test_the_key_comes_from_a_file(fake_server: Any, tmp_path: Any) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("secret\n")
    run_chat("--api-key-file", str(key_file), stdin="Hello", url=fake_server.url)
    assert fake_server.headers[0]["Authorization"] == "Bearer secret"


def open_piped_chat(url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "chat", "--base-url", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write("Hello\n")
    process.stdin.close()
    return process


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status of a program that should end by itself, and what it complained about."""
    assert process.stderr is not None
    with process.stderr:
        status = process.wait(20)
        return status, process.stderr.read()


def test_a_reader_that_leaves_stops_the_answer_without_a_word(fake_server: Any) -> None:
    # More than a pipe and the buffers of a socket hold, so that the writer is still at it.
    fake_server.pieces = ["Once\n", *["upon a time " * 1000] * 1000]
    process = open_piped_chat(fake_server.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "Once\n"
    process.stdout.close()
    assert end_of(process) == (141, "")
    assert fake_server.client_left.wait(10)


def test_a_reader_that_has_left_before_the_answer_is_no_error_either(fake_server: Any) -> None:
    process = open_piped_chat(fake_server.url)
    assert process.stdout is not None
    process.stdout.close()
    assert end_of(process) == (141, "")


def test_ctrl_c_in_a_pipe_keeps_what_came_and_stops_the_answer(fake_server: Any) -> None:
    fake_server.hangs = True
    process = open_piped_chat(fake_server.url)
    assert process.stdout is not None
    with process.stdout:
        shown = process.stdout.read(len("Once upon a time."))
        process.send_signal(signal.SIGINT)
        shown += process.stdout.read()
    assert shown == "Once upon a time.\n"
    assert end_of(process) == (130, "")
    assert fake_server.client_left.wait(10)


@pytest.mark.parametrize("term", ["xterm-256color", "vt100", "dumb"])
def test_turns_of_a_conversation_follow_each_other(
    open_terminal: Callable[..., Terminal], fake_server: Any, term: str
) -> None:
    terminal = open_terminal(fake_server.url, term=term)
    terminal.wait_for_prompt()
    shown = terminal.enter("Hello\r", r"3 tokens · TTFT \d+\.\d\d s")
    assert "Once upon a time." in shown
    terminal.enter("And then?\r", "3 tokens")
    terminal.type("\x04")
    assert terminal.wait_for_exit() == 0
    assert [contents(body) for body in fake_server.bodies] == [
        ["Hello"],
        ["Hello", "Once upon a time.", "And then?"],
    ]


def test_ctrl_c_stops_the_answer_and_not_the_program(
    open_terminal: Callable[..., Terminal], fake_server: Any
) -> None:
    fake_server.hangs = True
    terminal = open_terminal(fake_server.url)
    terminal.wait_for_prompt()
    terminal.type("Hello\r")
    terminal.wait_for("a time")
    # A "^C" after a full line would be on the next one, and what is erased a line too low.
    assert "^C" not in terminal.enter("\x03", "stopped · 3 tokens")
    assert fake_server.client_left.wait(10)

    fake_server.hangs = False
    terminal.enter("Go on\r", "3 tokens")
    assert contents(fake_server.bodies[-1]) == ["Hello", "Once upon a time.", "Go on"]
    terminal.type("\x04")
    assert terminal.wait_for_exit() == 0


def test_ctrl_c_is_noticed_even_if_it_comes_just_before_a_wait() -> None:
    # The signal is raised and the wait begins inside one call of C code: Python, which looks for
    # signals between its own instructions, has no chance to see it before the wait is over.
    script = """
import ctypes, operator, signal, socket
from functools import partial
from clients.chat.repl import prompt_interrupts
ours, theirs = socket.socketpair()
interrupt = partial(ctypes.PyDLL(None)["raise"], int(signal.SIGINT))
try:
    with prompt_interrupts():
        list(map(operator.call, (interrupt, partial(ours.recv, 1))))
except KeyboardInterrupt:
    print("noticed")
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
    )
    assert result.stdout == "noticed\n"


def test_ctrl_c_at_the_prompt_drops_the_line(
    open_terminal: Callable[..., Terminal], fake_server: Any
) -> None:
    terminal = open_terminal(fake_server.url)
    terminal.wait_for_prompt()
    terminal.enter("never sent\x03", "Ctrl-D leaves")
    terminal.enter("sent\r", "3 tokens")
    assert contents(fake_server.bodies[-1]) == ["sent"]


def test_commands_change_the_conversation(
    open_terminal: Callable[..., Terminal], fake_server: Any
) -> None:
    terminal = open_terminal(fake_server.url, "--system", "Be brief.")
    terminal.wait_for_prompt()
    for keys, answer in [
        ("one\r", "3 tokens"),
        ("/clear\r", "afresh"),
        ("/system Be kind.\r", "System prompt set"),
        ("two\r", "3 tokens"),
        ("/system\r", "No system prompt"),
        ("/help\r", "/clear "),
        ("/what\r", "No such command: /what"),
        ("three\r", "3 tokens"),
    ]:
        terminal.enter(keys, answer)
    terminal.type("/quit\r")
    assert terminal.wait_for_exit() == 0
    assert [contents(body) for body in fake_server.bodies] == [
        ["Be brief.", "one"],
        ["Be kind.", "two"],
        ["two", "Once upon a time.", "three"],
    ]


def test_a_failing_answer_does_not_end_the_program(
    open_terminal: Callable[..., Terminal], fake_server: Any
) -> None:
    terminal = open_terminal(fake_server.url)
    terminal.wait_for_prompt()
    fake_server.refusal = (429, {"error": {"message": "Too busy."}})
    terminal.enter("Hello\r", "Error: Too busy.")
    fake_server.refusal = None
    terminal.enter("Again\r", "3 tokens")
    assert contents(fake_server.bodies[-1]) == ["Again"]


def test_alt_enter_starts_a_new_line(
    open_terminal: Callable[..., Terminal], fake_server: Any
) -> None:
    terminal = open_terminal(fake_server.url)
    terminal.wait_for_prompt()
    terminal.enter("two\x1b\rlines\r", "3 tokens")
    assert contents(fake_server.bodies[-1]) == ["two\nlines"]


def test_a_model_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9bc\ud800\t\n🦊 é\u200d") == "a[2Jbc\t\n🦊 é\u200d"


def test_a_turn_without_an_answer_is_forgotten(fake_server: Any) -> None:
    fake_server.pieces = []
    with Client(fake_server.url) as client:
        conversation = Conversation(client, {})
        assert list(conversation.ask("Hello", Timing())) == []
        assert conversation.turns == []


def test_what_was_seen_of_a_stopped_answer_is_remembered(fake_server: Any) -> None:
    with Client(fake_server.url) as client:
        conversation = Conversation(client, {})
        pieces = conversation.ask("Hello", Timing())
        assert next(pieces) == "Once"
        pieces.close()
    assert conversation.turns == [Message("user", "Hello"), Message("assistant", "Once")]


def test_throughput_leaves_the_first_token_out() -> None:
    timing = Timing(start=10.0)
    timing.first, timing.last, timing.usage = 10.5, 12.5, Usage(7, 21)
    assert timing.summary() == "21 tokens · TTFT 0.50 s · 10 tokens/s"


def test_an_answer_without_usage_counts_its_events() -> None:
    timing = Timing()
    for text in ("a", "b", ""):
        timing.saw(Delta(text=text))
    assert timing.summary().startswith("2 tokens")


def test_memory_is_told_beside_what_a_kv_cache_would_take() -> None:
    memory = Memory(state_bytes=96 * 1024, kv_bytes_per_token=1024)
    assert memory.summary(10) == "state 96 KiB, KV cache 10 KiB by now (0.10×)"
    assert memory.summary(3072) == "state 96 KiB, KV cache 3 MiB by now (32×)"


def test_sizes_have_three_digits() -> None:
    sizes = [0, 999, 1000, 1024 * 1023, 5.25 * 2**20, 2**50]
    assert [format_bytes(size) for size in sizes] == [
        *("0 B", "999 B", "0.977 KiB", "0.999 MiB", "5.25 MiB", "1.02e+03 TiB")
    ]
