"""The page of a search for a rank, from a search on a tiny model that was really run."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from report_pages import Page

from families import saved
from lorakit.errors import DataError
from lorakit.experiments import in_process
from lorakit.ranking.command import run_rank
from lorakit.ranking.spec import FORM
from lorakit.report import rank_tables, write_rank_report
from lorakit.report.numbers import loss
from lorakit.report.rank_read import read_rank

EVIL = "<script>alert(1)</script>"
SECTIONS = [
    *("loss", "curves", "decisions", "spectrum", "cost", "layers", "grid", "protocol", "repeat")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("page")
    base = saved(place / "tiny")
    rows = [{"prompt": f"{EVIL} {i}", "completion": "yes" if i % 2 else "no"} for i in range(60)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "model": str(base),
        "data": (str(place / "rows.jsonl"),),
        "dtype": "float32",
        "max_rank": 4,
        "max_steps": 8,
        "allow_short": True,
        "rates": 2,
        "batch_size": 4,
        "eval_share": 0.3,
        "per_layer": True,
        "exhaustive": True,
        "grid_rates": 1,
        "grid_seeds": 1,
        "out": str(place / "run"),
    }
    run_rank(
        FORM.read(None, options),
        command=f"lorakit rank --data '{EVIL}'",
        runner=lambda root, tell: in_process(root, report=tell),
    )
    return place / "run"


def test_sections_figures_and_what_they_say(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert [s["id"] for s in page.all("section") if "id" in s] == SECTIONS
    result = json.loads((folder / "result.json").read_text())
    assert " ".join(result["words"].split()) in page.text
    for words in (
        *("held-out loss less rank 4 (nats per token)", "learning rate", "what may be said"),
        *("runs at the highest rank, evaluation included", "trained", "prior", "tolerance"),
        "does not say which rank the task needs",
    ):
        assert words in page.text, words
    names = {p.name for p in (folder / "plots").iterdir()}
    assert names == {f"{n}.png" for n in ("loss", "leaving", "heat", "decay", "rates", "cost")}


def test_no_table_holds_losses_of_two_lengths_of_run(folder):
    result = json.loads((folder / "result.json").read_text())
    lengths = {e["share"] for e in result["evidence"]}
    assert len(lengths) > 1
    files = read_rank(folder)
    tables = rank_tables.evidence(files)
    assert len(tables) >= len(lengths)
    for title, rows in tables:
        (share,) = {
            e["share"]
            for e in result["evidence"]
            for row in rows
            if (row[0], row[2]) == (str(e["rank"]), loss(e["loss"])) and title.endswith(e["how"])
        }
        assert ("the whole run" in title) == (share == 1)
    # Differences are of runs after the same steps, and say after how many.
    for row in rank_tables.gaps(files):
        assert row[1] == "whole run" or row[1].endswith("of a run")


def test_margin_intervals_and_words_are_on_it(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text())
    for rank, gap in result["gaps"].items():
        assert f"rank {rank}, " in page.text
        assert gap["verdict"]["word"] in page.text
    assert "margin, within which ranks count as equal" in page.text
    for gone in ("indistinguishable", "Confidence", "equivalent"):
        assert gone not in page.text


def test_a_result_of_an_earlier_version_is_refused_with_the_way_on(folder, tmp_path):
    result = json.loads((folder / "result.json").read_text())
    del result["margin"]
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match=r"earlier version.*lorakit rank --resume --out"):
        write_rank_report(tmp_path)


def test_it_stands_alone_and_everything_is_escaped(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    for tag in ("script", "link", "img"):
        assert not page.all(tag)
    assert EVIL in page.text
    assert not re.search(r"https?://", text)
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
    assert write_rank_report(folder).read_bytes() == before


def test_a_folder_without_a_search_is_refused(tmp_path):
    with pytest.raises(DataError, match="no finished search"):
        write_rank_report(tmp_path)
    (tmp_path / "result.json").write_text('{"eval_loss": 1}')
    with pytest.raises(DataError, match="not that of a search"):
        write_rank_report(tmp_path)
