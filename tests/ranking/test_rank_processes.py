"""`lorakit rank` in real processes: killed in the middle and resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import lorakit
from lorakit.errors import ConfigError


@pytest.fixture
def begin(base, easy, tmp_path_factory):
    """Start `lorakit rank` in a folder of its own, with --out out."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LORAKIT_CACHE": str(cache)}
    flags = [
        *("--model", str(base), "--data", str(easy), "--dtype", "float32", "--max-rank", "4"),
        *("--max-steps", "12", "--batch-size", "8", "--learning-rate", "0.005"),
        *("--tolerance", "1%", "--rungs", "0.5,1", "--decide-at", "1", "--out", "out"),
        "--allow-short",
    ]

    def call(folder, *instead):
        return subprocess.Popen(
            [sys.executable, "-m", "lorakit", "rank", *(instead or flags)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return call


def test_killed_in_the_middle_and_resumed_it_is_the_same(begin, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    process = begin(whole)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said

    process, out = begin(cut), cut / "out"
    deadline = time.monotonic() + 240
    # Once a stage is done and another has begun.
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        begun, done = ({p.parent.name for p in out.glob(f"trials/*/{n}")} for n in
                       ("trial.json", "result.json"))  # fmt: skip
        if len(done) >= 2 and begun - done:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (out / "result.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in out.glob("trials/*/result.json")}
    assert kept

    resumed = begin(cut, "--resume", "--out", "out")
    said, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    ours, theirs = (json.loads((p / "out" / "result.json").read_text()) for p in (cut, whole))
    # Seconds apart, which are the only thing that a clock has measured.
    for result in (ours, theirs):
        result.pop("measured")
    assert ours == theirs
    tensors = "out/adapter/adapter_model.safetensors"
    assert (cut / tensors).read_bytes() == (whole / tensors).read_bytes()


def test_in_python_with_rows_one_holds_and_the_result_again(small, easy, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    held = [json.loads(line) for line in easy.read_text().splitlines()]
    options = {**small, "max_rank": 2, "max_steps": 4}
    out = tmp_path / "run"
    result = lorakit.rank(held, out=out, **options)
    assert (out / "adapter" / "adapter_config.json").is_file()
    events = []
    assert lorakit.rank(held, out=out, report=events.append, **options) == result
    assert not [e for e in events if e["kind"] == "begin"]
    with pytest.raises(ConfigError, match="did you mean 'max_rank'"):
        lorakit.rank(held, out=tmp_path / "other", max_rnak=2)
