"""How threads wait on a busy machine: what others do is counted, a second team is held, bits stay."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from families import tiny
from lorakit.execution import other_work, ready_generation, runnable, waiting
from lorakit.execution.other_work import OtherWork, is_busy, said

TEAM = """
import json, sys, time
import torch
from lorakit.execution.waiting import SecondTeam
torch.manual_seed(0)
x = torch.randn(256, 256)

def products():
    outs, before = [], time.process_time()
    for _ in range(25):
        outs.append(x @ x)
        time.sleep(0.02)  # whoever waits awake does so now
    return time.process_time() - before, torch.stack(outs).sum(0)

products()
awake, first = products()
second = SecondTeam.hold(2)
asleep, other = products()
second.let_go()
again, third = products()
same = torch.equal(first, other) and torch.equal(first, third)
print(json.dumps({"awake": awake, "asleep": asleep, "again": again, "same": same}))
"""


def alone(script, **environment):
    """What a process of two threads prints last, nothing of waiting being set."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=kept | {"OMP_NUM_THREADS": "2"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(waiting._libgomp() is None, reason="torch computes without libgomp here")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: libgomp never waits awake")
def test_a_second_team_lets_threads_sleep_and_changes_no_bit():
    """By the processor time that waiting takes, which a busy machine does not change."""
    found = alone(TEAM)
    assert found["same"]
    assert found["asleep"] < 0.6 * found["awake"]
    assert found["asleep"] < 0.6 * found["again"]


class Machine:
    """What `OtherWork` would see, look by look; the last look ends the watcher."""

    def __init__(self, *cores):
        self.left = list(cores)

    def __call__(self):
        return self

    def cores(self):
        if not self.left:
            raise InterruptedError
        return self.left.pop(0)


class Team:
    """In the place of a second team."""

    held: list[str]

    @classmethod
    def hold(cls, threads):
        cls.held.append("held")
        return cls()

    def let_go(self):
        self.held.append("let go")


@pytest.mark.parametrize(
    ("seen", "does"),
    [
        ([0.0, 0.1], []),
        ([1.0], ["held"]),
        ([1.0, 0.9, 2.0], ["held"]),
        ([1.0, 0.0, 1.0, 0.0], ["held"]),  # one quiet look is not enough
        ([1.0, 0.0, 0.0], ["held", "let go"]),
        ([1.0, 0.0, 0.0, 0.0, 1.2], ["held", "let go", "held"]),
        ([None, None], []),
    ],
)
def test_the_team_is_held_while_others_compute(seen, does, monkeypatch):
    Team.held = []
    monkeypatch.setattr(waiting, "OtherWork", Machine(*seen))
    monkeypatch.setattr(waiting, "SecondTeam", Team)
    monkeypatch.setattr(waiting, "_PAUSE", 0.0)
    monkeypatch.setattr(waiting, "_free", None)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(InterruptedError):
        waiting._look(2)
    assert Team.held == does
    held = does[-1:] == ["held"]
    assert waiting.team(2) == (1 if held else 2)
    assert waiting.team(1) == 1


@pytest.mark.parametrize(
    ("cores", "others", "threads"),
    [(8, 1.1, 7), (8, 3.0, 5), (8, 7.6, 4), (8, 20.0, 4), (2, 1.0, 1), (2, 2.0, 1), (3, 3.0, 1)],
)
def test_a_team_has_what_others_leave(cores, others, threads, monkeypatch):
    Team.held = []
    monkeypatch.setattr(waiting, "OtherWork", Machine(others))
    monkeypatch.setattr(waiting, "SecondTeam", Team)
    monkeypatch.setattr(waiting, "_PAUSE", 0.0)
    monkeypatch.setattr(waiting, "_free", None)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with pytest.raises(InterruptedError):
        waiting._look(cores)
    assert waiting.team(cores) == threads


@pytest.mark.parametrize(
    ("threads", "chosen", "begins"),
    [
        (2, {}, True),
        (1, {}, False),
        (2, {"OMP_WAIT_POLICY": "active"}, False),
        (2, {"GOMP_SPINCOUNT": "1000"}, False),
    ],
)
def test_who_is_watched(threads, chosen, begins, monkeypatch):
    """One thread has none to wait for; what the user has chosen stays."""
    began = threading.Event()
    monkeypatch.setattr(waiting, "_watcher", None)
    monkeypatch.setattr(waiting, "_look", lambda threads: began.set())
    monkeypatch.setattr(waiting, "_libgomp", lambda: object())
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    waiting.watch()
    waiting.watch()
    assert (waiting._watcher is not None) is begins
    if begins:
        assert began.wait(10)


def test_whatever_runs_a_model_watches(monkeypatch):
    """Training, evaluation and serving run a `Runnable`; answers are generated by transformers."""
    seen = []
    monkeypatch.setattr(runnable, "watch", lambda: seen.append("run"))
    monkeypatch.setattr(ready_generation, "watch", lambda: seen.append("generate"))
    model = tiny("llama")
    runnable.Runnable(model)
    with ready_generation.ready_to_generate(model, model.generation_config):
        pass
    assert seen == ["run", "generate"]


def test_cores_that_others_keep(tmp_path, monkeypatch):
    """By hand: 2 s of wall time, of 100 ticks a second 310 in all, 1.1 s of them this process's own."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(other_work, "_STAT", stat)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    clock = {"wall": 10.0, "own": 3.0}
    monkeypatch.setattr(other_work.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(other_work.time, "process_time", lambda: clock["own"])
    # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text("cpu  1000 50 200 9000 70 5 5 40 30 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    work = OtherWork()
    clock.update(wall=12.0, own=4.1)
    stat.write_text("cpu  1200 60 250 9090 80 10 10 80 90 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert work.cores() == pytest.approx((3.10 - 1.1) / 2.0)
    for unknown in ("", "cpu  1 2 3\n", "intr 1 2 3 4 5 6 7 8\n", "cpu a b c d e f g h\n"):
        stat.write_text(unknown)
        assert work.cores() is None
    stat.unlink()
    assert work.cores() is None
    assert OtherWork().cores() is None


def test_when_a_machine_is_busy():
    assert is_busy(1.0, 2, 2)
    assert not is_busy(1.0, 2, 1)  # a core for each
    assert not is_busy(0.2, 2, 2)
    assert not is_busy(None, 2, 2)
    assert is_busy(3.0, 8, 8)
    assert not is_busy(3.0, 8, 4)
    assert said(0.1, 2, 2) == said(None, 2, 2) == ""
    words = said(1.0, 2, 2)
    assert "1.0 of 2 cores" in words
    assert "1.5 times" in words  # three that want a core, two cores
    assert "OMP_NUM_THREADS=1 " in words
    assert "OMP_NUM_THREADS=5 " in said(3.1, 8, 8)
    assert "OMP_NUM_THREADS" not in said(0.4, 2, 2)  # less than a core is gone
