"""A real server, and the playground in a headless Chromium."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

KEY = "sk-playground"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PATIENCE_MS = 20_000

Page = Any
"""A page of Playwright, which is not installed everywhere."""


def find_chromium() -> str | None:
    """The browser named by CHROMIUM, or the first that is installed."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def server(endless_model: Path) -> Iterator[ServerProcess]:
    """A server with a key, for all tests of a module that leave it as they found it."""
    env = {"DIJIANG_API_KEYS": KEY}
    with ServerProcess(endless_model, "--max-slots=8", env=env) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.wait_ready(), headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Not for the whole session: while it is open, no other test can have an event loop.
    api = pytest.importorskip(
        "playwright.sync_api", reason="there is no Playwright: `make test-browser` installs it"
    )
    if (executable := find_chromium()) is None:
        pytest.skip("there is no Chromium: `make test-browser` installs one")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """Opens the playground of a server, in a window of its own.

    However a test went, nothing may have been asked of another host, no policy been broken, and
    no script have failed.
    """
    contexts, hosts, complaints = [], set[str](), list[str]()
    allowed = set[str]()

    def note_console(message: Any) -> None:
        # The browser reports every refusal that the page handles.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def open(url: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        allowed.add(urlsplit(url).netloc)
        page = context.new_page()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("console", note_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    yield open
    for context in contexts:
        context.close()
    # A data URL, the icon, has no host.
    assert hosts - {""} == allowed
    assert complaints == []


@pytest.fixture
def page(open_page: Callable[..., Page], server: ServerProcess) -> Page:
    """The playground with its key typed in, ready to talk."""
    opened = open_page(server.wait_ready())
    enter_key(opened)
    return opened


def enter_key(page: Page, key: str = KEY) -> None:
    """Type the key into the field that the page leads to, and wait until the server answers."""
    page.locator("#key:focus").wait_for()
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    page.locator("[data-status=ready]").wait_for()


def send(page: Page, text: str) -> None:
    """Type a message and send it."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def wait_done(page: Page) -> None:
    """Wait until nothing is being written."""
    page.locator("article").first.wait_for()
    page.locator("#send:not(.stops)").wait_for()


def answer(page: Page) -> str:
    """The text of the last answer."""
    return str(page.locator(".answer").last.text_content())
