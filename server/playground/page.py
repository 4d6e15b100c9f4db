"""Puts the playground's files together, and says what the browser may do with the result."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

SCRIPTS = (
    "dom",
    "events",
    "metrics",
    "memory",
    "logprobs",
    "parameters",
    "stopwatch",
    "conversation",
    "requests",
    "tokens",
    "exchange-view",
    "frames",
    "memory-chart",
    "monitor",
    "settings",
    "transcript",
    "opening",
    "main",
)
"""The modules, each after those that it imports."""

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./[\w-]+\.mjs";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|const|class)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Page:
    """The body of the one response, and its headers."""

    body: bytes
    headers: Mapping[str, str]


def build_page() -> Page:
    """Read the files and put them together."""
    style = _read("style.css")
    script = join_scripts()
    html = _read("index.html").replace("/* style */", style).replace("/* script */", script)
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": _policy(style, script),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Cache-Control": "no-cache",
    }
    return Page(html.encode(), MappingProxyType(headers))


def join_scripts() -> str:
    """All modules as one, so that the page can hold them.

    They are plain modules, which tests import as they are. In one module their names are in one
    scope: the imports and exports fall away, and two top-level names may not be the same.
    """
    return "\n".join(
        _EXPORT.sub("", _IMPORT.sub("", _read(f"{name}.mjs"))).strip() for name in SCRIPTS
    )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing runs but this very script, and nothing is reached but this very server."""
    directives = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
