"""Custom resource definitions as JSON schemas that refuse unknown fields."""

from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]


def load_crds(folder: Path) -> dict[tuple[str, str], Schema]:
    """The schemas of every definition in a folder's YAML files, by API version and kind."""
    schemas = {}
    for path in sorted(folder.rglob("*.y*ml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if (document or {}).get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for version in spec["versions"]:
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                schemas[key] = _object_schema(version["schema"]["openAPIV3Schema"])
    return schemas


def _object_schema(schema: Schema) -> Schema:
    strict = _strict(schema)
    strict["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    return strict


def _strict(schema: Schema) -> Schema:
    """The same schema in plain JSON Schema. A cluster prunes unknown fields; here they fail."""
    schema = {key: value for key, value in schema.items() if key != "description"}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        schema["properties"] = {k: _strict(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            schema[part] = _strict(schema[part])
    return schema
