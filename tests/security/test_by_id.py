"""Every case has a test, and every test that is named exists."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.security.cases import CASES, COMING

ROOT = Path(__file__).parents[2]
ALL = [f"S{n:02}" for n in range(1, 41)] + [f"R{n:02}" for n in range(1, 28)]


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


@pytest.mark.parametrize("case", ALL)
def test_a_case_has_its_tests(case: str) -> None:
    assert (case in CASES) != (case in COMING)
    for test in CASES.get(case, ()):
        path, _, name = test.partition("::")
        assert name in names_in(path), test


def test_there_are_no_other_cases() -> None:
    assert CASES.keys() | COMING.keys() == set(ALL)
    assert all(CASES.values())
