"""The page asks for the columns of a prompt template, and sends what training would have made."""

import json
import shutil

import pytest
from servers import saved_base, serving

import lorakit
from lorakit.adapters.store import Store

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
ROWS = [{"name": f"Ann {n}", "city": "Bonn", "label": "yes"} for n in range(4)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(root / "cache"))
        model, words = lorakit.load_model(str(saved_base(root / "tiny-base")))
        lorakit.attach(model, lorakit.LoraSpec(rank=2))
        mapping = {"prompt": r"{name} in {city}\n", "completion": "{label}"}
        lorakit.train(model, words, ROWS, eval_share=0, max_steps=1, **mapping)
        lorakit.save_adapter(model, root / "people")
        Store(root / "store").add(root / "people", "people")
        with serving(root / "tiny-base", root / "store") as made:
            yield made


@pytest.fixture
def page(server):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        made = browser.new_page()
        made.goto(server.url)
        sync_api.expect(made.locator("#models input")).to_have_count(2)
        yield made
        browser.close()


def test_columns_are_asked_for_in_a_form(page):
    sent = []
    page.on("request", lambda r: sent.append(r.post_data) if "completions" in r.url else None)
    page.get_by_label("tiny-base").uncheck()
    assert page.get_by_label("Question").is_hidden()
    page.get_by_label("name", exact=True).fill("Eva")
    page.get_by_role("button", name="Ask").click()
    assert page.get_by_role("alert").inner_text() in ("Fill in city.", "")
    page.get_by_label("city", exact=True).fill(" Rome")
    page.get_by_role("button", name="Ask").click()
    sync_api.expect(page.locator("article footer")).to_contain_text("tokens in")
    (body,) = map(json.loads, sent)
    assert json.loads(body["messages"][0]["content"]) == {"name": "Eva", "city": " Rome"}
    page.get_by_label("Send the text as it is").check()
    assert page.get_by_label("Question").is_visible()
