"""The interface by both executors, and what only processes can do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorakit.errors import ConfigError, DataError, OutputError, TrialError
from lorakit.experiments import Trial, in_order, in_process, processes

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _workers_can_be_found(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def trial(worker="square", label="", where=None, **spec):
    return Trial(f"trial_workers:{worker}", spec, where or {}, label)


def one(runner, wanted):
    """The outcome of a single trial."""
    (outcome,) = in_order(runner, [wanted])
    return outcome


both = pytest.mark.parametrize("executor", [in_process, processes])


@both
def test_results_files_and_events(executor, tmp_path):
    events = []
    runner = executor(tmp_path, report=events.append)
    outcomes = {o.trial.spec["x"]: o for o in runner([trial(x=2, label="two"), trial(x=3)])}
    assert {x: o.result["square"] for x, o in outcomes.items()} == {2: 4, 3: 9}
    assert (outcomes[2].folder / "note.txt").read_text() == "here"
    told = [(e["kind"], e["label"]) for e in events if e["key"] == trial(x=2).key]
    assert told == [("begin", "two"), ("half", "two"), ("end", "two")]


@both
def test_what_is_done_is_not_done_again(executor, tmp_path):
    first = one(executor(tmp_path), trial(x=2))
    events = []
    again = one(executor(tmp_path, report=events.append), trial(x=2, where={"elsewhere": 1}))
    assert again.resumed
    assert not first.resumed
    assert again.result == first.result
    assert not events


@both
def test_equal_trials_are_run_once(executor, tmp_path):
    assert len(list(executor(tmp_path)([trial(x=2), trial(x=2, label="the same")]))) == 1


@both
def test_an_unfinished_folder_is_begun_anew(executor, tmp_path):
    folder = tmp_path / trial(x=2).key
    folder.mkdir()
    (folder / "left.txt").write_text("by a kill")
    (folder / ".result.json.partial").write_text('{"square": ')
    assert one(executor(tmp_path), trial(x=2)).result["square"] == 4
    assert not (folder / "left.txt").exists()


@both
def test_errors_keep_their_kind_and_finished_trials_their_results(executor, tmp_path):
    runner = executor(tmp_path)
    assert one(runner, trial(x=2)).result["square"] == 4
    with pytest.raises(DataError, match="no such column"):
        list(runner([trial("fail", label="a run")]))
    assert one(runner, trial(x=2)).resumed


@both
def test_a_damaged_result_is_named(executor, tmp_path):
    folder = tmp_path / trial(x=2).key
    folder.mkdir()
    (folder / "result.json").write_text("{")
    with pytest.raises(OutputError, match=r"result\.json is damaged"):
        one(executor(tmp_path), trial(x=2))


@both
def test_outcomes_in_order_are_those_of_the_trials_that_were_given(executor, tmp_path):
    trials = [trial(x=3), trial(x=1), trial(x=3), trial(x=2)]
    one(executor(tmp_path), trials[3])  # is there already, and comes out first
    outcomes = in_order(executor(tmp_path), trials)
    assert [outcome.trial for outcome in outcomes] == trials
    assert [outcome.result["square"] for outcome in outcomes] == [9, 1, 9, 4]


def test_the_key_is_of_worker_and_spec_alone():
    assert trial(x=2).key == trial(x=2, label="a", where={"b": 1}).key
    assert len({trial(x=2).key, trial(x=3).key, trial("fail", x=2).key}) == 3
    assert Trial("w", {"a": 1, "b": 2}).key == Trial("w", {"b": 2, "a": 1}).key


def test_every_trial_has_a_process_of_its_own(tmp_path):
    pids = {o.result["process"] for o in processes(tmp_path)([trial(x=x) for x in (1, 2)])}
    assert len(pids | {os.getpid()}) == 3
    assert "printed by a worker" in (tmp_path / trial(x=1).key / "log.txt").read_text()


def test_two_workers_run_at_once_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    place = tmp_path / "place"
    place.mkdir()
    asked = [trial("meet", me=me, where={"place": str(place)}) for me in "ab"]
    found = list(processes(tmp_path / "trials", workers=2)(asked))
    assert [o.result["met"] for o in found] == [2, 2]
    share = max(1, os.cpu_count() // 2)
    assert [o.result["threads"] for o in found] == [share, share]


def test_no_memory_of_the_parent_is_carried(tmp_path):
    ballast = bytearray(os.urandom(1) * 400_000_000)
    found = one(processes(tmp_path), trial("memory")).result["kilobytes"]
    assert 1000 < found < 200_000
    assert len(ballast) == 400_000_000


def test_a_crash_says_where_its_log_is(tmp_path):
    with pytest.raises(TrialError, match=r"a run: ZeroDivisionError: oh \(all of it in .*log\.txt"):
        list(processes(tmp_path)([trial("crash", label="a run")]))


def test_a_killed_process_is_named_with_its_signal(tmp_path):
    with pytest.raises(TrialError, match="a run: it was killed by SIGKILL"):
        list(processes(tmp_path)([trial("kill_itself", label="a run")]))


def test_two_commands_do_not_share_a_folder(tmp_path):
    outcomes = in_process(tmp_path)([trial(x=1), trial(x=2)])
    next(outcomes)
    with pytest.raises(OutputError, match="another lorakit command"):
        list(processes(tmp_path)([trial(x=3)]))
    outcomes.close()
    assert len(list(processes(tmp_path)([trial(x=3)]))) == 1


def test_workers_below_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="workers"):
        processes(tmp_path, workers=0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_trials_end_with_the_process_that_runs_them(number, tmp_path):
    code = (
        "import signal, sys; from pathlib import Path; from lorakit.experiments import Trial, processes\n"
        # As at a terminal, also where a shell began these tests with `&`, which has Ctrl-C ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "list(processes(Path(sys.argv[1]))([Trial('trial_workers:wait', {})]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE)
    file = tmp_path / trial("wait").key / "pid"
    child = int(_within(60, lambda: file.exists() and file.read_text()))
    parent.send_signal(number)
    parent.communicate(timeout=60)
    assert _within(60, lambda: not _alive(child))


def _within(seconds, question):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def _alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
