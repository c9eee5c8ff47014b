"""Done-when 7: the page in Chromium, by keyboard, in both colours, on a phone, and by axe's rules."""

import os
import shutil
import time
from pathlib import Path

import pytest
from servers import serving

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
# Where screenshots go, to be looked at: SCREENSHOTS=DIR pytest tests/serving/test_page.py
SHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="module")
def server(house, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    (runs / "first").mkdir()
    (runs / "first" / "report.html").write_text("<title>a run</title><h1>A run</h1>")
    with serving(house / "tiny-base", house / "store", runs=str(runs)) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser, server):
    said = []
    made = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
    made.on(
        "console", lambda message: said.append(message.text) if message.type == "error" else None
    )
    made.on("pageerror", lambda error: said.append(str(error)))
    made.goto(server.url)
    sync_api.expect(made.locator("#models input")).to_have_count(4)
    sync_api.expect(made.locator("#status")).to_contain_text("tokens/s")
    yield made
    made.close()
    assert not said


def shot(page, name):
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def violations(page):
    """What axe finds, WCAG A and AA and its best practices, as short sentences."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['help']} at {v['nodes'][0]['target']}" for v in found]


def answered(page, count):
    """Wait until so many answers have ended."""
    sync_api.expect(page.locator("article[aria-busy=false]")).to_have_count(count, timeout=20_000)


def choose(page, *names):
    for box in page.locator("#models input").all():
        box.set_checked(box.get_attribute("value") in names)


def ask(page, text, *names):
    choose(page, *names)
    page.get_by_label("Question").fill(text)
    page.get_by_label("Longest answer").fill("20")
    page.get_by_role("button", name="Ask").click()
    answered(page, len(names))


def test_two_adapters_answer_one_question_side_by_side(page):
    ask(page, "where is it?", "small", "large")
    boxes = page.locator("article")
    texts = [boxes.nth(i).locator("pre").inner_text() for i in range(2)]
    assert all(texts)
    assert texts[0] != texts[1]
    assert [boxes.nth(i).locator("h3").inner_text() for i in range(2)] == ["large", "small"]
    assert "tokens in" in boxes.nth(0).locator("footer").inner_text()
    left, right = (boxes.nth(i).bounding_box() for i in range(2))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    shot(page, "light")
    assert violations(page) == []


def test_dark_is_dark_stays_and_can_be_read(page):
    ask(page, "where is it?", "tiny-base", "middle")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    button = page.get_by_role("button", name="Dark")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate(background) != light
    shot(page, "dark")
    assert violations(page) == []
    page.reload()
    assert page.evaluate(background) != light
    page.evaluate("localStorage.clear()")


def test_the_systems_own_dark_is_followed(browser, server):
    page = browser.new_page(color_scheme="dark")
    page.goto(server.url)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.close()


def test_by_keyboard_alone(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.type("where?")
    assert page.get_by_label("Question").input_value() == "where?"
    page.keyboard.press("Control+Enter")
    answered(page, 2)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "theme":
            break
        outline = page.evaluate(
            "document.activeElement === document.body || "
            "parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 2"
        )
        assert outline, page.evaluate("document.activeElement.outerHTML")


def test_a_phone_scrolls_one_way_only(page):
    page.set_viewport_size({"width": 360, "height": 740})
    ask(page, "where is it?", "small", "large")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [page.locator("article").nth(i).bounding_box() for i in range(2)]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
    shot(page, "phone")
    assert violations(page) == []


def test_cards_reports_filter_and_problems(page, server):
    assert page.locator("#cards tr").count() == 4
    assert "32" in page.locator("#cards").inner_text()
    page.get_by_label("Find a model").fill("larg")
    assert page.locator("#models label:visible").all_inner_texts() == ["large"]
    page.get_by_label("Find a model").fill("")
    choose(page)
    page.get_by_label("Question").fill("where?")
    page.get_by_role("button", name="Ask").click()
    assert page.get_by_role("alert").inner_text() == "Choose a model."
    assert "tokens/s" in page.locator("#status").inner_text()
    page.get_by_role("link", name="first/report.html").click()
    assert page.locator("h1").inner_text() == "A run"


def test_stop_ends_the_answers_at_once(page, server, monkeypatch):
    own = server.engine.forward.run
    slow = lambda *asked: (time.sleep(0.1), own(*asked))[1]  # noqa: E731
    monkeypatch.setattr(server.engine.forward, "run", slow)
    choose(page, "small", "large")
    page.get_by_label("Question").fill("where is it?")
    page.get_by_label("Longest answer").fill("60")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Stop").click()
    answered(page, 2)
    server.rest()
