"""A kind of trial: which function does it, what it is given, and what it returns."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lorakit.errors import OutputError
from lorakit.experiments.records import RecordError, from_json, to_json
from lorakit.experiments.spec import Outcome, Report, Runner, Trial, Worker, in_order
from lorakit.experiments.stamps import Sources

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True)
class TrialKind(Generic[Request, Result]):
    """Trials of one worker.

    Attributes:
        worker: "package.module:function", a function that `typed` decorates.
        request: frozen dataclass; all that the result depends on.
        result: frozen dataclass.
    """

    worker: str
    request: type[Request]
    result: type[Result]

    def trial(self, request: Request, sources: Sources, label: str) -> Trial:
        """The trial, as the plain JSON that trial.json holds."""
        return Trial(self.worker, to_json(request), to_json(sources), label)

    def result_of(self, outcome: Outcome) -> Result:
        """The result of one of its trials.

        Raises:
            OutputError: another version of lorakit wrote the result.
        """
        try:
            return from_json(self.result, outcome.result, str(outcome.folder / "result.json"))
        except RecordError as error:
            raise OutputError(
                f"{error}. Another version of lorakit wrote it: remove {outcome.folder}, or give "
                "another --out"
            ) from None

    def run(self, runner: Runner, request: Request, sources: Sources, label: str) -> Result:
        """The result of a single trial."""
        (outcome,) = in_order(runner, [self.trial(request, sources, label)])
        return self.result_of(outcome)


def typed(
    request: type[Request],
) -> Callable[[Callable[[Request, Sources, Path, Report], Any]], Worker]:
    """Make a worker of a function that takes a request and returns a result, both dataclasses."""

    def decorate(function: Callable[[Request, Sources, Path, Report], Any]) -> Worker:
        @functools.wraps(function)
        def worker(
            spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
        ) -> dict[str, Any]:
            typed_request = from_json(request, spec, f"the spec of the trial {folder.name}")
            sources = from_json(Sources, where, f"the sources of the trial {folder.name}")
            result: dict[str, Any] = to_json(function(typed_request, sources, folder, report))
            return result

        return worker

    return decorate
