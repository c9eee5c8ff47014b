"""The page of a comparison, from a comparison of a tiny model that was really run."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from report_pages import Page

from families import saved
from lorakit.comparing.command import run_compare
from lorakit.comparing.spec import FORM
from lorakit.errors import DataError
from lorakit.experiments import in_process
from lorakit.report import write_compare_report

SECTIONS = [
    *("learning", "quality", "trade-off", "cost", "forgetting", "rates", "answers", "protocol"),
    "repeat",
]
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("page")
    base = saved(place / "tiny")
    rows = [{"prompt": f"{EVIL} {i}", "completion": "yes" if i % 2 else "no"} for i in range(40)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "model": str(base),
        "data": (str(place / "rows.jsonl"),),
        "dtype": "float32",
        "ranks": (2, 4),
        "budget": "3 steps",
        "rates": 3,
        "seeds": 2,
        "evaluations": 3,
        "batch_size": 4,
        "eval_share": 0.35,
        "samples": 6,
        "max_new_tokens": 4,
        "out": str(place / "run"),
        "general_data": (str(place / "rows.jsonl"),),
    }
    run_compare(
        FORM.read(None, options),
        command=f"lorakit compare --data '{EVIL}'",
        runner=lambda root, tell: in_process(root, report=tell),
    )
    return place / "run"


def test_sections_figures_and_what_they_say(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert [s["id"] for s in page.all("section") if "id" in s] == SECTIONS
    result = json.loads((folder / "result.json").read_text())
    headline = " ".join(result["measured"]["headline"].split())
    sentence = headline.split(". ")[0]
    assert sentence in page.text
    for words in (
        *("held-out loss (nats per token)", "trained parameters (millions)", "peak memory (GB)"),
        *("forgetting: KL from the base (nats per token)", "seconds of training", "learning rate"),
        *("full fine-tuning", "LoRA r=2", "LoRA r=4", "on disk, ten tasks", "optimizer state"),
        *("Repeat this comparison", "published: about 10 times", "95 % interval"),
    ):
        assert words.replace(" %", "\u00a0%") in page.text or words in page.text, words
    names = {p.name for p in (folder / "plots").iterdir()}
    assert names == {f"{n}.png" for n in
                     ("course", "differences", "forgetting", "probe", "time", "trade_off")}  # fmt: skip


def test_margins_and_words_are_on_it(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text())
    assert "scores 0.05" in page.text.replace("\u00a0", " ")
    for between in result["differences"]:
        verdict = between["verdict"]
        assert f"{between['arm']}: {verdict['word']}" in page.text
        assert " ".join(verdict["words"].split()) in page.text
        assert between["kl"]["verdict"]["word"] in page.text
    # Six answers are too few for a word, and have no interval.
    assert all(not between["scores"] for between in result["differences"])
    for gone in ("indistinguishable", "comes close"):
        assert gone not in page.text


def test_a_result_of_an_earlier_version_is_refused_with_the_way_on(folder, tmp_path):
    result = json.loads((folder / "result.json").read_text())
    del result["protocol"]["margins"]
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match=r"earlier version.*lorakit compare --resume --out"):
        write_compare_report(tmp_path)


def test_it_stands_alone_and_everything_is_escaped(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("img")
    assert EVIL in page.text
    assert not re.search(r"https?://", text)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith("#")
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)


def test_it_can_be_read_aloud(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))


def test_the_same_files_give_the_same_bytes(folder):
    before = (folder / "report.html").read_bytes()
    assert write_compare_report(folder).read_bytes() == before


def test_a_folder_without_a_result_is_refused(tmp_path, folder):
    with pytest.raises(DataError, match="no finished comparison"):
        write_compare_report(tmp_path)
    (tmp_path / "result.json").write_text('{"eval_loss": 1}')
    with pytest.raises(DataError, match="not that of a comparison"):
        write_compare_report(tmp_path)
