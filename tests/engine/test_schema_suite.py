"""The JSON-Schema test suite's schemas: kept to or refused, never taken and broken.

`JSON_SCHEMA_SUITE` names its folder `tests/draft2020-12`, which the source distribution of the
package `jsonschema` holds: `pip download --no-deps --no-binary jsonschema jsonschema`.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.request import FinishReason, Grammar, GrammarKind, SamplingParams

SUITE = os.environ.get("JSON_SCHEMA_SUITE")

KEPT = frozenset(
    {"additionalProperties", "allOf", "anyOf", "const", "default"}
    | {"enum", "exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems", "maxLength"}
    | {"maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum"}
    | {"multipleOf", "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "ref"}
    | {"infinite-loop-detection", "required", "type"}
)
"""The suite's files about what `docs/api.md` says that we keep to. Its file about `$defs` refers to
the net, and that about booleans has schemas that are no objects: those are refused."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(SUITE is None, reason="JSON_SCHEMA_SUITE names no folder")
def test_every_finished_answer_validates(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_slots=16)
    counts: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    wrong: list[tuple[str, str, str]] = []
    for file in sorted(Path(SUITE or "").glob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8")):
            if not isinstance(case["schema"], dict):
                continue  # An answer's schema is an object.
            for outcome, text in answers(engine, case["schema"]):
                counts[outcome] += 1
                taken[file.stem] += outcome != "refused"
                if outcome == "invalid":
                    wrong.append((file.stem, case["description"], text))
    print(f"\n{sum(counts.values())} answers: {dict(counts)}; kept to {sorted(+taken)}")
    assert not wrong
    assert counts["valid"] > 100
    assert KEPT <= set(+taken)


def answers(engine: Engine, schema: dict[str, Any]) -> list[tuple[str, str]]:
    """Of some answers, what became of them: refused, cut, valid or invalid."""
    sampling = SamplingParams(
        grammar=Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)),
        max_tokens=200,
        temperature=1.0,
        seed=1,
    )
    found = []
    for output in engine.generate(["the fox", "a dog", "x", "quick"], sampling):
        if output.error is not None:
            assert output.error.kind == "InvalidRequestError"
            return [("refused", "")]
        if output.finish_reason is not FinishReason.STOP:
            found.append(("cut", output.text))
            continue
        judge = jsonschema.Draft202012Validator(schema)
        is_valid = judge.is_valid(json.loads(output.text))
        found.append(("valid" if is_valid else "invalid", output.text))
    return found
