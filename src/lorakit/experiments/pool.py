"""Two ways to run trials: each in a process of its own, or all in this one."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorakit import errors
from lorakit.errors import ConfigError, LorakitError, OutputError, TrialError
from lorakit.experiments.folder import ERROR, LOG, RESULT, TIED, begin, earlier_outcome, work
from lorakit.experiments.spec import Outcome, Report, Runner, Trial

_LAST_LINES = 6


def processes(root: Path, *, workers: int = 1, report: Report = lambda event: None) -> Runner:
    """A runner that gives every trial a fresh process, at most `workers` at a time.

    Nothing of this process is carried into them, so that their memory is their own. They end with
    this process, however it ends.

    Args:
        root: where the trials' folders lie; one command at a time may use it.
        workers: processes at once. Each gets its share of the cores as threads, unless
            OMP_NUM_THREADS says how many.
        report: told "begin" and "end" of each trial and all that its worker reports, each with
            the trial's "key" and "label".

    Raises:
        ConfigError: `workers` is below 1.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1; it is {workers}")

    def run(trials: Sequence[Trial]) -> Iterator[Outcome]:
        with _locked(root):
            outcomes, missing = _sorted(root, trials)
            yield from outcomes
            children = _Children(root, report, threads_of(min(workers, len(missing))))
            pool = ThreadPoolExecutor(workers)
            waiting = [pool.submit(children.run, trial) for trial in missing]
            try:
                for done in as_completed(waiting):
                    yield done.result()
            finally:
                for future in waiting:
                    future.cancel()
                children.end()
                pool.shutdown()

    return run


def in_process(root: Path, *, report: Report = lambda event: None) -> Runner:
    """A runner that does the trials one after the other in this process: for tests and notebooks.

    What a trial measures of its process is then that of all trials together.
    """

    def run(trials: Sequence[Trial]) -> Iterator[Outcome]:
        with _locked(root):
            outcomes, missing = _sorted(root, trials)
            yield from outcomes
            for trial in missing:
                tell = _named(report, trial)
                folder = begin(root, trial)
                tell({"kind": "begin"})
                # Through JSON, as from a process: a tuple would come back as a list there too.
                result = json.loads(json.dumps(work(folder, tell)))
                tell({"kind": "end"})
                yield Outcome(trial, result, folder, False)

    return run


def threads_of(workers: int) -> dict[str, str]:
    """Environment variables by which so many processes share the cores; none for one alone.

    Two processes with as many threads as there are cores each would wait for one another in every
    product.
    """
    if workers < 2 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}


def _sorted(root: Path, trials: Sequence[Trial]) -> tuple[list[Outcome], list[Trial]]:
    """Distinct trials: those that were done before, and those still to do."""
    distinct = {trial.key: trial for trial in trials}
    earlier = {key: earlier_outcome(root, trial) for key, trial in distinct.items()}
    outcomes = [outcome for outcome in earlier.values() if outcome is not None]
    return outcomes, [trial for key, trial in distinct.items() if earlier[key] is None]


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock", timeout=0):
            yield
    except Timeout:
        raise OutputError(
            f"another lorakit command is running the trials in {root}: wait for it, or give "
            "another --out"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot use the folder {root}: {error.strerror}") from None


def _named(report: Report, trial: Trial) -> Report:
    about = {"key": trial.key, "label": trial.label}
    return lambda event: report({**event, **about})


class _Children:
    """The processes of the trials that are running."""

    def __init__(self, root: Path, report: Report, threads: Mapping[str, str]) -> None:
        self._root, self._report, self._threads = root, report, threads
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def run(self, trial: Trial) -> Outcome:
        folder = begin(self._root, trial)
        tell = _named(self._report_one_at_a_time, trial)
        with (folder / LOG).open("w", encoding="utf-8") as log:
            with self._lock:
                if self._ended:
                    raise TrialError(f"{trial.label}: not begun")
                child = subprocess.Popen(
                    [sys.executable, "-m", "lorakit.experiments.worker", str(folder), TIED],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    env={**os.environ, **self._threads},
                    # Ctrl-C is for this process, which then ends the others.
                    start_new_session=True,
                )
                self._running.add(child)
            tell({"kind": "begin"})
            with child:
                assert child.stdout is not None
                for line in child.stdout:
                    tell(json.loads(line))
                child.wait()
            with self._lock:
                self._running.discard(child)
        if child.returncode != 0:
            raise _failure(trial, folder, child.returncode)
        tell({"kind": "end"})
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return Outcome(trial, result, folder, False)

    def end(self) -> None:
        """Kill what is running."""
        with self._lock:
            self._ended = True
            for child in self._running:
                child.kill()

    def _report_one_at_a_time(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._report(event)


def _failure(trial: Trial, folder: Path, code: int) -> LorakitError:
    """What a process that ended without a result said, as the error that it was."""
    name = trial.label or trial.key
    try:
        error = json.loads((folder / ERROR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        last = "\n".join(lines[-_LAST_LINES:])
        how = f"it ended with code {code}"
        if code < 0:
            how = f"it was killed by {signal.Signals(-code).name}"
            how += " (too little memory?)" if -code == signal.SIGKILL else ""
        return TrialError(f"{name}: {how}" + (f"; the end of its log:\n{last}" if last else ""))
    kind = getattr(errors, error["kind"], TrialError)
    where = "" if kind is not TrialError else f" (all of it in {folder / LOG})"
    failure: LorakitError = kind(f"{name}: {error['message']}{where}")
    return failure
