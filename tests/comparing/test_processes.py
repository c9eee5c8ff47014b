"""The whole command in real processes: killed and resumed, and its memory measured from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comparing_tools import without_measured

# A small process between: what getrusage says of a child begins at the size of its parent.
MEASURE = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


@pytest.fixture(scope="module")
def begin(base, rows, tmp_path_factory):
    """Start `lorakit compare` in a folder of its own, with --out out."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LORAKIT_CACHE": str(cache)}
    flags = [
        *("--model", str(base), "--data", str(rows), "--ranks", "2", "--seeds", "1"),
        *("--rates", "1", "--budget", "12 steps", "--batch-size", "4", "--evaluations", "2"),
        *("--max-eval-rows", "8", "--samples", "2", "--max-new-tokens", "4", "--out", "out"),
    ]

    def call(folder: Path, *instead: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "lorakit", "compare", *(instead or flags)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return call


@pytest.fixture(scope="module")
def whole(begin, tmp_path_factory) -> Path:
    """An undisturbed comparison."""
    folder = tmp_path_factory.mktemp("whole")
    process = begin(folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder / "out"


def test_killed_in_the_middle_and_resumed_it_is_the_same(begin, whole, tmp_path):
    """Everything but what lies under "measured": seconds and bytes of the processes."""
    process = begin(tmp_path)
    out = tmp_path / "out"
    deadline = time.monotonic() + 240
    # In the middle of the first run: its metrics have begun, its result is not there.
    while not any(out.glob("trials/*/metrics.jsonl")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (out / "result.json").exists()
    kept = {f.parent.name: f.stat().st_mtime_ns for f in out.glob("trials/*/result.json")}
    assert 2 <= len(kept) < 4  # the look and the base are done, not every run

    resumed = begin(tmp_path, "--resume", "--out", "out")
    said, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    for key, written in kept.items():
        assert (out / "trials" / key / "result.json").stat().st_mtime_ns == written
    ours, theirs = (json.loads((each / "result.json").read_text()) for each in (out, whole))
    assert without_measured(ours) == without_measured(theirs)
    assert (out / "samples.json").read_bytes() == (whole / "samples.json").read_bytes()
    for adapter in whole.glob("trials/*/adapter/adapter_model.safetensors"):
        assert (out / adapter.relative_to(whole)).read_bytes() == adapter.read_bytes()


def test_other_settings_are_not_mixed_into_it(begin, whole):
    flags = ("--resume", "--out", str(whole), "--seeds", "2")
    process = begin(whole.parent, *flags)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "other settings (seeds)" in " ".join(said.split())


def test_peak_memory_is_what_the_system_says_of_the_process(whole, tmp_path):
    """An arm alone, measured from outside by wait4, as /usr/bin/time -v does."""
    shutil.copytree(whole / "trials", tmp_path / "trials")
    checked = 0
    for file in sorted((whole / "trials").glob("*/metrics.jsonl")):
        alone = tmp_path / "trials" / f"alone-{checked}"
        alone.mkdir()
        shutil.copy(file.parent / "trial.json", alone)
        command = [sys.executable, "-m", "lorakit.experiments.worker", str(alone)]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *command],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        outside = 1024 * int(done.stdout.split()[-1])
        measured = json.loads((alone / "result.json").read_text())["measured"]
        assert measured["peak_memory_bytes"] == pytest.approx(outside, rel=0.1)
        before = json.loads((file.parent / "result.json").read_text())
        assert before["measured"]["peak_memory_bytes"] == pytest.approx(outside, rel=0.1)
        checked += 1
    assert checked == 2
