"""How long-running commands show themselves: a bar on a terminal, lines in a log."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

if TYPE_CHECKING:
    from dijiang_runtime.conversion.loop import TrainReport


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; call what is yielded with the part done and the whole to move it."""
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainDisplay:
    """Receives the reports of a training. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self._bar: Progress | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
            )
            self._task = self._bar.add_task("starting", total=None, facts="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, report: "TrainReport") -> None:
        """Show one report; a loss on held-out text gets a line that stays."""
        if self._bar is None:
            self.console.print(train_line(report), highlight=False, soft_wrap=True)
            return
        self._bar.update(
            self._task,
            total=report.num_steps,
            completed=report.step,
            description=report.stage,
            facts=_facts(report),
        )
        if report.heldout_loss is not None:
            self._bar.print(train_line(report))


def train_line(report: "TrainReport") -> str:
    """One report as a line of a log."""
    heldout = "" if report.heldout_loss is None else f"  held-out {report.heldout_loss:.4f}"
    return (
        f"{report.stage} step {report.step}/{report.num_steps}  {_facts(report)}  "
        f"lr {report.lr:.2e}  grad norm {report.grad_norm:.2f}{heldout}"
    )


def _facts(report: "TrainReport") -> str:
    return (
        f"loss {report.loss:.4f}  {report.num_tokens / 1e6:.2f}M tokens  "
        f"{report.tokens_per_second:,.0f} tok/s  {_duration(report.remaining_seconds)} left"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
