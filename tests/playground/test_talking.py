"""The playground in a browser: messages, answers, parameters, keys and errors."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import START_SECONDS, ServerProcess, wait_for
from tests.playground.conftest import Page, answer, enter_key, send, wait_done

pytestmark = pytest.mark.browser

ENDLESS = "200000"

RECORD_GROWTH = """
  window.lengths = [];
  new MutationObserver(() => {
    const written = document.querySelector(".answer");
    if (written) lengths.push(written.textContent.length);
  }).observe(document.getElementById("transcript"), { childList: true, subtree: true });
"""


def sent_bodies(page: Page) -> list[dict[str, Any]]:
    """Collects the bodies of the page's requests, from now on."""
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda r: bodies.append(json.loads(r.post_data)) if r.post_data else None)
    return bodies


def start_endless(page: Page, http: httpx.Client) -> None:
    """Begin an answer that takes minutes, and wait until it is being written."""
    page.get_by_label("max_tokens").fill(ENDLESS)
    send(page, "the quick")
    page.locator(".writing .figures span").nth(2).wait_for()
    wait_for(http, "dijiang_num_requests_running", 1)


# In units of UTF-16, as a script counts.
ANSWER_LENGTH = "document.querySelector('.answer').textContent.length"


def wait_ready(server: ServerProcess) -> None:
    """Wait until the engine that died is back."""
    deadline = time.monotonic() + START_SECONDS
    while httpx.get(server.wait_listening() + "/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_tokens_appear_one_by_one(page: Page) -> None:
    page.evaluate(RECORD_GROWTH)
    page.get_by_label("max_tokens").fill("4000")
    send(page, "the quick brown")
    wait_done(page)
    lengths = page.evaluate("lengths")
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 20
    assert 3 * lengths[0] < lengths[-1] == page.evaluate(ANSWER_LENGTH)
    figures = page.locator(".figures span").all_text_contents()
    assert figures[-2:] == ["4000 tokens", "cut at max_tokens"]
    assert figures[0].endswith("ms to first") and figures[1].endswith("tokens/s")


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_a_stopped_answer_stays_and_its_slot_is_free(
    page: Page, http: httpx.Client, way: str
) -> None:
    start_endless(page, http)
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    wait_for(http, "dijiang_num_requests_running", 0)
    wait_for(http, "dijiang_state_slots_used", 0)
    wait_done(page)
    assert len(answer(page)) > 5
    assert page.locator(".figures span").last.text_content() == "stopped"
    assert page.locator("#prompt:focus").count() == 1


def test_a_new_conversation_ends_the_old_one(page: Page, http: httpx.Client) -> None:
    start_endless(page, http)
    page.get_by_role("button", name="New").click()
    wait_for(http, "dijiang_num_requests_running", 0)
    assert page.locator("article").count() == 0
    assert page.locator("#opening").is_visible()
    assert page.locator("#memory-tokens").text_content() == "0"


def test_parameters_are_sent_as_they_are_typed(page: Page) -> None:
    bodies = sent_bodies(page)
    page.locator("#model option").wait_for(state="attached")
    for name, value in {"temperature": "0", "max_tokens": "7", "seed": "-3", "top_k": "5"}.items():
        page.get_by_label(name, exact=True).fill(value)
    page.locator("#stop").fill("###\n\\n")
    page.locator("#system").fill("Be brief.")
    send(page, "the")
    wait_done(page)
    [body] = bodies
    expected = {"temperature": 0, "max_tokens": 7, "seed": -3, "top_k": 5, "stop": ["###", "\n"]}
    assert {name: body[name] for name in expected} == expected
    assert body["model"] == "tiny" and body["stream"] is True
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert not {"top_p", "min_p", "presence_penalty", "logprobs"} & body.keys()
    assert page.locator(".figures span").nth(-2).text_content() == "7 tokens"


def test_the_next_message_is_sent_with_what_was_said(page: Page) -> None:
    page.get_by_label("max_tokens").fill("6")
    bodies = sent_bodies(page)
    for text in ("one", "two"):
        send(page, text)
        wait_done(page)
    first, second = (body["messages"] for body in bodies)
    assert second[0] == first[0]
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    # The answer as the model wrote it, which is not quite as it is shown.
    shown = page.locator(".answer").first.text_content()
    assert second[1]["content"].lstrip() == shown


def test_an_answer_is_written_again(page: Page) -> None:
    page.get_by_label("seed").fill("11")
    page.get_by_label("max_tokens").fill("12")
    send(page, "the quick")
    wait_done(page)
    first = answer(page)
    page.get_by_role("button", name="Regenerate").click()
    wait_done(page)
    assert answer(page) == first
    page.get_by_label("seed").fill("12")
    page.get_by_role("button", name="Regenerate").click()
    wait_done(page)
    assert answer(page) != first
    assert page.locator("article").count() == 1


def test_a_completion_goes_on_where_it_ended(page: Page) -> None:
    bodies = sent_bodies(page)
    page.get_by_role("radio", name="completion").check()
    page.get_by_label("temperature").fill("0")
    page.get_by_label("max_tokens").fill("8")
    send(page, "the quick")
    wait_done(page)
    page.get_by_role("button", name="Continue").click()
    wait_done(page)
    first, second = bodies
    assert first["prompt"] == "the quick"
    document = page.locator(".document").text_content()
    assert document.startswith(second["prompt"]) and len(document) > len(second["prompt"])
    assert len(second["prompt"]) > len("the quick")


def test_a_reload_forgets_everything(page: Page) -> None:
    page.get_by_label("temperature").fill("0.5")
    send(page, "the")
    wait_done(page)
    page.reload()
    enter_key(page)
    assert page.locator("article").count() == 0
    assert page.get_by_label("temperature").input_value() == ""
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    send(page, "again")
    wait_done(page)
    assert answer(page)


def test_a_wrong_key_is_told_and_can_be_corrected(open_page: Any, server: ServerProcess) -> None:
    page = open_page(server.wait_ready())
    page.locator("#key:focus").wait_for()
    assert page.locator("#status").text_content() == "key needed"
    page.keyboard.type("sk-wrong")
    send(page, "the")
    failure = page.locator(".failure")
    failure.get_by_text("Send a valid API key").wait_for()
    assert "Type the key into the field API key" in failure.text_content()
    assert page.locator("#key:focus[aria-invalid=true]").count() == 1
    page.keyboard.press("Control+A")
    enter_key(page)
    page.get_by_role("button", name="Regenerate").click()
    wait_done(page)
    assert answer(page) and not failure.is_visible()


def test_a_refused_parameter_is_pointed_at(page: Page) -> None:
    page.get_by_label("temperature").fill("3")
    send(page, "the")
    page.locator(".failure").get_by_text("temperature must be").wait_for()
    assert page.locator("#temperature:focus[aria-invalid=true]").count() == 1
    page.get_by_label("temperature").fill("")
    page.get_by_label("top_p").press_sequentially("1e")
    page.get_by_role("button", name="Regenerate").click()
    page.locator(".failure").get_by_text("top_p is not a number.").wait_for()


def test_the_command_for_a_shell_leaves_the_key_out(page: Page) -> None:
    send(page, "it's")
    wait_done(page)
    page.get_by_role("button", name="Copy as curl").click()
    # Shown when it is known whether it could be copied.
    page.locator("#curl").wait_for()
    command = page.locator("#curl pre").text_content()
    assert command.startswith("curl -N http://127.0.0.1:") and "it'\\''s" in command
    assert "$KEY" in command and "sk-playground" not in command
    page.get_by_role("button", name="Close").click()
    assert not page.locator("#curl").is_visible()


def test_a_dead_engine_and_a_lost_server_are_told(open_page: Any, endless_model: Path) -> None:
    with ServerProcess(endless_model) as server:
        page = open_page(server.wait_ready())
        page.locator("[data-status=ready]").wait_for()
        page.get_by_label("max_tokens").fill(ENDLESS)
        send(page, "the")
        page.locator(".writing .figures span").nth(2).wait_for()
        server.engine.send_signal(signal.SIGKILL)
        failure = page.locator(".failure")
        failure.get_by_text("The engine is loading or starting again").wait_for()
        assert len(answer(page)) > 5
        wait_ready(server)

        page.get_by_role("button", name="Regenerate").click()
        page.locator(".writing .figures span").nth(2).wait_for()
        server.process.kill()
        failure.get_by_text("The connection to the server was lost.").wait_for()
        page.locator("[data-status=unreachable]").wait_for()
