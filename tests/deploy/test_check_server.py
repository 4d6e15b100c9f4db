"""What `helm test` runs, against servers that do and do not answer as they should."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "deploy" / "helm" / "dijiang" / "files" / "check_server.py"
TOKEN = b'data: {"choices": [{"text": " fox"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@contextmanager
def server(stream: bytes, *, key: str | None = None) -> Iterator[str]:
    """A server that lists one model and streams these bytes. Yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(json.dumps({"data": [{"id": "demo"}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert body["model"] == "demo" and body["stream"] is True
            self.answer(stream)

        def answer(self, body: bytes) -> None:
            is_refused = key is not None and self.headers["Authorization"] != f"Bearer {key}"
            self.send_response(401 if is_refused else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()
        thread.join()


def check(url: str, **env: str) -> subprocess.CompletedProcess[str]:
    # As the pod runs it: the text of the file, not the file.
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.read_text(encoding="utf-8")],
        env={**os.environ, "DIJIANG_URL": url, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stream_that_ends_is_well() -> None:
    with server(TOKEN + DONE) as url:
        assert check(url).returncode == 0


def test_a_stream_that_is_cut_is_not() -> None:
    with server(TOKEN) as url:
        assert "did not end as it should" in check(url).stderr


def test_a_stream_that_fails_is_not() -> None:
    with server(TOKEN + b'data: {"error": {"message": "no"}}\n\n') as url:
        assert check(url).returncode == 1


def test_the_key_is_sent() -> None:
    with server(TOKEN + DONE, key="secret") as url:
        assert check(url, DIJIANG_API_KEY="secret").returncode == 0
        assert check(url).returncode == 1
