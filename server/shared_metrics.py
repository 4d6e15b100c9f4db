"""Metrics that several API processes count together: each in files of its own, which any of them
adds up when it is asked.

That is prometheus_client's multiprocess mode, with one difference: the files belong to the number
of a worker rather than to its process id. A worker that takes the place of one that died goes on
with its files, so no counter goes back, and their number is bounded.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, slots=True)
class MetricsShare:
    """The part of this process in the metrics that it shares with others."""

    folder: Path
    """Where all of them count. They go on with what they find there."""
    index: int
    """The number of this process. No two that run have the same."""

    def enter(self) -> None:
        """Count in the folder from now on, whatever is counted in this process."""
        os.environ[_FOLDER_VARIABLE] = str(self.folder)
        values.ValueClass = values.MultiProcessValue(lambda: self.index)  # type: ignore[no-untyped-call]

    def together(self) -> CollectorRegistry:
        """What all of them have counted."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self.folder))  # type: ignore[no-untyped-call]
        return registry
