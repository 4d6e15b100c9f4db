"""Every request is counted once, by what became of it, whatever happens to it."""

import random
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, metrics, wait_for

PATHS = {
    "/v1/completions": {"prompt": "the quick"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the quick"}]},
    "/v1/responses": {"input": "the quick"},
    "/v1/embeddings": {"input": ["the quick", "brown fox"]},
}
NUM_REQUESTS = 240


def counts(client: httpx.Client, name: str) -> Counter[tuple[str, str]]:
    """The samples of a counter by path and outcome."""
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in re.findall(name + r"\{(.*)\} (\S+)", client.get("/metrics").text):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[pairs["path"], pairs.get("outcome", "")] += int(float(value))
    return found


def visit(url: str, seed: int) -> tuple[str, str]:
    """Send one request of any kind; returns its path, and what the client saw of it."""
    rng = random.Random(seed)
    path, body = rng.choice(list(PATHS.items()))
    kind = rng.choice(["whole", "stream", "leave", "deadline", "wrong", "many"])
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    fields: dict[str, Any] = {} if path == "/v1/embeddings" else {limit: rng.choice([1, 20, 60])}
    if kind == "wrong":
        fields |= rng.choice([{"timeout": -1}, {"model": "other"}, {"priority": "high"}])
    if kind == "deadline":
        fields |= {"timeout": 0.001}
    if kind == "many" and path.endswith("completions"):
        fields |= {"n": 6}
    is_stream = kind in ("stream", "leave") and path != "/v1/embeddings"
    if is_stream:
        fields |= {"stream": True}
    if kind == "leave" and is_stream:
        fields |= {limit: 5000}  # It must still be going on when the client has left.
    with httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", path, json={**body, **fields}) as response:
            if kind == "leave" and is_stream and response.status_code == 200:
                next(response.iter_raw())
                return path, "left"
            text = response.read().decode()
    if "deadline_exceeded" in text or "request's time limit" in text:
        return path, "deadline"
    if response.status_code == 200:
        failed = '{"error"' in text or "response.failed" in text
        return path, "error" if failed else "ok"
    refused = response.status_code < 500 or response.status_code == 503
    return path, "rejected" if refused else "error"


@pytest.mark.parametrize("queue", ["0", "100"])
def test_received_is_what_ended(tiny_model: Path, queue: str) -> None:
    flags = ("--max-slots", "3", "--max-queued-requests", queue, "--max-queue-seconds", "2")
    with ServerProcess(tiny_model, *flags) as server:
        url = server.wait_ready()
        with ThreadPoolExecutor(12) as pool:
            seen = Counter(pool.map(visit, [url] * NUM_REQUESTS, range(NUM_REQUESTS)))
        with httpx.Client(base_url=url) as client:
            wait_for(client, "dijiang_num_requests_running", 0)
            wait_for(client, "dijiang_num_requests_waiting", 0)
            deadline = time.monotonic() + 10
            while True:
                received = counts(client, "dijiang_requests_received_total")
                ended = counts(client, "dijiang_requests_finished_total")
                num_late = metrics(client)["dijiang_deadline_exceeded_total"]
                if received.total() == ended.total() or time.monotonic() > deadline:
                    break

    assert received.total() == NUM_REQUESTS
    for path in PATHS:
        of_path = Counter({o: n for (p, o), n in ended.items() if p == path})
        assert received[path, ""] == of_path.total(), path
        # Whoever leaves may find the answer complete.
        saw = Counter({o: n for (p, o), n in seen.items() if p == path})
        assert of_path["rejected"] == saw["rejected"]
        assert of_path["error"] == saw["error"] + saw["deadline"]
        assert of_path["ok"] + of_path["aborted"] == saw["ok"] + saw["left"]
        assert of_path["ok"] >= saw["ok"]
    assert 0 < num_late == sum(n for (_, what), n in seen.items() if what == "deadline")
    outcomes = Counter({o: sum(n for (_, p), n in ended.items() if p == o) for _, o in ended})
    assert outcomes["ok"] and outcomes["error"] and outcomes["rejected"] and outcomes["aborted"]
