"""Files that are read again while the server runs: on SIGHUP, and whenever one has changed."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

CHECK_SECONDS = 2.0

Stamp = tuple[int, int, int] | None


async def watch_files(
    files: Iterable[Path], reload: Callable[[], None], *, every: float = CHECK_SECONDS
) -> None:
    """Call `reload` after each change of one of the files, for ever.

    Kubernetes replaces a mounted secret by a new link, so what counts is the file behind it.
    """
    paths = tuple(files)
    last = tuple(map(stamp, paths))
    while True:
        await asyncio.sleep(every)
        now = tuple(map(stamp, paths))
        # A file that is gone for a moment is about to be replaced.
        if now != last and None not in now:
            last = now
            reload()


def stamp(path: Path) -> Stamp:
    """What changes with a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
