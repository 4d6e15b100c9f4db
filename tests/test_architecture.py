"""The rules that hold the code apart: who may import whom, and what nobody may do.

Imports inside functions count: they are heavy or optional, not secret. Only the modules of
`server.commands` may reach everything that way, because they are what a user runs.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("dijiang_runtime", "server", "clients")

STDLIB = frozenset(sys.stdlib_module_names)
WEB = frozenset({"fastapi", "starlette", "sse_starlette", "uvicorn", "pydantic"})
TORCH = frozenset({"torch", "transformers", "triton"})

# The first rule whose prefix matches a module holds for it; the longest prefixes come first.
ALLOWED: dict[str, frozenset[str]] = {
    "clients": frozenset({"clients", "httpx", "rich", "prompt_toolkit", "matplotlib"}),
    "server.commands": frozenset(
        {"server", "typer", "rich", "msgspec", "dijiang_runtime.demo"}
        | {"dijiang_runtime.config", "dijiang_runtime.errors"}
        | {"dijiang_runtime.conversion.options"}
    ),
    "server": frozenset(
        {
            "server",
            "typer",
            "rich",
            "msgspec",
            "jinja2",
            "prometheus_client",
            "h11",
            "uvloop",
            "yaml",
        }
        | WEB
        | {"dijiang_runtime"}
        | {
            f"dijiang_runtime.{name}"
            for name in ("errors", "request", "config", "tokenizer", "grammar_check", "processes")
        }
        | {"dijiang_runtime.models.config"}
        | {f"dijiang_runtime.engine.{name}" for name in ("client", "merge", "messages")}
    ),
    "dijiang_runtime.ops.triton": frozenset({"torch", "triton", "dijiang_runtime.ops.triton"}),
    "dijiang_runtime.ops": frozenset({"torch", "numpy", "dijiang_runtime.ops"}),
}

FORBIDDEN: dict[str, frozenset[str]] = {
    "dijiang_runtime.engine": frozenset({"dijiang_runtime.conversion"}),
    "dijiang_runtime.models": frozenset({"dijiang_runtime.conversion", "dijiang_runtime.engine"}),
    "dijiang_runtime": frozenset(
        {"server", "clients", "prometheus_client", "typer", "httpx"} | WEB
    ),
    "clients": TORCH,
    "server": TORCH,
}

TORCH_FREE = (
    "dijiang_runtime",
    "dijiang_runtime.config",
    "dijiang_runtime.conversion.options",
    "dijiang_runtime.errors",
    "dijiang_runtime.request",
    "dijiang_runtime.tokenizer",
    "dijiang_runtime.models.config",
    "dijiang_runtime.engine.client",
    "dijiang_runtime.engine.merge",
    "dijiang_runtime.engine.messages",
    "dijiang_runtime.engine.scheduler",
    "dijiang_runtime.engine.sequence",
    "server.app",
    "server.cli",
    "server.run",
    "clients.chat.repl",
    "clients.async_client",
    "clients.client",
)

UNSAFE_MODULES = frozenset({"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"})
UNSAFE_NAMES = frozenset({"eval", "exec", "compile", "__import__"})
UNSAFE_CALLS = frozenset({"torch.load", "torch.save", "numpy.load", "np.load", "os.system"})

UNSAFE_SWITCHES = frozenset({"shell", "trust_remote_code", "allow_pickle"})


@dataclass(frozen=True)
class Import:
    """One imported module, where it stands, and whether that is inside a function."""

    importer: str
    target: str
    line: int
    is_lazy: bool
    is_for_typing: bool = False

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the three packages, parsed."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(module: str) -> Iterator[Import]:
    """The imports of a module. `from package import name` names a module where there is one."""

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = typing or is_type_checking(node)
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [f if f in sources() else str(node.module) for f in full]
        for target in targets:
            yield Import(module, target, getattr(node, "lineno", 0), lazy, typing)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy, typing)

    return walk(sources()[module], False, False)


def is_within(module: str, prefixes: frozenset[str] | tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def all_imports() -> list[Import]:
    return [found for module in sources() for found in imports_of(module)]


def rule_for(module: str) -> str | None:
    matching = [prefix for prefix in ALLOWED if is_within(module, (prefix,))]
    return max(matching, key=len, default=None)


def is_allowed(found: Import, allowed: frozenset[str]) -> bool:
    if found.target.split(".")[0] in STDLIB:
        return True
    # A package opens its submodules, except for the runtime, whose public modules are listed.
    if found.target in allowed:
        return True
    return is_within(found.target, allowed - {"dijiang_runtime"})


def test_every_package_is_looked_at() -> None:
    assert {name.split(".")[0] for name in sources()} == set(PACKAGES)
    assert len(all_imports()) > 100


@pytest.mark.parametrize("prefix", ALLOWED)
def test_a_package_imports_only_what_its_rule_lists(prefix: str) -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if rule_for(found.importer) == prefix
        and not is_allowed(found, ALLOWED[prefix])
        and not (prefix == "server.commands" and (found.is_lazy or found.is_for_typing))
    ]
    assert wrong == []


@pytest.mark.parametrize("prefix", FORBIDDEN)
def test_a_package_never_imports_what_is_forbidden_to_it(prefix: str) -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if is_within(found.importer, (prefix,))
        and is_within(found.target, FORBIDDEN[prefix])
        and not (is_within(found.importer, ("server.commands",)) and found.is_lazy)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_light_module_loads_no_torch(module: str) -> None:
    script = (
        f"import sys, {module}; loaded = sorted({set(TORCH)!r} & set(sys.modules));"
        "sys.exit(f'loads {loaded}' if loaded else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_nothing_unpickles_and_nothing_evaluates_text() -> None:
    wrong = [str(i) for i in all_imports() if is_within(i.target, UNSAFE_MODULES)]
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in UNSAFE_NAMES | UNSAFE_CALLS:
                    wrong.append(f"{module}:{node.lineno} calls {called}")
                for keyword in node.keywords:
                    if keyword.arg in UNSAFE_SWITCHES and ast.unparse(keyword.value) != "False":
                        wrong.append(f"{module}:{node.lineno} passes {keyword.arg} to {called}")
    assert wrong == []


def test_middleware_is_plain_asgi() -> None:
    users = [
        module
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.alias) and "BaseHTTPMiddleware" in ast.unparse(node)
    ]
    assert users == []


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_nothing_is_left_for_later(folder: str) -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    unfinished = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(mark in line for mark in marks)
    ]
    assert unfinished == []
