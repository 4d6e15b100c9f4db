"""`dijiang chat` in a pseudo-terminal with a real server, and its commands."""

import json
import re
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.terminal import Terminal
from tests.e2e.server_process import ServerProcess, metrics, wait_for

Open = Callable[..., Terminal]
FIGURES = r"tokens · TTFT \d+\.\d\d s"
FLAGS = ("--served-model-name", "tiny", "--max-slots", "4")


@pytest.fixture(scope="module")
def server(endless_model: Path) -> Iterator[ServerProcess]:
    with ServerProcess(endless_model, *FLAGS) as process:
        process.wait_ready()
        yield process


def contents(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


@pytest.mark.parametrize("way", ["markdown", "--plain"])
def test_a_conversation_with_a_real_server(
    open_terminal: Open, server: ServerProcess, way: str
) -> None:
    flags = [way] if way.startswith("-") else []
    terminal = open_terminal(server.wait_ready(), "--max-tokens", "20", "--seed", "3", *flags)
    terminal.wait_for_prompt()
    ratios = []
    for question in ("the quick\r", "brown fox\r"):
        shown = terminal.enter(question, r"20 tokens · TTFT.*by now \(.*×\)")
        match = re.search(r"state (\S+) KiB, KV cache (\S+) KiB by now \((\S+)×\)", shown)
        assert match, shown
        state, cache, ratio = map(float, match.groups())
        assert ratio == pytest.approx(cache / state, rel=0.1, abs=0.05)
        ratios.append((state, cache))
    # The state is what it was; the KV cache would have grown.
    assert ratios[0][0] == ratios[1][0] and ratios[0][1] < ratios[1][1]
    assert "last answer: 20 tokens" in terminal.enter("/stats\r", "last answer.*")
    terminal.type("/quit\r")
    assert terminal.wait_for_exit() == 0


@pytest.mark.parametrize("way", ["markdown", "--plain"])
def test_ctrl_c_frees_the_slot_and_keeps_the_program(
    open_terminal: Open, server: ServerProcess, way: str
) -> None:
    url = server.wait_ready()
    flags = [way] if way.startswith("-") else []
    terminal = open_terminal(url, "--max-tokens", "200000", *flags)
    terminal.wait_for_prompt()
    with httpx.Client(base_url=url) as http:
        name = "dijiang_generation_tokens_total"
        before = metrics(http)[name]
        terminal.type("the quick\r")
        wait_for(http, name, before + 200, at_least=True)
        shown = terminal.enter("\x03", rf"stopped · \d+ {FIGURES}")
        wait_for(http, "dijiang_num_requests_running", 0)
        wait_for(http, "dijiang_state_slots_used", 0)
    # Counted by the server, although the answer has no end.
    assert "KV cache" in shown
    terminal.enter("/params max_tokens 5\r", "max_tokens = 5")
    terminal.enter("go on\r", f"5 {FIGURES}")


def test_a_server_that_goes_and_comes_back(open_terminal: Open, endless_model: Path) -> None:
    with ServerProcess(endless_model, *FLAGS) as first:
        url = first.wait_ready()
        terminal = open_terminal(url, "--max-tokens", "8")
        terminal.wait_for_prompt()
        terminal.enter("one\r", f"8 {FIGURES}")
        terminal.enter("/params max_tokens 200000\r", "max_tokens = 200000")
        terminal.type("two\r")
        with httpx.Client(base_url=url) as http:
            wait_for(http, "dijiang_generation_tokens_total", 8 + 50, at_least=True)
        first.signal(signal.SIGKILL)
        shown = terminal.enter("", r"incomplete · \d+ tokens")
        assert re.search(r"kept;\s+/retry asks\s+again", shown), shown
        first.process.wait()
        terminal.enter("/params max_tokens 8\r", "max_tokens = 8")
        shown = terminal.enter("three\r", r"asks\s+again")
        assert "No server answers at" in shown
    with ServerProcess(endless_model, *FLAGS, "--port", url.rsplit(":", 1)[1]) as second:
        second.wait_ready()
        terminal.enter("/retry\r", f"8 {FIGURES}")
        # Two questions with an answer each before it, the second one as far as it was seen.
        shown = terminal.enter("/stats\r", "6 messages.*")
        terminal.type("\x04")
        assert terminal.wait_for_exit() == 0


def test_a_question_is_asked_again_or_changed(open_terminal: Open, fake_server: Any) -> None:
    terminal = open_terminal(fake_server.url)
    terminal.wait_for_prompt()
    terminal.enter("/retry\r", "nothing to ask again")
    terminal.enter("/edit\r", "nothing to edit")
    terminal.enter("one\r", "3 tokens")
    fake_server.pieces = ["Another", " one."]
    terminal.enter("/retry\r", "2 tokens")
    terminal.type("/edit\r")
    terminal.wait_for("> .*one")
    terminal.enter(" more\r", "2 tokens")
    terminal.enter("two\r", "2 tokens")
    assert [contents(body) for body in fake_server.bodies] == [
        ["one"],
        ["one"],
        ["one more"],
        ["one more", "Another one.", "two"],
    ]


def test_a_failed_retry_keeps_the_answer_there_was(open_terminal: Open, fake_server: Any) -> None:
    terminal = open_terminal(fake_server.url)
    terminal.wait_for_prompt()
    terminal.enter("one\r", "3 tokens")
    fake_server.refusal = (500, {"error": {"message": "No luck."}})
    terminal.enter("/retry\r", r"Error: No luck\.")
    fake_server.refusal = None
    terminal.enter("two\r", "3 tokens")
    assert contents(fake_server.bodies[-1]) == ["one", "Once upon a time.", "two"]


def test_a_conversation_is_saved_and_loaded(
    open_terminal: Open, fake_server: Any, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    terminal = open_terminal(fake_server.url, "--system", "Be brief.")
    terminal.wait_for_prompt()
    terminal.enter("/params temperature=0.5 seed=4\r", "seed = 4")
    terminal.enter("one\r", "3 tokens")
    terminal.enter(f"/save {file}\r", "Saved 2 messages")
    terminal.enter("/save\r", "Saved 2 messages")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    saved = json.loads(file.read_text())
    assert saved["params"] == {"temperature": 0.5, "seed": 4}

    other = open_terminal(fake_server.url)
    other.wait_for_prompt()
    other.enter(f"/save {file}\r", "exists already")
    other.enter(f"/load {tmp_path / 'none.json'}\r", "Error: ")
    other.enter(f"/load {file}\r", "Loaded 2 messages")
    other.enter("two\r", "3 tokens")
    body = fake_server.bodies[-1]
    assert contents(body) == ["Be brief.", "one", "Once upon a time.", "two"]
    assert (body["temperature"], body["seed"]) == (0.5, 4)


def test_parameters_are_set_shown_and_left_again(open_terminal: Open, fake_server: Any) -> None:
    terminal = open_terminal(fake_server.url)
    terminal.wait_for_prompt()
    terminal.enter("/params\r", "seed = default")
    terminal.enter("/params temperature 0.7\r", r"temperature = 0\.7")
    terminal.enter("/params heat 1\r", "No such parameter: heat")
    terminal.enter("/params seed x\r", "seed is a whole number, not 'x'")
    terminal.enter("one\r", "3 tokens")
    terminal.enter("/params temperature default\r", "temperature = default")
    terminal.enter("two\r", "3 tokens")
    first, second = fake_server.bodies
    assert first["temperature"] == 0.7 and "temperature" not in second


@pytest.mark.parametrize("keeps", [True, False])
def test_what_was_typed_is_remembered_unless_it_must_not_be(
    open_terminal: Open, fake_server: Any, tmp_path: Path, keeps: bool
) -> None:
    file = tmp_path / "state" / "dijiang" / "chat_history"
    flags = [] if keeps else ["--no-history"]
    first = open_terminal(fake_server.url, *flags)
    first.wait_for_prompt()
    first.enter("a secret\r", "3 tokens")
    first.type("\x04")
    assert first.wait_for_exit() == 0
    assert file.exists() == keeps
    if keeps:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        second = open_terminal(fake_server.url)
        second.wait_for_prompt()
        second.enter("\x1b[A\r", "3 tokens")
        assert contents(fake_server.bodies[-1]) == ["a secret"]


def test_markdown_is_drawn_and_plain_text_left_alone(open_terminal: Open, fake_server: Any) -> None:
    fake_server.pieces = ["# Title\n\n", "Some **bo", "ld** text\nand more.\n\n", "- item\n"]
    terminal = open_terminal(fake_server.url, term="xterm-256color")
    terminal.wait_for_prompt()
    shown = terminal.enter("one\r", "4 tokens")
    assert "\x1b[1mbold\x1b[0m" in shown and "• " in shown
    for plain in (
        open_terminal(fake_server.url, "--plain"),
        open_terminal(fake_server.url, NO_COLOR="1"),
        open_terminal(fake_server.url, term="dumb"),
    ):
        plain.wait_for_prompt()
        shown = plain.enter("one\r", "4 tokens")
        assert "Some **bold** text\r\nand more." in shown
        assert "\x1b[1m" not in shown and "\x1b[2m" not in shown.replace("\x1b[2J", "")


def test_a_long_answer_is_shown_once_and_whole(open_terminal: Open, fake_server: Any) -> None:
    """Longer than the terminal, of which a block that still grows shows only the end."""
    fake_server.pieces = [f"line{i:03}\n" + "\n" * (i % 7 == 0) for i in range(100)]
    terminal = open_terminal(fake_server.url, term="xterm-256color")
    terminal.wait_for_prompt()
    shown = terminal.enter("one\r", "100 tokens")
    # What is drawn over is cleared with the cursor moved up; what stays are the last of each.
    positions = [shown.rfind(f"line{i:03}") for i in range(100)]
    assert min(positions) >= 0 and positions == sorted(positions)


def test_notes_break_between_words_in_a_narrow_terminal(
    open_terminal: Open, fake_server: Any
) -> None:
    terminal = open_terminal(fake_server.url, columns=36)
    terminal.wait_for_prompt()
    shown = terminal.enter("/help\r", r"starts a\s+new line")
    notes = shown.split("\x1b[2m")[1].split("\x1b[0m")[0]
    assert max(map(len, notes.split("\r\n"))) <= 36
    assert "the system\r\n  prompt" in notes
