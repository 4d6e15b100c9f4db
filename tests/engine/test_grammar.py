"""Answers that must match something: what comes out, and what it costs the neighbours."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.request import (
    FinishReason,
    Grammar,
    GrammarKind,
    RequestOutput,
    SamplingParams,
)

MakeEngine = Callable[..., Engine]

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

# One case for each keyword that is kept to.
KEYWORDS: dict[str, dict[str, Any]] = {
    "type": {"type": ["boolean", "null"]},
    "enum": {"enum": ["a", 1, None, {"b": [True]}]},
    "const": {"const": {"a": [1, None]}},
    "minLength, maxLength": {"type": "string", "minLength": 3, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[a-f]{2,5}$"},
    "format": {"type": "string", "format": "date"},
    "minimum, maximum": {"type": "integer", "minimum": -7, "maximum": 19},
    "exclusiveMinimum": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
    "multipleOf": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 90},
    "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 5},
    "prefixItems": {
        "type": "array",
        "prefixItems": [{"type": "null"}, {"type": "boolean"}],
        "items": False,
    },
    "minItems": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 4},
    "properties, required": PERSON,
    "additionalProperties": {
        "type": "object",
        "additionalProperties": {"type": "null"},
        "minProperties": 1,
        "maxProperties": 2,
    },
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^a[bc]$": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "anyOf": {"anyOf": [{"type": "null"}, PERSON]},
    "oneOf": {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
    "allOf": {"type": "integer", "allOf": [{"minimum": 2}, {"maximum": 5}]},
    "$ref, $defs": {"$defs": {"flag": {"type": "boolean"}}, "$ref": "#/$defs/flag"},
    "recursion": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
}
REFUSED_KEYWORDS: dict[str, dict[str, Any]] = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"minLength": 3}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"type": "integer"}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "unevaluatedProperties": {"unevaluatedProperties": False},
    "false": {"type": "array", "items": False, "minItems": 1},
    "overlapping oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "remote $ref": {"$ref": "http://127.0.0.1:9/schema.json"},
    "unknown format": {"type": "string", "format": "nonsense"},
}


def schema(value: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value))


def regex(pattern: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, pattern)


def answer(engine: Engine, grammar: Grammar | None, **sampling: Any) -> RequestOutput:
    options = {"max_tokens": 150, "temperature": 1.0, "seed": 0, **sampling}
    [output] = engine.generate(["the fox"], SamplingParams(grammar=grammar, **options))
    return output


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine(max_slots=16)


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_finished_answer_validates(engine: Engine, keyword: str) -> None:
    judge = jsonschema.Draft202012Validator(
        KEYWORDS[keyword], format_checker=jsonschema.FormatChecker()
    )
    sampling = SamplingParams(
        grammar=schema(KEYWORDS[keyword]), max_tokens=200, temperature=1.0, seed=1
    )
    outputs = engine.generate(["the fox", "a dog", "x", "quick"], sampling)
    finished = [o for o in outputs if o.finish_reason is FinishReason.STOP]
    assert finished
    for output in finished:
        judge.validate(json.loads(output.text))


@pytest.mark.parametrize("keyword", REFUSED_KEYWORDS)
def test_a_schema_that_cannot_be_kept_is_refused(engine: Engine, keyword: str) -> None:
    output = answer(engine, schema(REFUSED_KEYWORDS[keyword]))
    assert output.error is not None and output.error.kind == "InvalidRequestError"
    assert output.num_output_tokens == 0


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (regex(r"[a-c]{3,5}x"), r"[a-c]{3,5}x"),
        (Grammar(GrammarKind.CHOICE, json.dumps(["yes", 'n"o', "é\n"])), 'yes|n"o|é\n'),
        (Grammar(GrammarKind.GRAMMAR, 'root ::= "a" [0-9]{2} ("x" | "y")'), r"a[0-9]{2}[xy]"),
        (Grammar(GrammarKind.GRAMMAR, 'start: "a" /[0-9]{2}/ ("x" | "y")'), r"a[0-9]{2}[xy]"),
    ],
    ids=["regex", "choice", "gbnf", "lark"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_text_matches(
    engine: Engine, grammar: Grammar, pattern: str, temperature: float
) -> None:
    output = answer(engine, grammar, temperature=temperature)
    assert output.finish_reason is FinishReason.STOP
    assert re.fullmatch(pattern, output.text)


def test_every_other_parameter_gives_way_to_the_grammar(engine: Engine) -> None:
    bias = dict.fromkeys(engine.tokenizer.encode("abc"), -100.0)
    bad = tuple((token_id,) for token_id in engine.tokenizer.encode("abc"))
    for changes in (
        {"ignore_eos": True},
        {"min_tokens": 100},
        {"logit_bias": bias},
        {"bad_words": bad},
        {"repetition_penalty": 100.0, "frequency_penalty": 2.0},
        {"top_k": 1},
        {"top_p": 0.01},
        {"min_p": 1.0},
    ):
        output = answer(engine, regex("[abc]{4}"), **changes)
        assert re.fullmatch("[abc]{4}", output.text), changes
        assert output.finish_reason is FinishReason.STOP


def test_the_end_of_the_text_waits_for_the_grammar_and_min_tokens(engine: Engine) -> None:
    eos = engine.info.eos_token_ids[0]
    output = answer(engine, regex("[a-z]{5,60}"), logit_bias={eos: 100.0}, min_tokens=9)
    assert output.finish_reason is FinishReason.STOP
    assert output.num_output_tokens >= 9 and len(output.text) >= 5


def test_an_answer_that_is_cut_off_is_a_prefix(engine: Engine) -> None:
    output = answer(engine, regex("a{1000}"), max_tokens=10)
    assert output.finish_reason is FinishReason.LENGTH
    assert set(output.text) == {"a"}


def test_stop_strings_and_logprobs_work_as_ever(engine: Engine) -> None:
    output = answer(engine, regex("[ab]{5}x[ab]{5}"), stop=("x",), logprobs=2)
    assert output.stop_reason == "x" and re.fullmatch("[ab]{5}", output.text)
    assert output.logprobs is not None
    assert all(-9999.0 <= position.chosen.logprob <= 0 for position in output.logprobs)


def test_a_constrained_answer_depends_on_no_neighbour(make_engine: MakeEngine) -> None:
    def run(engine: Engine, prompts: list[str], grammar: Grammar | None) -> list[RequestOutput]:
        sampling = SamplingParams(
            grammar=grammar, max_tokens=40, temperature=1.0, seed=5, logprobs=3
        )
        return engine.generate(prompts, sampling)

    prompts = ["the fox", "dog", "lazy", "jumps over " * 20]
    together, alone = make_engine(max_slots=8), make_engine(max_slots=1)
    crowd = run(together, prompts, schema(PERSON))
    for prompt, ours in zip(prompts, crowd, strict=True):
        [theirs] = run(alone, [prompt], schema(PERSON))
        assert (ours.token_ids, ours.logprobs) == (theirs.token_ids, theirs.logprobs)


def test_a_request_without_a_grammar_overtakes_one_that_is_compiled(engine: Engine) -> None:
    from tests.engine.requests import make_request

    hard = json.dumps([f"value {i}" for i in range(8000)])
    grammar = Grammar(GrammarKind.CHOICE, hard)
    engine.add_request(make_request("hard", grammar=grammar, max_tokens=40))
    engine.add_request(make_request("easy", max_tokens=1))
    assert [o.request_id for o in engine.step()] == ["easy"]
    assert engine.only_awaits_grammars and engine.scheduler.slots.num_used == 0
    aborted = engine.abort("hard")
    assert aborted is not None and aborted.finish_reason is FinishReason.ABORT
    assert not engine.has_work and engine.step() == []


def random_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    """A schema of at most `depth` levels."""
    leaves: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"type": "integer", "minimum": rng.randint(-50, 0), "maximum": rng.randint(1, 99)},
        {"type": "string", "maxLength": rng.randint(1, 6)},
        {"enum": [rng.randint(0, 9), "x", None]},
        {"type": "string", "pattern": f"^[a-d]{{1,{rng.randint(1, 4)}}}$"},
        {"type": ["null", "boolean"]},
    ]
    kind = rng.choice(("leaf", "object", "array", "anyOf")) if depth else "leaf"
    if kind == "object":
        names = rng.sample(["a", "b c", 'd"', "é", "long name"], rng.randint(1, 3))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": names[: rng.randint(0, len(names))],
            "additionalProperties": False,
        }
    if kind == "array":
        items = random_schema(rng, depth - 1)
        return {"type": "array", "items": items, "minItems": rng.randint(0, 2), "maxItems": 3}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
    return rng.choice(leaves)


@pytest.mark.parametrize("num_schemas", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_schemas_of_growing_depth(engine: Engine, num_schemas: int) -> None:
    rng = random.Random(4)
    num_finished = 0
    for i in range(num_schemas):
        wanted = random_schema(rng, 1 + 8 * i // num_schemas)
        output = answer(engine, schema(wanted), max_tokens=1500)
        assert output.error is None, (wanted, output.error)
        if output.finish_reason is FinishReason.STOP:
            jsonschema.Draft202012Validator(wanted).validate(json.loads(output.text))
            num_finished += 1
    print(f"{num_finished} of {num_schemas} finished, all valid")
    assert num_finished >= 0.9 * num_schemas
