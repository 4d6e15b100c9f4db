"""What the playground is made of: nothing from elsewhere, nothing that parses text as HTML."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from server.playground.page import SCRIPTS, build_page, join_scripts

FOLDER = Path(str(files("server.playground")))
SOURCES = sorted(path for path in FOLDER.iterdir() if path.suffix in {".mjs", ".css", ".html"})
NAMESPACE = "http://www.w3.org/2000/svg"


class Elements(HTMLParser):
    """Every element of a page, with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements() -> list[tuple[str, dict[str, str | None]]]:
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    return Elements(html).found


def test_every_module_is_in_the_page_after_those_it_imports() -> None:
    assert {path.stem for path in SOURCES if path.suffix == ".mjs"} == set(SCRIPTS)
    for i, name in enumerate(SCRIPTS):
        source = (FOLDER / f"{name}.mjs").read_text(encoding="utf-8")
        imported = re.findall(r'from "\./([\w-]+)\.mjs"', source)
        assert set(imported) <= set(SCRIPTS[:i]), name
        assert source.count("import ") == len(imported), name


def test_the_joined_script_has_no_imports_and_exports_left() -> None:
    assert not re.search(r"^\s*(import|export)\b", join_scripts(), re.MULTILINE)
    assert "</script" not in join_scripts()


def test_the_page_holds_the_style_and_the_scripts() -> None:
    page = build_page().body.decode()
    assert "/* style */" not in page and "/* script */" not in page
    assert page.count("class Playground") == 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_names_another_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert re.findall(r"""\b(?:https?|wss?|ftp):|["'`(=]//|@import|\burl\(""", text) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_parses_text_or_keeps_anything(path: Path) -> None:
    """The policy would stop most of it at run time; here it is never written."""
    text = path.read_text(encoding="utf-8")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|\beval\b"
        r"|new Function|localStorage|sessionStorage|indexedDB|document\.cookie"
    )
    assert re.findall(forbidden, text) == []


def test_no_element_carries_script_or_style(
    elements: list[tuple[str, dict[str, str | None]]],
) -> None:
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), f"{tag} {name}={value}"


def test_every_field_has_a_label_and_every_id_is_unique(
    elements: list[tuple[str, dict[str, str | None]]],
) -> None:
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    for tag, attributes in elements:
        if tag in ("textarea", "select"):
            assert attributes["id"] in labelled or "aria-label" in attributes
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            if name in attributes:
                assert attributes[name] in ids, f"{tag} {name}"


def test_every_id_that_a_script_looks_for_exists(
    elements: list[tuple[str, dict[str, str | None]]],
) -> None:
    ids = {attributes.get("id") for _, attributes in elements}
    wanted = set(re.findall(r'byId\("([\w-]+)"\)', join_scripts()))
    assert len(wanted) > 20
    assert wanted <= ids
