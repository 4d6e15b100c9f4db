"""An answer as Markdown, block by block while it grows."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clients.chat.markdown import MarkdownView, as_markdown, split_blocks


def rendered(*texts: str, width: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    for text in texts:
        console.print(as_markdown(text))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("one", ""),
        ("one\n\n", ""),
        ("one\n\ntwo", "one\n\n"),
        ("one\n\ntwo\n\nthree", "one\n\ntwo\n\n"),
        ("- item\n\n  its second paragraph", ""),
        ("```\na\n\nb", ""),
        ("```\na\n\nb\n```\n\nafter", "```\na\n\nb\n```\n\n"),
        ("````\n```\n\nstill code", ""),
        ("one\n \n\nTwo", "one\n \n\n"),
    ],
)
def test_a_block_is_finished_when_the_next_has_begun(text: str, finished: str) -> None:
    assert split_blocks(text) == (finished, text.removeprefix(finished))


@given(st.text(alphabet="ab\n `-#1. *", max_size=60), st.integers(0, 60))
def test_nothing_is_lost_or_doubled_wherever_an_answer_is_cut(text: str, at: int) -> None:
    done, rest = split_blocks(text[:at])
    more, rest = split_blocks(rest + text[at:])
    assert done + more + rest == text


def test_line_breaks_are_kept_and_links_are_told() -> None:
    assert rendered("one\ntwo") == "one\ntwo"
    assert "http://evil" in rendered("[good](http://evil)")


def test_a_model_cannot_drive_the_terminal() -> None:
    out = io.StringIO()
    view = MarkdownView(Console(file=out, width=40, force_terminal=True))
    view.write("a\x1b[2Jb\x1b]0;title\x07c\n\nd")
    view.close()
    assert "\x1b[2J" not in out.getvalue() and "\x1b]0" not in out.getvalue()
