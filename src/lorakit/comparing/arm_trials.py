"""Trials with training: a round of the probe, and a run of an arm with all that is measured of it."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.comparing.base_trials import REFERENCE
from lorakit.comparing.methods import prepare, save_trained
from lorakit.comparing.trials import (
    CoursePoint,
    GeneralLosses,
    ProbeRequest,
    ProbeResult,
    RunMeasured,
    RunRequest,
    RunResult,
    Training,
)
from lorakit.data import TokenTable
from lorakit.errors import DivergedError
from lorakit.evaluation.forgetting import BaseDistributions, Forgetting, forgetting, load_reference
from lorakit.evaluation.likelihood import per_token
from lorakit.experiments import Report
from lorakit.experiments.kinds import typed
from lorakit.experiments.measuring import (
    RowLosses,
    measure_rows,
    pace_of,
)
from lorakit.experiments.opening import TrialContext, ask_held_out, open_trial, split_validation
from lorakit.experiments.stamps import Sources
from lorakit.run.fitting import fit_model
from lorakit.run.folder import METRICS, MetricsFile
from lorakit.run.limits import give_back_memory
from lorakit.run.machine import peak_memory
from lorakit.training import FitResult, Observers, Schedule

# Most tokens of a forward pass in an evaluation. More would be faster, and would set the peak of
# memory of an arm whose training needs little.
EVALUATION_TOKENS = 512


@typed(ProbeRequest)
def probe(request: ProbeRequest, sources: Sources, folder: Path, report: Report) -> ProbeResult:
    """Train at one rate for the steps of one round, and give the loss on the validation rows.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial.
        report: told of the steps.
    """
    training = request.training
    context = open_trial(request.stamp, sources, training.method.base_dtype)
    seed = context.config.train.seed
    train, validation = split_validation(context.data.train, seed)
    prepare(context.model, training.method, seed)
    steps: list[Mapping[str, Any]] = []

    def observe(event: Mapping[str, Any]) -> None:
        if event["kind"] == "train":
            steps.append(event)
            report({**event, "steps": training.steps})

    loss, diverged = None, ""
    try:
        _fit(context, train, training, observe, seed=seed)
    except DivergedError as error:
        diverged = str(error)
    else:
        loss = measure_rows(context.model, validation, _evaluation_tokens(context)).loss
        # Weights may have become infinite in the last step, whose loss was that before it.
        if not math.isfinite(loss):
            loss, diverged = None, "not finite at the end"
    return ProbeResult(loss, diverged, pace_of(steps))


@typed(RunRequest)
def run(request: RunRequest, sources: Sources, folder: Path, report: Report) -> RunResult:
    """Train an arm with one seed, and measure all that the comparison reports.

    The peak of memory is that of the process from its start to the end of training, evaluations
    within it included; answers are generated and weights written after it is read. Leaves
    `metrics.jsonl`, and `adapter/` where an adapter was trained; a whole model is measured on disk
    and removed.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial; the base's trial lies beside it.
        report: told of the steps and stages.

    Raises:
        DivergedError: a loss stopped being finite at the rate that the probe chose.
    """
    training, method = request.training, request.training.method
    context = open_trial(request.stamp, sources, method.base_dtype)
    session = context.session
    train, _ = split_validation(context.data.train, context.config.train.seed)
    trained = prepare(session.model, method, request.seed)
    base = load_reference(folder.parent / request.base_trial / REFERENCE)
    # A base that is held in another way than the one that was measured begins elsewhere.
    course = CourseRecorder(context, base, None if method.base_dtype else request.before)
    with MetricsFile(folder / METRICS, keep=False) as metrics:

        def observe(event: Mapping[str, Any]) -> None:
            metrics(event)
            course.see(event)
            if event["kind"] in ("train", "eval"):
                report({**event, "steps": training.steps})

        fitted = _fit(
            context,
            train,
            training,
            observe,
            seed=request.seed,
            evaluations=request.evaluations,
            evaluate=course.evaluate,
        )
    peak = peak_memory(session.model.device)
    # Gradients and what the allocator holds go before the answers come, which else would be what
    # sets the peak of an arm that trains little.
    session.model.zero_grad(set_to_none=True)
    give_back_memory()
    report({"kind": "stage", "name": "answer"})
    asked = ask_held_out(context, request.asking.samples, request.asking.max_new_tokens)
    weights, on_disk = save_trained(session, method, folder, context.config)
    if method.kind == "full":
        shutil.rmtree(weights)
    held_out, general = course.last
    return RunResult(
        trainable_parameters=trained,
        optimizer_state_bytes=fitted.state_bytes,
        bytes_on_disk=on_disk,
        steps=fitted.steps,
        tokens=fitted.tokens,
        train_loss=fitted.train_loss,
        train_losses=tuple(event["loss"] for event in course.steps),
        held_out=held_out,
        general=GeneralLosses(
            tuple(general.kl_S.tolist()),
            tuple(general.loss_S.tolist()),
            tuple(general.tokens_S.tolist()),
        ),
        course=tuple(course.points),
        answers=asked.answers,
        scores=asked.scores,
        notes=tuple(fitted.notes),
        measured=RunMeasured(
            peak_memory_bytes=peak,
            process_peak_bytes=peak_memory(session.model.device),
            train_seconds=fitted.seconds,
            course_seconds=tuple(course.seconds_at),
            pace=pace_of(course.steps),
        ),
    )


def _fit(
    context: TrialContext,
    train: TokenTable,
    training: Training,
    observe: Report,
    *,
    seed: int,
    evaluations: int = 1,
    evaluate: Callable[[], float] | None = None,
) -> FitResult:
    """The same call for every arm: what differs is which parameters need a gradient."""
    spec = replace(
        context.config.train,
        seed=seed,
        keep="last",
        eval_every=-(-training.steps // evaluations),
        learning_rate=training.rate,
    )
    return fit_model(
        context.model,
        train,
        train.take(()),
        Schedule(training.steps, training.rate, spec),
        recompute=training.recompute,
        observers=Observers(evaluate=evaluate, report=observe),
    )


def _evaluation_tokens(context: TrialContext) -> int:
    return min(EVALUATION_TOKENS, context.config.train.batch_tokens)


class CourseRecorder:
    """Records learning and forgetting over a run: the loop calls it, and reports its steps to it.

    Args:
        context: base and rows.
        base: the base's distributions on the general rows.
        before: the point before the first step; None where it is to be measured.

    Attributes:
        steps: events of the steps.
        points: of the course so far.
        seconds_at: seconds of the steps up to each point.
    """

    def __init__(
        self, context: TrialContext, base: BaseDistributions, before: CoursePoint | None
    ) -> None:
        self._context, self._base, self._before = context, base, before
        self._seconds = 0.0
        self._last: tuple[RowLosses, Forgetting] | None = None
        self.steps: list[Mapping[str, Any]] = []
        self.points: list[CoursePoint] = []
        self.seconds_at: list[float] = []

    @property
    def last(self) -> tuple[RowLosses, Forgetting]:
        """Held-out and general rows as the last evaluation measured them."""
        assert self._last is not None
        return self._last

    def see(self, event: Mapping[str, Any]) -> None:
        """Take note of a step."""
        if event["kind"] == "train":
            self.steps.append(event)
            self._seconds += event["seconds"]

    def evaluate(self) -> float:
        """Held-out loss in nats per token."""
        if not self.steps and self._before is not None:
            # Nothing has moved yet: the arm begins as the base, which was measured once.
            self.points.append(self._before)
            self.seconds_at.append(0.0)
            return self._before.loss
        model, tokens = self._context.model, _evaluation_tokens(self._context)
        # What steps have freed in pieces an evaluation could not reuse; it would come on top.
        give_back_memory()
        held_out = measure_rows(model, self._context.data.eval, tokens)
        general = forgetting(model, self._base, tokens)
        self._last = held_out, general
        self.points.append(
            CoursePoint(
                step=len(self.steps),
                tokens=sum(step["tokens"] for step in self.steps),
                loss=held_out.loss,
                kl=per_token(general.kl_S, general.tokens_S),
                general_loss=per_token(general.loss_S, general.tokens_S),
            )
        )
        self.seconds_at.append(self._seconds)
        give_back_memory()
        return held_out.loss
