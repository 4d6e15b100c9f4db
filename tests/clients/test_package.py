"""The Python client installed by itself, as `pip install ./clients` does it."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# httpx, and what it needs, is found where it is installed; nothing else from there may be.
SCRIPT = """
import sys
import httpx
httpx.Client().close()
sys.path[:] = [path for path in sys.path if not path.endswith("site-packages")]
sys.path.insert(0, sys.argv[1])
import clients
from clients import async_client, client
assert clients.__file__.startswith(sys.argv[1])
with client.Client("http://127.0.0.1:9"):
    print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the client was installed into."""
    folder = tmp_path_factory.mktemp("client")
    # Building leaves files beside the sources.
    source = shutil.copytree(ROOT / "clients", folder / "source")
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    target = folder / "target"
    where = ("--target", str(target), str(source))
    command = [sys.executable, "-m", "pip", "install", *flags, *where]
    subprocess.run(command, check=True, timeout=120)
    return target


def test_the_client_needs_httpx_alone(installed: Path) -> None:
    command = [sys.executable, "-I", "-c", SCRIPT, str(installed)]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert loaded.returncode == 0, loaded.stderr
    for name in ("torch", "fastapi", "server", "dijiang_runtime"):
        assert repr(name) not in loaded.stdout
    [metadata] = installed.glob("dijiang_client-*.dist-info/METADATA")
    required = [
        line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist")
    ]
    assert [line.split()[1].partition(">")[0] for line in required] == ["httpx"]


def test_its_types_are_for_users_too(installed: Path) -> None:
    assert (installed / "clients" / "py.typed").is_file()


def test_both_packages_have_one_version() -> None:
    files = (ROOT / "pyproject.toml", ROOT / "clients" / "pyproject.toml")
    [version, of_client] = [tomllib.loads(file.read_text())["project"]["version"] for file in files]
    assert version == of_client
