"""benchmarks/gpu.py: it always ends, loses no line, and runs from end to end without a GPU."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gpu

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def line(who, seconds, *, model="1b", memory=2e9):
    """Steps of 100 tokens at 3 FLOP a token, on a card of 1,000 FLOP/s; the first step does not count."""
    return {
        "phase": model,
        "model": model,
        "rows": "mixed",
        "contender": who,
        "warm": 1,
        "tokens": [100] * len(seconds),
        "seconds": seconds,
        "flops_per_token": 3.0,
        "peak_flops": 1000.0,
        "peak_memory_bytes": memory,
    }


def cells(table):
    return [[c.strip() for c in row.strip("|").split("|")] for row in table.splitlines()[2:]]


def test_the_table_has_medians_ratios_and_the_share_of_the_card():
    lines = [line("lorakit", [9.0, s, s]) for s in (0.5, 1.0, 2.0)]
    lines += [line("peft", [9.0, 2.0, 2.0], memory=5e9)]
    lines += [line("trl", []) | {"failed": "trl is not installed"}]
    assert cells(gpu.training_table(lines)) == [
        ["1b", "mixed", "lorakit", "100", "1.00", "0.300", "2.00 GB", "3"],
        ["1b", "mixed", "peft", "50", "2.00", "0.150", "5.00 GB", "1"],
        ["1b", "mixed", "trl", "trl is not installed", "", "", "", "0"],
    ]


def test_serving_has_a_table_of_its_own():
    lines = [
        {"contender": "lorakit", "adapters": 8, "tokens_per_second": 1234.0},
        {"contender": "peft", "adapters": 8, "failed": "out of memory"},
    ]
    assert cells(gpu.serving_table(lines)) == [
        ["lorakit", "8", "1,234"],
        ["peft", "8", "out of memory"],
    ]


@pytest.fixture
def child(tmp_path, monkeypatch):
    """What a phase runs in place of the script."""

    def write(body):
        path = tmp_path / "child.py"
        path.write_text("import sys, time\n" + textwrap.dedent(body))
        monkeypatch.setattr(gpu, "__file__", str(path))

    return write


def test_a_phase_that_is_late_is_ended_and_its_lines_stay(child, monkeypatch):
    child("""
        print('{"phase": "1b", "turn": 0}', flush=True)
        time.sleep(60)
    """)
    monkeypatch.setattr(gpu, "GRACE", -4.0)
    found = list(gpu._of_phase({"phase": "1b"}, 5.5))
    assert found == [
        {"phase": "1b", "turn": 0},
        {"phase": "1b", "failed": "its time was over"},
    ]


def test_a_phase_that_fails_says_why(child):
    child("""
        print('noise on stdout')
        sys.exit('CUDA error: no kernel image is available')
    """)
    assert list(gpu._of_phase({"phase": "8b"}, 30)) == [
        {"phase": "8b", "failed": "CUDA error: no kernel image is available"}
    ]


def test_no_phase_is_begun_without_time():
    assert list(gpu._of_phase({"phase": "8b"}, 1)) == [
        {"phase": "8b", "failed": "no time was left for it"}
    ]


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "--dry-run tries the script without one" in capsys.readouterr().err


@pytest.mark.readers
def test_the_dry_run_goes_through_every_phase(tmp_path):
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, str(SCRIPT), "--dry-run", "--seconds", "400"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert {row["phase"] for row in lines} == set(gpu.SHARES)
    trained = [row for row in lines if "rows" in row and "failed" not in row]
    for model in ("builtin", "1b", "8b"):
        order = [row["contender"] for row in trained if row["model"] == model]
        assert order[:4] == order[4:8]  # interleaved, round after round
        for who in ("lorakit", "peft"):
            assert sum(row["contender"] == who for row in trained if row["model"] == model) == 4
    # The same rows from the same A: the losses are those of the peers, up to bfloat16.
    by = {(r["model"], r["rows"], r["turn"], r["contender"]): r["losses"] for r in trained}
    for key, losses in by.items():
        assert losses[0] == pytest.approx(by[(*key[:3], "lorakit")][0], rel=0.02)
    # What is missing here is said, and nothing else has failed.
    assert all("is not installed" in row["failed"] for row in lines if "failed" in row)
    served = {(row["contender"], row["adapters"]) for row in lines if "adapters" in row}
    assert served == {("lorakit", 0), ("lorakit", 8), ("peft", 8)}
    assert all({"machine", "versions", "command", "date"} <= set(row) for row in trained)
    assert "| lorakit | 8 |" in done.stdout
