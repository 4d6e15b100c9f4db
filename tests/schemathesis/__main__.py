"""Let schemathesis ask a real server what its OpenAPI document allows, and what it forbids.

`python -m tests.schemathesis --seconds 600`; schemathesis has an environment of its own, which
`make schemathesis` makes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from tests.conftest import save_tiny_model
from tests.e2e.server_process import ServerProcess, metrics

CONFIG = Path(__file__).with_name("schemathesis.toml")
PROGRAM = Path(__file__).parents[2] / "deploy" / ".schemathesis-venv" / "bin" / "schemathesis"

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
"""All but those about positive data, which the document cannot describe to the end (a prompt must
fit the context, a token be in the vocabulary), and about resources and logins, which there are none
of."""

SERVER_FLAGS = (
    *("--log-level", "error", "--max-request-seconds", "20", "--max-queue-seconds", "20"),
    *("--default-max-tokens", "16"),
)


def campaign(seconds: int, seed: int, more: list[str]) -> int:
    """The exit status of schemathesis; 1 if the server came to harm."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(save_tiny_model(Path(folder)), *SERVER_FLAGS) as server,
    ):
        url = server.wait_ready()
        engine = server.engine.pid
        command = [
            *(str(PROGRAM), "--config-file", str(CONFIG), "run", f"{url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--mode", "all", "--max-time", str(seconds)),
            *("--phases", "coverage,fuzzing", "--continue-on-failure", "--seed", str(seed)),
            *("--request-timeout", "60", "--generation-database", "none", "--no-color"),
            *more,
        ]
        status = subprocess.run(command, cwd=folder).returncode
        with httpx.Client(base_url=url) as client:
            print("requests answered:", int(metrics(client)["dijiang_http_requests_total"]))
        if server.engine.pid != engine:
            print("the engine was started again")
            status = 1
        if "Traceback" in server.text:
            print(server.text)
            status = 1
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options, more = parser.parse_known_args()
    return campaign(options.seconds, options.seed, more)


if __name__ == "__main__":
    sys.exit(main())
