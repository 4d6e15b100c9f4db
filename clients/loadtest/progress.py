"""How a load test shows itself while it runs: a line that changes, on a terminal only."""

import math
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clients.loadtest.run import Progress


class LiveDisplay:
    """Shows progress while its `with` block runs. Drawing is cheap: it delays what is measured."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # Without refreshes of its own, it draws when it is told to, in the event loop.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        if self._console.is_terminal:
            self._live.update(progress_line(progress), refresh=True)


def progress_line(progress: Progress) -> Table:
    """The title, a bar, and the figures of the moment."""
    num_done = progress.num_completed + progress.num_failed
    if math.isinf(progress.total_seconds):
        done, total = float(num_done), float(progress.num_total or num_done)
        position = f"{num_done:,}/{progress.num_total:,}" if progress.num_total else f"{num_done:,}"
    else:
        done, total = progress.elapsed_seconds, progress.total_seconds
        position = f"{min(done, total):.0f}/{total:.0f} s"
    line = Table.grid(padding=(0, 1))
    line.add_row(
        Text(progress.title, no_wrap=True),
        ProgressBar(total=max(total, 1e-9), completed=min(done, total), width=20),
        Text(position, no_wrap=True),
        Text(
            f"{progress.num_running:,} running, {progress.num_completed:,} done, "
            f"{progress.events_per_second:,.0f} events/s",
            no_wrap=True,
        ),
        Text(f"{progress.num_failed:,} failed", style="red" if progress.num_failed else "dim"),
    )
    return line
