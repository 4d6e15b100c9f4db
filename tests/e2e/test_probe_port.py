"""The port for probes: open to whoever reaches it, and good for nothing else."""

import re
import signal
from pathlib import Path

import httpx

from tests.e2e.server_process import ServerProcess

ENV = {"DIJIANG_API_KEYS": "key"}


def test_the_second_port_answers_probes_and_metrics_alone(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, "--probe-port", "0", env=ENV) as server:
        url = server.wait_ready()
        [probes] = re.findall(r"probes and metrics on (http://\S+)", server.text)
        assert probes.rpartition(":")[2] != url.rpartition(":")[2]
        for path in ("/livez", "/readyz", "/health", "/metrics"):
            assert httpx.get(probes + path).status_code == 200
        for path in ("/", "/load", "/version", "/v1/models", "/v1/completions", "/openapi.json"):
            assert httpx.get(probes + path).status_code == 404
        assert httpx.post(probes + "/v1/completions", json={"prompt": "a"}).status_code == 404
        assert httpx.get(url + "/metrics").status_code == 401

        server.signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
    assert "Traceback" not in server.text


def test_all_limits_are_printed_at_start(tiny_model: Path) -> None:
    flags = ("--max-requests-per-key", "7", "--max-queue-seconds", "0", "--max-choices", "3")
    with ServerProcess(tiny_model, *flags) as server:
        server.wait_ready()
        text = " ".join(server.text.split())
    for part in (
        *("256 requests and 1,048,576 tokens waiting", "3 choices", "32 sequences"),
        *("1024 messages", "20 logprobs", "7 requests a key", "2 MiB a body", "64 KiB of headers"),
        *("headers 10 s", "body 30 s", "a slot no limit", "an answer 600 s"),
        *("does not read 30 s", "idle connection 75 s", "draining 30 s"),
    ):
        assert part in text, part
