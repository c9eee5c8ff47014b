"""A trial and its outcome, as values; the interface that runs them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Report = Callable[[Mapping[str, Any]], None]

Worker = Callable[[Mapping[str, Any], Mapping[str, Any], Path, Report], dict[str, Any]]
"""(spec, where, the trial's own folder, report) -> the result, as plain JSON."""


@dataclass(frozen=True)
class Trial:
    """One piece of work, not yet done.

    Attributes:
        worker: "package.module:function", a `Worker`.
        spec: plain JSON; all that the result depends on.
        where: plain JSON that the result does not depend on, such as where the rows lie.
        label: what a person calls it.
    """

    worker: str
    spec: Mapping[str, Any]
    where: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the SHA-256 of worker and spec: the trial's folder."""
        text = json.dumps([self.worker, self.spec], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as trial.json holds it."""
        return {
            "worker": self.worker,
            "spec": self.spec,
            "where": self.where,
            "label": self.label,
        }


@dataclass(frozen=True)
class Outcome:
    """A trial that has ended.

    Attributes:
        trial: what was asked for.
        result: what its worker returned.
        folder: the files that it left.
        resumed: whether the result was there already.
    """

    trial: Trial
    result: dict[str, Any]
    folder: Path
    resumed: bool


Runner = Callable[[Sequence[Trial]], Iterator[Outcome]]
"""Run these and give me each outcome as it ends, in any order.

Equal trials are run once and come out once. Raises what a worker raised, or TrialError where a
process ended without a result; those that had ended before are kept.
"""


def in_order(runner: Runner, trials: Sequence[Trial]) -> list[Outcome]:
    """The outcomes of these trials, in their order, once all have ended."""
    ended = {outcome.trial.key: outcome for outcome in runner(trials)}
    return [ended[trial.key] for trial in trials]
