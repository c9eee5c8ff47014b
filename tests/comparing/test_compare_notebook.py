"""`lorakit.compare` on rows one holds; in processes, as a notebook runs it."""

import json

import pytest

import lorakit
from lorakit.errors import ConfigError, OutputError


def test_rows_in_python_and_the_finished_result_again(small, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    held = [json.loads(line) for line in rows.read_text().splitlines()]
    options = {k: v for k, v in small.items() if k != "data"} | {"seeds": 1, "samples": 0}
    out = tmp_path / "run"
    result = lorakit.compare(held, out=out, **options)
    assert "full fine-tuning" in result["measured"]["headline"] + result["reference"]
    assert (out / "report.html").is_file()
    events = []
    assert lorakit.compare(held, out=out, report=events.append, **options) == result
    assert not [e for e in events if e["kind"] == "begin"]
    with pytest.raises(OutputError, match="other settings"):
        lorakit.compare(held, out=out, **{**options, "ranks": (4,)})


def test_an_unknown_option_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'ranks'"):
        lorakit.compare("rows.jsonl", out=tmp_path / "run", rankss=(2,))
