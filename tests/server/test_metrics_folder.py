"""The folder in which workers count: private, and not left behind."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.workers.metrics_folder import FRESH_SECONDS, MetricsFolder


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def grow_old(folder: Path) -> None:
    then = time.time() - 2 * FRESH_SECONDS
    os.utime(folder, (then, then))


def test_it_is_private_and_ends_with_its_block() -> None:
    with MetricsFolder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "counter_0.db").write_bytes(b"x")
    assert not folder.exists()


def test_one_that_is_in_use_is_left_alone_however_old() -> None:
    with MetricsFolder() as folder:
        grow_old(folder)
        with MetricsFolder():
            assert folder.exists()


def test_what_a_server_that_was_killed_left_behind_is_removed() -> None:
    killed = MetricsFolder()
    (killed.path / "counter_0.db").write_bytes(b"x")
    os.close(killed._lock)
    with MetricsFolder():
        # Perhaps it was only just made, and is about to be locked.
        assert killed.path.exists()
    grow_old(killed.path)
    with MetricsFolder() as folder:
        assert not killed.path.exists()
        assert folder.exists()
