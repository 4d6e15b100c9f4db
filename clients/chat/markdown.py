"""An answer as Markdown that is still being written."""

import re
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

from clients.terminal import printable

FENCE = re.compile(r" {0,3}(```+|~~~+)")


class MarkdownView:
    """Shows an answer while it grows.

    Blocks that are complete are printed once, as ordinary lines, and only the block that is being
    written is drawn again and again: what has scrolled away cannot be.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._unfinished = ""
        self._has_printed = False
        self._live = Live(console=console, refresh_per_second=12, transient=True)
        self._live.start()

    def write(self, text: str) -> None:
        # A model must not be able to drive the terminal.
        finished, self._unfinished = split_blocks(self._unfinished + printable(text))
        if finished.strip():
            self._print(finished)
        self._live.update(Tail(self._unfinished))

    def close(self) -> None:
        """Leave the whole answer on the screen, and the cursor below it."""
        self._live.stop()
        if self._unfinished.strip():
            self._print(self._unfinished)
        self._unfinished = ""

    def _print(self, text: str) -> None:
        if self._has_printed:
            self._console.print()
        self._console.print(as_markdown(text))
        self._has_printed = True


class Tail:
    """The last lines of a text, as many as fit: a terminal cannot redraw what is above them."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(as_markdown(self._text), options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def as_markdown(text: str) -> Markdown:
    """Markdown in which a line break is one, and no link can hide where it leads."""
    markdown = Markdown(text, hyperlinks=False)
    for token in markdown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return markdown


def split_blocks(text: str) -> tuple[str, str]:
    """The blocks that nothing which follows can change, and the rest.

    A block ends at a blank line outside a code fence, if what comes after it is not indented: that
    would belong to a list.
    """
    end, at, is_after_blank, fence = 0, 0, False, ""
    for line in _lines(text):
        if is_after_blank and line.strip() and not fence and not line[0].isspace():
            end = at
        if match := FENCE.match(line):
            if not fence:
                fence = match[1]
            elif line.strip().startswith(fence):
                fence = ""
        is_after_blank = not line.strip()
        at += len(line)
    return text[:end], text[end:]


def _lines(text: str) -> Iterator[str]:
    yield from re.findall(r"[^\n]*\n|[^\n]+", text)
