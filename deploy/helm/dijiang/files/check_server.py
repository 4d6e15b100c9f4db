"""What `helm test` runs: the models are listed, and a completion streams to its end."""

import json
import os
import sys
import urllib.request

URL = os.environ["DIJIANG_URL"]
HEADERS = {"Content-Type": "application/json"}
if key := os.environ.get("DIJIANG_API_KEY"):
    HEADERS["Authorization"] = f"Bearer {key}"


def ask(path: str, body: dict | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, HEADERS)
    return urllib.request.urlopen(request, timeout=30)


models = [model["id"] for model in json.load(ask("/v1/models"))["data"]]
print("models:", *models)

prompt = {"model": models[0], "prompt": "Once upon a time", "max_tokens": 4, "stream": True}
events = [line[6:].strip() for line in ask("/v1/completions", prompt) if line[:6] == b"data: "]
print("events:", len(events))
if len(events) < 2 or events[-1] != b"[DONE]" or any(b'"error"' in event for event in events):
    sys.exit(f"The stream did not end as it should: {events[-1:]}")
