"""`docs/api.md` against the code."""

import re
from pathlib import Path

import httpx

from server.app import ROUTERS
from server.errors import HTTP_ERRORS, OPENAI_ERRORS
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.protocol.embeddings import EmbeddingRequest
from server.protocol.responses import ResponsesRequest

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def first_cells() -> set[str]:
    """What stands in backquotes at the beginning of the tables' rows."""
    return set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))


def test_every_route_is_documented() -> None:
    routes = {
        f"{method} {route.path}".replace(":path}", "}")  # type: ignore[attr-defined]
        for router in ROUTERS
        for route in router.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    assert routes == {cell for cell in first_cells() if cell.startswith(("GET", "POST"))}


def test_every_parameter_is_documented() -> None:
    models = (ChatCompletionRequest, CompletionRequest, ResponsesRequest, EmbeddingRequest)
    names = {name for model in models for name in model.model_fields}
    assert names <= first_cells()


def test_every_error_is_documented() -> None:
    documented = set(re.findall(r"^\| (\d{3}) \| (?:`(\w+)`|null) \|", PAGE, re.MULTILINE))
    declared = {(str(status), code or "") for _, status, _, code in OPENAI_ERRORS}
    declared |= {(str(status), body.code or "") for status, body in HTTP_ERRORS.items()}
    assert documented == declared | {("400", "bad_http"), ("500", "internal_error")}


async def test_every_metric_is_documented(client: httpx.AsyncClient) -> None:
    documented = set(re.findall(r"\| `((?:dijiang_|vllm:)\w+)`", PAGE))
    text = (await client.get("/metrics")).text
    exported = set(re.findall(r"^# TYPE ((?:dijiang_|vllm:)\w+)", text, re.MULTILINE))
    assert documented == exported
