"""The chart's values: documented, in the schema, and of options that the server has."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from deploy.helm.values_table import CHART, read_values, undocumented, with_table
from dijiang_runtime.config import EngineConfig
from server.app import ROUTERS
from server.config import ServerConfig, is_option

VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
MANAGED = {
    *("model", "served_model_name", "host", "port", "drain_seconds"),
    *("api_key_file", "insecure"),
}
"""Options that other values decide."""

ELSEWHERE = {"config", "ssl_certfile", "ssl_keyfile"}
"""Options that a pod has no use for: the chart is the configuration, and TLS ends before it."""


def options() -> set[str]:
    fields = msgspec.structs.fields(ServerConfig) + msgspec.structs.fields(EngineConfig)
    return {field.name for field in fields if is_option(field.name)} - ELSEWHERE


def snake_case(name: str) -> str:
    return re.sub(r"([A-Z])", r"_\1", name).lower()


def closed_objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, schema) of every object with fixed entries."""
    if "properties" in schema:
        yield path, schema
        for name, child in schema["properties"].items():
            yield from closed_objects(child, f"{path}.{name}")


def test_every_value_is_documented() -> None:
    assert undocumented(VALUES) == set()


def test_the_readme_lists_the_values_as_they_are() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme, VALUES), "run `make chart-readme`"


def test_the_schema_knows_every_value_and_no_other() -> None:
    for path, schema in closed_objects(SCHEMA):
        values = yaml.safe_load(VALUES)
        for key in path.split(".")[1:]:
            values = values[key] if isinstance(values, dict) and key in values else None
        if isinstance(values, dict) and path not in (".config", ".strategy"):
            assert schema["properties"].keys() == values.keys(), path


def test_a_value_that_does_not_exist_is_refused_everywhere() -> None:
    for path, schema in closed_objects(SCHEMA):
        assert schema["additionalProperties"] is False, path


def test_the_schema_says_what_the_comments_say() -> None:
    for value in read_values(VALUES):
        schema = SCHEMA
        for key in value.path.split("."):
            schema = schema["properties"][key]
        assert schema["description"] == value.description, value.path
        assert "type" in schema, value.path


def test_every_option_that_the_chart_takes_is_one_of_the_servers() -> None:
    config = SCHEMA["properties"]["config"]["properties"]
    assert {snake_case(name) for name in config} <= options() - MANAGED


def test_the_chart_takes_every_option_of_the_server() -> None:
    config = SCHEMA["properties"]["config"]["properties"]
    assert {snake_case(name) for name in config} == options() - MANAGED


def test_probes_and_scrapes_ask_for_paths_that_exist() -> None:
    templates = "".join(path.read_text("utf-8") for path in CHART.glob("templates/_*.tpl"))
    asked = set(re.findall(r"path: (/[a-z]+)$", templates, re.MULTILINE))
    routes = {route.path for router in ROUTERS for route in router.routes}  # type: ignore[attr-defined]
    assert asked == {"/livez", "/readyz", "/metrics"}
    assert asked <= routes


def test_the_variables_that_the_templates_set_are_the_servers() -> None:
    template = (CHART / "templates" / "_container.tpl").read_text(encoding="utf-8")
    names = {name.lower() for name in re.findall(r"name: DIJIANG_([A-Z_]+)", template)}
    assert names == MANAGED | {"api_keys"}
