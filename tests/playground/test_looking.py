"""The playground in a browser: the keyboard, the instruments, and how it looks."""

import re
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, metrics, wait_for
from tests.playground.conftest import Page, answer, enter_key, send, wait_done

pytestmark = pytest.mark.browser

MIN_CONTRAST = 4.5
"""Of text, for level AA of the Web Content Accessibility Guidelines."""

# The contrast of every piece of text that is shown, with its colours mixed as they are painted.
CONTRASTS = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (colors) => {
    context.clearRect(0, 0, 1, 1);
    for (const color of colors) {
      context.fillStyle = color;
      context.fillRect(0, 0, 1, 1);
    }
    return context.getImageData(0, 0, 1, 1).data;
  };
  const luminance = (colors) => {
    const [r, g, b] = [...paint(colors)].map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, .offscreen, svg")) continue;
    const backgrounds = [];
    for (let up = element; up; up = up.parentElement) {
      backgrounds.unshift(getComputedStyle(up).backgroundColor);
    }
    const light = luminance([...backgrounds, getComputedStyle(element).color]);
    const dark = luminance(backgrounds);
    const ratio = (Math.max(light, dark) + 0.05) / (Math.min(light, dark) + 0.05);
    found.push([walker.currentNode.data.trim().slice(0, 40), ratio]);
  }
  return found;
}"""

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_everything_works_without_a_mouse(page: Page, http: httpx.Client) -> None:
    keyboard = page.keyboard
    assert page.locator("#prompt:focus").count() == 1
    keyboard.type("one")
    keyboard.press("Shift+Enter")
    keyboard.type("two")
    keyboard.press("Enter")
    wait_done(page)
    assert page.locator(".typed").text_content() == "one\ntwo"
    # Backwards: the mode is after the button, what can be done with an answer before the field.
    keyboard.press("Shift+Tab")
    assert focused(page) == "Copy as curl"
    keyboard.press("Shift+Tab")
    keyboard.press("Enter")
    page.locator(".figures span").last.get_by_text("cut at max_tokens").wait_for()
    wait_done(page)
    assert page.locator("#prompt:focus").count() == 1
    keyboard.press("Tab")
    assert focused(page) == "Send"
    keyboard.press("Tab")
    keyboard.press("ArrowRight")
    assert page.locator("[value=completion]:checked").count() == 1
    assert page.locator("#system").is_disabled()
    keyboard.press("Tab")
    # The instruments come next, in the order in which they stand.
    assert page.locator("#temperature:focus").count() == 1


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.textContent"))


def test_focus_is_always_to_be_seen(page: Page) -> None:
    stops = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        stops.add(page.evaluate("document.activeElement.outerHTML"))
        shows = page.evaluate("""() => {
          const near = [document.activeElement, document.activeElement.nextElementSibling];
          const styles = near.filter(Boolean).map((element) => getComputedStyle(element));
          const frame = getComputedStyle(document.querySelector(".entry")).boxShadow !== "none";
          return frame || styles.some((style) => style.outlineStyle !== "none");
        }""")
        assert shows, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    assert len(stops) >= 15


@pytest.mark.parametrize("mode", ["chat", "completion"])
def test_a_token_tells_what_else_it_might_have_been(page: Page, mode: str) -> None:
    page.get_by_role("radio", name=mode).check()
    page.get_by_label("Colour tokens").check()
    page.get_by_label("max_tokens").fill("60")
    page.get_by_label("seed").fill("1")
    send(page, "the quick")
    wait_done(page)
    tokens = page.locator(".token")
    # A token of half a character has no span of its own.
    assert 10 < tokens.count() <= 60
    # Half a character at the end belongs to no token.
    shown = "".join(tokens.all_text_contents())
    assert shown.rstrip("\ufffd") == answer(page).rstrip("\ufffd") != ""
    tokens.nth(3).hover()
    tip = page.get_by_role("tooltip")
    rows = tip.locator("tr").all_text_contents()
    # Fewer than five are those of the completions endpoint, some of which are spelled alike.
    assert (3 if mode == "completion" else 5) <= len(rows) <= 6
    assert all(re.search(r"(\d|<0\.1)%$", row) for row in rows)
    assert tip.locator(".chosen").count() == 1
    # By the keyboard: one stop for the whole answer, arrows inside it.
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == tokens.nth(2).text_content()
    assert tip.is_visible()
    assert page.locator(".token[tabindex='0']").count() == 1


def test_the_memory_stays_flat_while_the_kv_cache_grows(page: Page, http: httpx.Client) -> None:
    facts = metrics(http)
    page.get_by_label("max_tokens").fill("100")
    state = page.locator("#memory-state")
    sizes, caches = set(), []
    for _ in range(2):
        send(page, "the quick brown fox")
        wait_done(page)
        tokens = int(page.locator("#memory-tokens").text_content())
        sizes.add(state.text_content())
        caches.append(page.locator("#memory-kv").text_content())
        kib = tokens * facts["dijiang_parent_kv_cache_bytes_per_token"] / 1024
        # JavaScript rounds halves up, Python to even.
        assert caches[-1] == f"{kib + 1e-9:.3g} KiB"
    assert sizes == {f"{facts['dijiang_state_bytes_per_sequence'] / 1024:.3g} KiB"}
    assert caches[0] != caches[1]
    assert "the state by now" in page.locator("#memory-note").text_content()


def test_the_engine_is_watched_while_it_works(page: Page, http: httpx.Client) -> None:
    assert page.locator("#slots i").count() == 8
    page.get_by_label("max_tokens").fill("200000")
    send(page, "the")
    page.locator("#engine-running").get_by_text("1").wait_for()
    page.locator("#slots i.used").wait_for()
    page.locator("#engine-note").get_by_text("1 of 8 slots in use. What runs has").wait_for()
    page.keyboard.press("Escape")
    wait_for(http, "dijiang_num_requests_running", 0)
    page.locator("#engine-note").get_by_text("0 of 8 slots in use.", exact=True).wait_for()


def test_a_hidden_page_asks_nothing(page: Page) -> None:
    asked: list[str] = []
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.wait_for_timeout(1500)
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    with page.expect_request("**/metrics"):
        pass


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_background(
    open_page: Any, server: ServerProcess, scheme: str
) -> None:
    page = open_page(server.wait_ready(), color_scheme=scheme)
    enter_key(page)
    page.get_by_label("Colour tokens").check()
    page.get_by_label("temperature").fill("2")
    for temperature in ("2", "3"):
        page.get_by_label("temperature").fill(temperature)
        send(page, "the quick")
        wait_done(page)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 200
    assert [found for found in contrasts if found[1] < MIN_CONTRAST] == []


def test_the_theme_can_be_chosen(open_page: Any, server: ServerProcess) -> None:
    page = open_page(server.wait_ready(), color_scheme="dark")
    button = page.get_by_role("button", name="Theme")
    background = "getComputedStyle(document.body).backgroundColor"
    seen = [page.evaluate(background)]
    for _ in range(3):
        button.click()
        seen.append(page.evaluate(background))
    dark, light = seen[0], seen[1]
    assert seen == [dark, light, dark, dark] and dark != light


def test_a_phone_has_room_for_everything(open_page: Any, server: ServerProcess) -> None:
    page = open_page(server.wait_ready(), viewport={"width": 360, "height": 640}, has_touch=True)
    enter_key(page)
    assert page.locator("#prompt:focus").is_visible()
    page.locator("#max_tokens").evaluate("field => field.value = '300'")
    send(page, "w" * 300)
    wait_done(page)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.locator("#brief").is_visible()
    # The end of the answer is what one sees, not its beginning.
    below = page.get_by_role("button", name="Regenerate").bounding_box()
    assert below["y"] + below["height"] <= page.locator("#composer").bounding_box()["y"]
    assert page.locator("#send").bounding_box()["y"] < 640
    page.get_by_role("button", name="Instruments").click()
    assert page.locator("#temperature").is_visible()
    assert page.evaluate(OVERFLOW) <= 0
    page.keyboard.press("Escape")
    assert not page.locator("#temperature").is_visible()


def test_motion_can_be_turned_off(open_page: Any, server: ServerProcess) -> None:
    page = open_page(server.wait_ready(), reduced_motion="reduce")
    enter_key(page)
    page.get_by_label("max_tokens").fill("200000")
    send(page, "the")
    page.locator(".writing .answer").wait_for()
    name = "getComputedStyle(document.querySelector('.writing .answer'), '::after').animationName"
    assert page.evaluate(name) == "none"
    page.keyboard.press("Escape")
    wait_done(page)
