"""Rows and a model in, trained parameters out: what the command and the notebook share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorakit.data import Batch, TokenTable, order, total_steps
from lorakit.data.rehearsal import Rehearsal
from lorakit.errors import ConfigError, DivergedError
from lorakit.execution.runnable import Runnable
from lorakit.kernels import keeping
from lorakit.lora.acting import acting_on
from lorakit.lora.jobs import Jobs
from lorakit.models.dimensions import hidden_width
from lorakit.run.initialising import begin_from_rows
from lorakit.run.invocation_rows import check_invocations
from lorakit.tasks import CAUSAL_LM, Task
from lorakit.training import (
    Checkpoints,
    Course,
    FitResult,
    JointLoss,
    Loss,
    Moments,
    Observers,
    Schedule,
    TrainSpec,
    auto_learning_rate,
    fit,
    fit_jobs,
    guard_of,
    held_out_loss,
)
from lorakit.training.loss import token_loss
from lorakit.training.moments import of_embeddings
from lorakit.training.rates import rates_of

Report = Callable[[Mapping[str, Any]], None]
Orders = Callable[[int], Sequence[int]]
"""The rows of any step, by their indices."""


def steps_of(rows: int, spec: TrainSpec) -> int:
    """Optimizer steps of a run over so many rows."""
    if spec.max_steps is not None:
        return total_steps(rows, spec.batch_size, steps=spec.max_steps)
    return total_steps(rows, spec.batch_size, epochs=spec.epochs)


def peak_rate(model: Any, steps: int, spec: TrainSpec, *, full: bool = False) -> float:
    """The peak learning rate, 'auto' resolved by the rule in `auto_learning_rate`."""
    if spec.learning_rate != "auto":
        return float(spec.learning_rate)
    text = model.config.get_text_config()
    return auto_learning_rate(hidden_width(model), steps, family=text.model_type, full=full)


def fit_model(
    model: Any,
    train: TokenTable,
    held_out: TokenTable,
    schedule: Schedule,
    *,
    recompute: bool = False,
    task: Task = CAUSAL_LM,
    observers: Observers | None = None,
    checkpoints: Checkpoints | None = None,
    moments: Moments | None = None,
    keep_moments: bool = False,
    evaluated: bool = True,
    rehearsal: Rehearsal | None = None,
) -> FitResult:
    """Train whatever in the model needs a gradient, on these rows; see `lorakit.training.fit`.

    The model comes back in evaluation mode.

    Args:
        model: a causal LM.
        train: rows to train on.
        held_out: rows that `observers.evaluate` is the loss on, where it is not given.
        schedule: steps, peak rate and the rest.
        recompute: activation checkpointing; see `estimate_run` for the spec's 'auto'.
        task: what it is trained for.
        observers: who looks.
        checkpoints: where the run is kept.
        moments: AdamW's, of the run that this one goes on from.
        keep_moments: give back the moments of the parameters that are kept.
        evaluated: whether the held-out rows are measured at all.
        rehearsal: which rows are taken more often than others; None takes all alike.
    """
    if (acting := acting_on(model)) is not None:
        check_invocations((train, held_out), acting.invocation)
    observers, spec = observers or Observers(), schedule.spec
    rows_of = batches_of(task, model, train, spec, schedule.steps, rehearsal)
    begun = begin_from_rows(model, rows_of, schedule.steps)
    for note in begun:
        observers.report({"kind": "note", "text": note})
    loss = task.loss(model, spec, recompute=recompute)
    if evaluated and observers.evaluate is None:
        evaluate = _evaluation(task, model, held_out, spec, loss)
        observers = replace(observers, evaluate=evaluate)
    try:
        fitted = fit(
            model,
            rows_of,
            schedule,
            loss=loss,
            observers=observers,
            checkpoints=checkpoints,
            moments=moments,
            keep_moments=keep_moments,
        )
        return replace(fitted, notes=(*begun, *fitted.notes))
    finally:
        Runnable(model).rest()
        keeping.forget()


@dataclass(frozen=True)
class Work:
    """One of several runs that are done at once; the fields are arguments of `fit_model`."""

    train: TokenTable
    held_out: TokenTable
    schedule: Schedule
    observers: Observers = field(default_factory=Observers)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    moments: Moments | None = None
    rehearsal: Rehearsal | None = None


def fit_models(
    jobs: Jobs,
    works: Sequence[Work],
    *,
    batch_tokens: int,
    recompute: bool = False,
    ended: Callable[[int, FitResult | DivergedError], None] = lambda job, how: None,
) -> tuple[FitResult | DivergedError, ...]:
    """Train several jobs on one base at once; see `lorakit.training.fit_jobs`.

    Args:
        jobs: the pairs; in each are afterwards the parameters that its spec keeps. The joint
            layers stand in the model.
        works: of each job.
        batch_tokens: most tokens of a forward pass.
        recompute: activation checkpointing.
        ended: told of each job as it leaves.

    Raises:
        ModelError: this model's runs cannot share a pass; the message says why.
        ConfigError: dropout together with activation checkpointing.
    """
    model: Any = jobs.model
    jobs.install_all()
    kinds = [token_loss(work.schedule.spec) for work in works]
    loss = JointLoss(jobs, recompute=recompute, kinds=kinds)
    if recompute and any(x.dropout for layers in jobs.layers for x in layers.values()):
        raise ConfigError(
            "dropout of several jobs cannot be repeated by activation checkpointing: turn one of "
            "them off (--dropout 0, --activation-checkpointing off), or train them one by one"
        )

    def course(job: int, work: Work) -> Course:
        spec, steps = work.schedule.spec, work.schedule.steps
        evaluate = _evaluation(CAUSAL_LM, model, work.held_out, spec, loss.of_job(job))
        return Course(
            jobs.parameters(job),
            batches_of(CAUSAL_LM, model, work.train, spec, steps, work.rehearsal),
            work.schedule,
            replace(work.observers, evaluate=evaluate),
            work.checkpoints,
            guard=guard_of(jobs, job),
            moments=work.moments,
            keep_moments=True,
            wide=of_embeddings(jobs.layers[job].values()),
            rates=rates_of(jobs.layers[job].values(), spec),
        )

    try:
        courses = [course(job, work) for job, work in enumerate(works)]
        return fit_jobs(jobs, courses, loss=loss, batch_tokens=batch_tokens, ended=ended)
    finally:
        loss.runnable.rest()
        keeping.forget()


def _evaluation(
    task: Task, model: Any, held_out: TokenTable, spec: TrainSpec, loss: Loss
) -> Callable[[], float] | None:
    """The loss on held-out rows, or None where there are none."""
    batches = task.batches(held_out, range(len(held_out)), spec.batch_tokens, model.device)
    return (lambda: held_out_loss(batches, loss)) if batches else None


def batches_of(
    task: Task,
    model: Any,
    train: TokenTable,
    spec: TrainSpec,
    steps: int,
    rehearsal: Rehearsal | None = None,
) -> Callable[[int], list[Batch]]:
    """The micro-batches of any step, on the model's device."""
    rows_of = orders_of(len(train), spec, steps, rehearsal)
    return lambda step: task.batches(train, rows_of(step), spec.batch_tokens, model.device)


def orders_of(rows: int, spec: TrainSpec, steps: int, rehearsal: Rehearsal | None = None) -> Orders:
    """The rows of any step: all alike, or as a rehearsal takes them."""
    if rehearsal is not None:
        return rehearsal.order(spec.batch_size, spec.seed)
    return batch_rows(rows, spec.batch_size, steps, spec.seed)


def batch_rows(
    rows: int, batch_size: int, steps: int, seed: int
) -> Callable[[int], tuple[int, ...]]:
    """The rows of any step; steps asked for in turn cost one draw an epoch."""
    iterator, at = order(rows, batch_size, steps=steps, seed=seed), 0

    def rows_of(step: int) -> tuple[int, ...]:
        nonlocal iterator, at
        if step != at:
            iterator, at = order(rows, batch_size, steps=steps, seed=seed, start_step=step), step
        at += 1
        return next(iterator)

    return rows_of
