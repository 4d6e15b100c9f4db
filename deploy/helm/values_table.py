"""Write the table of values in the chart's README from the comments in values.yaml.

    python deploy/helm/values_table.py          # rewrites README.md between its two markers

A comment line that begins with `# --` documents the value below it. A map that is documented itself
is one value; otherwise its entries are.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "dijiang"
BEGIN = "<!-- values: written by `make chart-readme` -->\n"
END = "<!-- end of values -->\n"

_LINE = re.compile(r"^(?P<indent> *)(?:# (?P<comment>.*)|(?P<key>[A-Za-z]\w*):.*)$")


@dataclass(frozen=True)
class Value:
    """One documented value: its dotted path, its default and what it does."""

    path: str
    default: Any
    description: str


def read_values(text: str) -> list[Value]:
    """All documented values of a values.yaml, in its order."""
    defaults = yaml.safe_load(text)
    return [
        Value(path, _look_up(defaults, path), description) for path, description in _comments(text)
    ]


def undocumented(text: str) -> set[str]:
    """Dotted paths of values that no comment covers."""
    documented = {value.path for value in read_values(text)}

    def leaves(node: Any, path: str) -> Iterator[str]:
        if path in documented:
            return
        if not isinstance(node, dict) or not node:
            yield path
            return
        for key, child in node.items():
            yield from leaves(child, f"{path}.{key}" if path else key)

    return set(leaves(yaml.safe_load(text), ""))


def table(values: list[Value]) -> str:
    """The values as a Markdown table."""
    rows = ["| value | default | does |", "|---|---|---|"]
    for value in values:
        default = json.dumps(value.default, separators=(", ", ": "), ensure_ascii=False)
        rows.append(f"| `{value.path}` | `{default}` | {value.description} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str, values: str) -> str:
    """The README with the table of this values.yaml between the markers."""
    head, rest = readme.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}{table(read_values(values))}{END}{tail}"


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """(path, description) of every key that has a `# --` comment right above it."""
    parents: list[tuple[int, str]] = []
    description = ""
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            description = ""
        elif match["key"] is None:
            description = match["comment"].removeprefix("-- ") if "-- " in line else ""
        else:
            indent = len(match["indent"])
            parents = [parent for parent in parents if parent[0] < indent]
            parents.append((indent, match["key"]))
            if description:
                yield ".".join(key for _, key in parents), description
            description = ""


def _look_up(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values


def main() -> None:
    """Rewrite the README of the chart."""
    readme = CHART / "README.md"
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    text = with_table(readme.read_text(encoding="utf-8"), values)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
