"""How much memory a container is taken to have left."""

from pathlib import Path

import pytest

from dijiang_runtime.engine import resources

GIB = 2**30


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: Memory(available=64 * GIB))
    return tmp_path


class Memory:
    def __init__(self, available: int) -> None:
        self.available = available


def fill(group: Path, limit: str, used: int, stat: str = "") -> None:
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(stat)


def test_what_the_limit_leaves_is_available(group: Path) -> None:
    fill(group, str(10 * GIB), 4 * GIB, f"anon {4 * GIB}\nfile 0\nshmem 0\n")
    assert resources.available_memory_bytes() == 6 * GIB


def test_pages_of_files_are_not_in_the_way(group: Path) -> None:
    # An engine that died has left 7 GiB of mapped weights in the cache; 1 GiB is shared memory.
    fill(group, str(10 * GIB), 9 * GIB, f"anon {GIB}\nfile {8 * GIB}\nshmem {GIB}\n")
    assert resources.available_memory_bytes() == 8 * GIB


def test_without_figures_of_the_cache_all_use_counts(group: Path) -> None:
    fill(group, str(10 * GIB), 9 * GIB)
    assert resources.available_memory_bytes() == GIB


def test_without_a_limit_the_machine_decides(group: Path) -> None:
    fill(group, "max", 9 * GIB)
    assert resources.available_memory_bytes() == 64 * GIB
