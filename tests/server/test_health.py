"""Probes, the version, and the list of models."""

import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import Model

from tests.server.fake_engine import FakeEngine

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


async def test_the_server_lives_before_it_is_ready(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.is_ready = False
    assert (await client.get("/livez")).status_code == 200
    for path in ("/readyz", "/health"):
        assert (await client.get(path)).status_code == 503

    engine.is_ready = True
    for path in ("/livez", "/readyz", "/health"):
        assert (await client.get(path)).status_code == 200


async def test_a_draining_server_is_not_ready_but_healthy(app_for: Any, client_for: Any) -> None:
    app = app_for()
    app.state.context.lifecycle.begin_drain()
    client = client_for(app)
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/readyz")).json() == {"status": "draining"}
    assert (await client.get("/health")).status_code == 200


async def test_the_version_is_the_package_s(client: httpx.AsyncClient) -> None:
    expected = tomllib.loads(PROJECT.read_text())["project"]["version"]
    assert (await client.get("/version")).json() == {"version": expected}


async def test_models_are_what_the_openai_library_expects(client_for: Any) -> None:
    client = client_for(served_model_name=("story", "org/story"))
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    models = [Model.model_validate(model, strict=True) for model in listed["data"]]
    assert [model.id for model in models] == ["story", "org/story"]
    assert {model["root"] for model in listed["data"]} == {"story"}
    assert {model["max_model_len"] for model in listed["data"]} == {200}


@pytest.mark.parametrize("name", ["story", "org/story"])
async def test_a_model_is_found_by_any_of_its_names(client_for: Any, name: str) -> None:
    client = client_for(served_model_name=("story", "org/story"))
    response = await client.get(f"/v1/models/{name}")
    assert response.json()["id"] == name
    answer = await client.post("/v1/completions", json={"model": name, "prompt": "x"})
    assert answer.json()["model"] == name


async def test_models_are_listed_before_they_are_loaded(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.is_ready = False
    listed = (await client.get("/v1/models")).json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in listed] == [("tiny", None)]
