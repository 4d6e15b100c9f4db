"""Keys and certificates that change while the server runs."""

import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

LONG = {"prompt": "the", "max_tokens": 400, "stream": True, "ignore_eos": True}


def wait_until(happens: Callable[[], bool], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("is_told", [True, False], ids=["SIGHUP", "changed"])
def test_an_old_key_stops_and_a_new_one_works_and_no_stream_is_lost(
    tiny_model: Path, tmp_path: Path, is_told: bool
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    env = {"DIJIANG_API_KEYS": "fixed"}
    with ServerProcess(tiny_model, "--api-key-file", str(keys), env=env) as server:
        url = server.wait_ready()

        def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.get(f"{url}/v1/models", headers=headers).status_code

        assert [status(key) for key in ("old", "new", "fixed")] == [200, 401, 200]
        headers = {"Authorization": "Bearer old"}
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=LONG, headers=headers, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            keys.write_text("new\n")
            if is_told:
                server.signal(signal.SIGHUP)
            wait_until(lambda: status("new") == 200)
            assert [status(key) for key in ("old", "fixed")] == [401, 200]
            assert list(lines)[-2:] == ["data: [DONE]", ""]

        keys.write_text("# none\n")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "stay as they are" in server.text)
        assert [status(key) for key in ("new", "old")] == [200, 401]
        assert server.process.poll() is None
    assert not any(f"{key}'" in server.text for key in ("old", "new", "fixed"))


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for this machine, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True
    )
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_tls_with_a_certificate_that_is_renewed(tiny_model: Path, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "first")
    flags = ("--ssl-certfile", str(cert), "--ssl-keyfile", str(key))
    with ServerProcess(tiny_model, *flags) as server:
        url = server.wait_ready()
        assert url.startswith("https://")
        first = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=url, verify=first, timeout=60) as client:
            body = {**LONG, "max_tokens": 8}
            assert client.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")
            with pytest.raises(httpx.TransportError):
                httpx.get(url.replace("https", "http") + "/livez")

            with client.stream("POST", "/v1/completions", json=LONG) as stream:
                lines = stream.iter_lines()
                next(lines)
                certificate(tmp_path, "second")
                server.signal(signal.SIGHUP)
                second = ssl.create_default_context(cafile=str(cert))
                wait_until(lambda: trusts(url, second))
                assert not trusts(url, first)
                assert list(lines)[-2:] == ["data: [DONE]", ""]

        key.write_text("nonsense")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "certificate stays" in server.text)
        assert trusts(url, second)


def trusts(url: str, context: ssl.SSLContext) -> bool:
    """Whether a new connection is accepted by a client that knows only this certificate."""
    try:
        return httpx.get(f"{url}/livez", verify=context).status_code == 200
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("flags", [("--ssl-keyfile", "k.pem"), ("--ssl-certfile", "none.pem")])
def test_a_certificate_that_cannot_be_used_is_told_at_once(
    tiny_model: Path, flags: tuple[str, ...]
) -> None:
    with ServerProcess(tiny_model, *flags) as server:
        assert server.process.wait(timeout=30) != 0
    assert "ssl-certfile" in server.text or "none.pem" in server.text
    assert "Traceback" not in server.text
