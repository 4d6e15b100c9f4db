"""Parents by hub id, against a server that speaks the hub's protocol as far as a download needs."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.parents import find_parent
from dijiang_runtime.models.loader import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """One repository, `someone/tiny`, with the files of a folder on its main branch."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.files["pytorch_model.bin"] = b"a pickle"
        self.files["modeling_tiny.py"] = b"raise SystemExit('remote code')"
        self.fetched: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        headers = {"X-Repo-Commit": COMMIT}
        if path in (f"/api/models/someone/tiny/revision/{rev}" for rev in ("main", COMMIT)):
            siblings = [{"rfilename": name} for name in self.files]
            body = {"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}
            self._send(request, 200, json.dumps(body).encode(), headers)
        elif path == f"/api/models/someone/tiny/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in self.files.items()
            ]
            self._send(request, 200, json.dumps(tree).encode(), headers)
        elif path.startswith(f"/someone/tiny/resolve/{COMMIT}/"):
            name = path.rsplit("/", 1)[1]
            data = self.files[name]
            if request.command == "GET":
                self.fetched.add(name)
            headers["ETag"] = f'"{_etag(data)}"'
            self._send(request, 200, data, headers)
        else:
            missing = "RevisionNotFound" if "/someone/tiny/revision/" in path else "RepoNotFound"
            self._send(request, 404, b"{}", {"X-Error-Code": missing})

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(parents: dict[str, Path]) -> Iterator[FakeHub]:
    hub = FakeHub(parents["llama"])
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def convert(url: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`dijiang convert` in a process of its own: the hub's library reads its address once."""
    return subprocess.run(
        [sys.executable, "-m", "server.cli", "convert", *arguments, str(tmp_path / "out")],
        env={
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PATH": "",
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


def test_a_hub_id_is_downloaded_without_pickles_and_code(hub: FakeHub, tmp_path: Path) -> None:
    result = convert(hub.url, tmp_path, "someone/tiny")
    assert result.returncode == 0, result.stderr
    load_model(tmp_path / "out")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= hub.fetched
    assert hub.fetched.isdisjoint({"pytorch_model.bin", "modeling_tiny.py"})
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: someone/tiny" in card and COMMIT in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nobody/nothing",), "neither a folder nor a hub repository nobody/nothing"),
        (("someone/tiny", "--revision", "v9"), "has no revision 'v9'"),
    ],
)
def test_what_the_hub_lacks_is_said_in_one_line(
    hub: FakeHub, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = convert(hub.url, tmp_path, *arguments)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_repository_of_pickles_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    result = convert(hub.url, tmp_path, "someone/tiny")
    assert result.returncode == 1 and hub.fetched.isdisjoint({"pytorch_model.bin"})
    assert "no safetensors at this revision" in result.stderr


def test_without_a_connection_the_user_is_told_what_to_do(tmp_path: Path) -> None:
    result = convert("http://127.0.0.1:9", tmp_path, "someone/tiny")
    assert result.returncode == 1
    assert "the hub cannot be reached" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "There is no folder ./nowhere"),
        ("/a/b/c", "There is no folder /a/b/c"),
        (__file__, "is a file"),
    ],
)
def test_a_path_is_never_looked_up_on_the_hub(name: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        find_parent(name)


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="--revision is for hub ids"):
        find_parent(str(tmp_path), "main")
