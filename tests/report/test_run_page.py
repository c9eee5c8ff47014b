import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from report_pages import RESULT, Page

from lorakit.errors import DataError, OutputError
from lorakit.report import write_report

SECTIONS = ["learning", "scores", "answers", "course", "forecast", "adapter", "repeat"]


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def sections(made: Page) -> list[str]:
    return [s["id"] for s in made.all("section") if "id" in s]


def test_whole_page(run_folder: Path) -> None:
    made = page(run_folder)
    assert sections(made) == SECTIONS
    assert (
        "Held-out loss fell from 2.311 to 0.412 nats per token in 3 min 32 s; "
        "2,442,240 parameters trained, 1.8 % of the model. "
        "Fields right rose from 0.031 to 0.912."
    ) in made.text
    for words in (
        "my-run",
        "tiny, LoRA of rank 8",
        "a note to read",
        "1,043 real tokens/s",
        "71 % of this machine's matmul rate",
        "1.3 GB of 17.2 GB",
        "+0.881",
        "BLEU 0.015 0.400 +0.385 no clear change",
        "token F1 0.500 0.250 −0.250 worse",
        "3 min 32 s 40 steps in 3 min 10 s",
        "time of the steps 3 min 20 s 3 min 10 s −5 %",
        "peak memory 1.2 GB 1.3 GB +4 %",
        "work for a token 0.61 GFLOP – –",
        "model.layers.*.q_proj 3 64 → 32 8 2,304",
        "30 0.447 best, kept",
        "lorakit train --data a.jsonl",
        "model: tiny",
        "a processor",
    ):
        assert words in made.text, words
    plots = sorted(p.name for p in (run_folder / "plots").iterdir())
    assert plots == ["learning_curve.png", "schedule.png", "throughput.png"]
    assert all((run_folder / "plots" / p).read_bytes()[:4] == b"\x89PNG" for p in plots)
    assert not list(run_folder.glob(".*"))


def test_stands_alone(run_folder: Path) -> None:
    text = write_report(run_folder).read_text(encoding="utf-8")
    made = Page(text)
    assert not made.all("script")
    assert not made.all("link")
    for _, attributes in made.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)'\"]*)", text))
    assert not re.search(r"https?://", text)


def test_accessible(run_folder: Path) -> None:
    made = page(run_folder)
    ids = [a["id"] for _, a in made.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = [a["href"][1:] for a in made.all("use")]
    assert used
    assert set(used) <= set(ids)
    for svg in made.all("svg"):
        if svg.get("aria-hidden") != "true":
            assert svg["role"] == "img"
            assert set(svg["aria-labelledby"].split()) <= set(ids)
    assert len(made.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in made.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(th["scope"] in ("col", "row") for th in made.all("th"))
    assert len(made.all("caption")) == len(made.all("table"))
    assert made.all("html")[0]["lang"] == "en"
    assert "Training loss: 2.09 at step 1" in made.text


def test_samples_are_escaped_and_judged_in_words(run_folder: Path) -> None:
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>here" not in text
    said = Page(text).text
    assert "<script>alert(1)</script>" in said
    assert "Before ✗ not JSON Sure, <b>here</b>" in said
    assert "After ◐ 33 % right" in said
    assert '+ not asked for: "c": 3' in said
    assert '− missing: "b" missing' in said
    assert "After ✓ right yes" in said
    assert "Before ≠ differs no & never" in said


@pytest.mark.parametrize("where", ["notes", "model", "command", "targets"])
def test_every_text_is_escaped(run_folder: Path, where: str) -> None:
    evil = "<img src=x onerror=alert(1)>"
    result = RESULT | {where: [evil] if where in ("notes", "targets") else evil}
    (run_folder / "result.json").write_text(json.dumps(result))
    made = page(run_folder)
    assert not made.all("img")
    assert evil in made.text


@pytest.mark.parametrize(
    ("file", "gone"),
    [
        ("samples.json", {"answers"}),
        ("metrics.jsonl", {"course"}),
        ("config.yaml", set()),
        ("result.json", {"scores", "forecast", "adapter"}),
    ],
)
def test_a_missing_file_leaves_its_sections_out(
    run_folder: Path, file: str, gone: set[str]
) -> None:
    (run_folder / file).unlink()
    assert sections(page(run_folder)) == [s for s in SECTIONS if s not in gone]


@pytest.mark.parametrize("result", [{}, {"model": "m"}, {"eval_loss": 1.0}, {"scores_after": None}])
def test_minimal_result(tmp_path: Path, result: dict[str, object]) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result))
    made = page(tmp_path)
    assert sections(made) == []
    assert not (tmp_path / "plots").exists()
    assert "the run did not finish" in made.text or "Held-out loss is 1.000" in made.text


def test_nan_shows_as_a_dash(run_folder: Path) -> None:
    nan = {k: float("nan") for k in RESULT if isinstance(RESULT[k], float | int)}
    scores = {"scores_before": {"f1": None}, "scores_after": {"f1": float("nan")}}
    (run_folder / "result.json").write_text(json.dumps(RESULT | nan | scores))
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "kind": "train", "loss": NaN, "grad_norm": null}\n')
    made = page(run_folder)
    assert "token F1 – – –" in made.text
    assert not re.search(r"\bnan\b", made.text, re.IGNORECASE)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", "{", "result.json is not JSON"),
        ("result.json", "[]", "result.json holds a list where an object is expected"),
        ("samples.json", "{}", "samples.json holds a dict where a list is expected"),
        ("metrics.jsonl", '{"step": 1}\noh\n{}\n', "metrics.jsonl, line 2 is not JSON"),
    ],
)
def test_broken_files_are_named(run_folder: Path, file: str, content: str, message: str) -> None:
    (run_folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        write_report(run_folder)
    assert not (run_folder / "report.html").exists()


def test_a_line_cut_by_a_kill_is_left_out(run_folder: Path) -> None:
    before = write_report(run_folder).read_text()
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "kind": "tr')
    assert write_report(run_folder).read_text() == before


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        write_report(tmp_path / "nowhere")


def test_a_page_that_cannot_be_written(run_folder: Path) -> None:
    (run_folder / "report.html").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_report(run_folder)


def test_same_files_same_bytes(run_folder: Path) -> None:
    assert write_report(run_folder).read_bytes() == write_report(run_folder).read_bytes()


def test_start_up_is_light() -> None:
    code = (
        "import sys, lorakit.report\n"
        "print([m for m in ('matplotlib', 'jinja2', 'torch', 'numpy') if m in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"


def test_pyplot_stays_out(run_folder: Path) -> None:
    code = (
        "import sys; from lorakit.report import write_report; write_report(sys.argv[1])\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(run_folder)], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "False"
