"""Tool calls read back from answers, however those are cut."""

import json
import random

import pytest

from server.tool_calls.call_reader import CallArguments, CallBegin
from server.tool_calls.formats import FORMATS, ToolCallFormat
from server.tool_calls.parser import Event, ToolCallParser

NAMES = frozenset({"weather", "add"})

CALL = '{"name": "weather", "arguments": {"city": "P\\"a{r]is", "days": [1, {"a": null}]}}'
ADD = '{"name": "add", "arguments": {}}'

Reading = tuple[str, list[tuple[str, str]], bool]


def put_together(parser: ToolCallParser, events: list[Event]) -> Reading:
    """The text, the calls with their arguments, and whether the last of them is cut."""
    text, calls = "", list[tuple[str, str]]()
    for event in events:
        match event:
            case str():
                text += event
            case CallBegin(name):
                calls.append((name, ""))
            case CallArguments(piece):
                calls[-1] = (calls[-1][0], calls[-1][1] + piece)
    return text, calls, parser.is_inside_call


def read(form: ToolCallFormat, pieces: list[str], *, is_parallel: bool = True) -> Reading:
    parser = ToolCallParser(form, NAMES, is_parallel=is_parallel)
    events = [event for piece in pieces for event in parser.feed(piece)]
    inside = parser.is_inside_call
    return (*put_together(parser, events + parser.finish())[:2], inside)


PARIS = ("weather", '{"city": "P\\"a{r]is", "days": [1, {"a": null}]}')
SUM = ("add", "{}")
ANSWERS: dict[str, list[tuple[str, str, list[tuple[str, str]]]]] = {
    "hermes": [
        ("Hello <tool> you.\n", "Hello <tool> you.\n", []),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [PARIS]),
        (f"Let me see.\n\n<tool_call>{CALL}</tool_call>\n", "Let me see.", [PARIS]),
        (
            f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{ADD}\n</tool_call>",
            "",
            [PARIS, SUM],
        ),
        (f"<tool_call>\n{ADD}\n</tool_call>\nDone.", "\nDone.", [SUM]),
        ("<tool_call>\nno</tool_call>", "<tool_call>\nno</tool_call>", []),
        (f"<tool_call><tool_call>{ADD}</tool_call>", "<tool_call>", [SUM]),
        ('<tool_call>{"name": "evil", "arguments": {}}', None, []),  # type: ignore[list-item]
        ('<tool_call>{"arguments": {"a": 1}, "id": 7, "name": "add"}', "", [("add", '{"a": 1}')]),
        ('<tool_call>{"name": "add"}</tool_call>', "", [SUM]),
        ('<tool_call>{"name": "add", "arguments": "x"}', None, []),  # type: ignore[list-item]
        (f"{CALL}", CALL, []),
        (" " * 400 + "x", " " * 400 + "x", []),
        ("<tool_ca", "<tool_ca", []),
    ],
    "llama3_json": [
        (CALL.replace("arguments", "parameters"), "", [PARIS]),
        (f"<|python_tag|>{CALL}; {ADD}", "", [PARIS, SUM]),
        (f" \n{ADD}", "", [SUM]),
        ('{"name": "Bob"}', '{"name": "Bob"}', []),
        ('  {"answer": 42}', '  {"answer": 42}', []),
        (f"Sure: {ADD}", f"Sure: {ADD}", []),
        ("{}", "{}", []),
    ],
    "mistral": [
        (f"[TOOL_CALLS] [{CALL}, {ADD}]", "", [PARIS, SUM]),
        (f"I see.[TOOL_CALLS][{ADD}]", "I see.", [SUM]),
        ("[TOOL_CALLS] what", "[TOOL_CALLS] what", []),
        (f"[{ADD}]", f"[{ADD}]", []),
    ],
}
EACH = [(name, *answer) for name, answers in ANSWERS.items() for answer in answers]


@pytest.mark.parametrize(("name", "answer", "text", "calls"), EACH)
def test_calls_are_found_and_what_is_none_is_text(
    name: str, answer: str, text: str | None, calls: list[tuple[str, str]]
) -> None:
    found = read(FORMATS[name], [answer])
    assert found == (answer if text is None else text, calls, False)


@pytest.mark.parametrize("name", FORMATS)
def test_any_cut_of_an_answer_reads_the_same(name: str) -> None:
    rng = random.Random(7)
    parts = [p for n, answer, *_ in EACH for p in (answer, answer[: len(answer) // 2])]
    parts += ["\n", " ", "<tool_call>", "</tool_call>", "[", "]", ";", "{", '"', "é🦊", "\\"]
    for _ in range(1500):
        text = "".join(rng.choices(parts, k=rng.randint(1, 5)))
        whole = read(FORMATS[name], [text])
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 30)))
        places = [0, *cuts, len(text)]
        pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
        assert read(FORMATS[name], pieces) == whole
        assert read(FORMATS[name], list(text)) == whole


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_writes_is_read_back(name: str) -> None:
    form = FORMATS[name]
    rng = random.Random(3)
    for _ in range(200):
        calls = [
            (rng.choice(sorted(NAMES)), json.dumps({"k": rng.choice(['"', "}", "\\", "é", 1.5])}))
            for _ in range(rng.randint(1, 4))
        ]
        objects = [f'{{"name": "{n}", "{form.arguments}": {a}}}' for n, a in calls]
        text = form.prefix + form.joint.join(objects) + form.suffix
        assert read(form, [text]) == ("", calls, False)


def test_arguments_come_as_they_are_written() -> None:
    parser = ToolCallParser(FORMATS["hermes"], NAMES)
    assert parser.feed('Well. <tool_call>{"name": "add"') == ["Well."]
    assert parser.feed(', "arguments": {"a"') == [CallBegin("add"), CallArguments('{"a"')]
    assert parser.feed(": 1") == [CallArguments(": 1")]
    assert parser.is_inside_call
    assert parser.feed("}}") == [CallArguments("}")]
    assert not parser.is_inside_call


def test_only_the_first_call_counts_where_one_was_asked_for() -> None:
    text = f"[TOOL_CALLS] [{ADD}, {CALL}]"
    assert read(FORMATS["mistral"], [text], is_parallel=False) == ("", [SUM], False)


def test_a_call_that_is_cut_is_not_complete() -> None:
    whole = f"<tool_call>{CALL}"
    text, calls, is_inside = read(FORMATS["hermes"], [whole[:-10]])
    assert (text, is_inside) == ("", True)
    assert calls == [("weather", whole[whole.index('{"city') : -10])]
