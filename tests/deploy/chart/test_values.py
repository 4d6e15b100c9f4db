"""Values that are misspelt or of the wrong type, and the render tests' reach."""

from collections.abc import Iterator
from typing import Any

import pytest
from helm import CHART, RenderError, render
from test_every_case import CASES

from deploy.helm.values_table import read_values


def paths(node: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of everything in a tree of values."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield f"{path}{key}"
            yield from paths(child, f"{path}{key}.")


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize(
    "parent",
    ["", "image.", "model.hf.", "config.", "drain.", "metrics.rules.", "auth."],
)
def test_a_misspelt_value_is_refused_by_its_name(parent: str) -> None:
    with pytest.raises(RenderError, match="misspelt"):
        render(nested(f"{parent}misspelt", 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.source", "s3"),
        ("autoscaling.type", "cpu"),
        ("replicas", "3"),
        ("image.digest", "latest"),
        ("config.dtype", "int4"),
        ("config.maxSlots", 0),
        ("service.port", 70000),
        ("drain.slackSeconds", 0),
        ("strategy.type", "Rolling"),
        ("tmpSizeLimit", "1 gigabyte"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(path: str, value: Any) -> None:
    with pytest.raises(RenderError, match=path.split(".")[-1]):
        render(nested(path, value))


def test_the_examples_set_every_value() -> None:
    """So that every value is rendered once other than by default."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    set_somewhere = {path for case in CASES.values() for path in paths(case)}
    assert {value.path for value in read_values(text)} - set_somewhere == set()
