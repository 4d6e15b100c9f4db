"""Bad requests in the middle of good ones, through a real server."""

import json
import threading
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import metrics, wait_for

GOLDEN = {"prompt": "the quick brown", "max_tokens": 12, "temperature": 0, "logprobs": 1}

BAD: list[tuple[Any, int, str | None]] = [
    ("{", 400, None),
    ("[" * 10_000, 400, None),
    ('{"prompt": "x", "temperature": NaN}', 400, "temperature"),
    ({"prompt": "x", "model": "other"}, 404, "model"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": [384]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": [2**31]}, 400, "prompt"),
    ({"prompt": "x", "max_tokens": 2**40}, 400, "prompt"),
    ({"prompt": [1] * 300, "max_tokens": 1_048_400}, 400, "prompt"),
    ({"prompt": "x", "temperature": -1}, 400, "temperature"),
    ({"prompt": "x", "logit_bias": {"384": 1}}, 400, "logit_bias"),
    ({"prompt": "x", "stop_token_ids": [-1]}, 400, "stop_token_ids"),
    ({"prompt": "x", "n": 1_000_000}, 400, "n"),
    ({"prompt": ["x"] * 100_000}, 400, "prompt"),
    ({"prompt": "x", "guided_regex": "(a+)+$"}, 400, "guided_regex"),
    ({"prompt": "x" * 3_000_000}, 413, None),
]


def golden(http: httpx.Client) -> Any:
    return http.post("/v1/completions", json=GOLDEN).raise_for_status().json()["choices"]


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "sse"])
def test_bad_requests_hurt_nobody(http: httpx.Client, is_stream: bool) -> None:
    expected = golden(http)
    for body, status, param in BAD:
        if isinstance(body, dict):
            body = json.dumps({**body, "stream": is_stream})
        response = http.post(
            "/v1/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert (response.status_code, response.json()["error"]["param"]) == (status, param)
        assert golden(http) == expected
    wait_for(http, "dijiang_state_slots_used", 0)
    assert metrics(http)["dijiang_engine_restarts"] == 0


def test_a_long_text_without_spaces_does_not_stop_the_server(http: httpx.Client) -> None:
    """Encoding is superlinear for such text; it must not run where the probes are answered."""
    body = {"prompt": "a" * 2_000_000, "max_tokens": 1}
    with httpx.Client(base_url=http.base_url, timeout=60) as other:
        poster = threading.Thread(target=lambda: other.post("/v1/completions", json=body))
        poster.start()
        slowest = 0.0
        while poster.is_alive():
            slowest = max(slowest, http.get("/livez").elapsed.total_seconds())
        poster.join()
    assert slowest < 0.5
