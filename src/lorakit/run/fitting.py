"""Rows and a model in, trained parameters out: what the command and the notebook share."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lorakit import forecast as forecasting
from lorakit.data import Batch, TokenTable, order, total_steps
from lorakit.errors import ConfigError, DivergedError
from lorakit.execution.runnable import Runnable
from lorakit.files.wording import size
from lorakit.lora.jobs import Jobs
from lorakit.run.machine import available_memory
from lorakit.tasks import CAUSAL_LM, Task
from lorakit.training import (
    Checkpoints,
    Course,
    FitResult,
    JointLoss,
    Loss,
    Observers,
    Schedule,
    TrainSpec,
    auto_learning_rate,
    fit,
    fit_jobs,
    guard_of,
    held_out_loss,
)

# The forecast is good to about a tenth, and other programs want some memory too.
MEMORY_SHARE = 0.85

Report = Callable[[Mapping[str, Any]], None]


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
    return auto_learning_rate(text.hidden_size, steps, family=text.model_type, full=full)


@dataclass(frozen=True)
class RunEstimate:
    """What a run needs before it starts, and whether it recomputes activations for it.

    Attributes:
        forecast: parameters, FLOPs, memory and time.
        recompute: activation checkpointing, 'auto' resolved.
        note: what the user should know of that, '' for nothing.
    """

    forecast: forecasting.Forecast
    recompute: bool
    note: str


def estimate_run(
    model: Any,
    table: TokenTable,
    spec: TrainSpec,
    *,
    steps: int,
    trainable: int,
    full: bool = False,
) -> RunEstimate:
    """Forecast the training of a model on these rows.

    Args:
        model: the base, or one with pairs attached.
        table: the rows.
        spec: the schedule.
        steps: optimizer steps.
        trainable: parameters of the adapter; all of the model's for full fine-tuning.
        full: every parameter of the base is trained.
    """
    lengths = table.lengths.tolist()
    return estimate(
        forecasting.shape_of(model),
        lengths,
        table.loss_tokens,
        spec,
        steps=steps,
        trainable=trainable,
        dtype=model.dtype,
        device=model.device,
        kept=Runnable(model).elements_kept(lengths),
        full=full,
    )


def estimate(
    shape: forecasting.ModelShape,
    lengths: Sequence[int],
    loss_tokens: int,
    spec: TrainSpec,
    *,
    steps: int,
    trainable: int,
    dtype: torch.dtype,
    device: torch.device,
    kept: float | None,
    full: bool = False,
    measured_tokens: int = 1024,
) -> RunEstimate:
    """Forecast the training of a model of this shape on rows of these lengths.

    Args:
        shape: of the base.
        lengths: tokens of each row.
        loss_tokens: supervised tokens among them.
        spec: the schedule.
        steps: optimizer steps.
        trainable: as for `estimate_run`.
        dtype: of the base.
        device: where it computes; its rates are measured.
        kept: elements for the backward pass of each token, None where blocks do not run fused.
        full: every parameter of the base is trained.
        measured_tokens: of each product by which the rates are measured.
    """
    rows, mean = min(spec.batch_size, len(lengths)), statistics.fmean(lengths)
    tokens_a_step = rows * mean
    # The largest step of a run lies about two standard deviations above the mean.
    largest_step = tokens_a_step + 2 * math.sqrt(rows) * statistics.pstdev(lengths, mean)
    rate = forecasting.matmul_rate(shape, dtype, device, tokens=measured_tokens)
    elementwise = forecasting.elementwise_rate(shape, dtype, device, tokens=measured_tokens)
    bytes_rate = forecasting.memory_rate(device) if full else None

    def made(recompute: bool) -> forecasting.Forecast:
        return forecasting.forecast(
            shape,
            trainable,
            lengths,
            loss_tokens,
            epochs_tokens=int(steps * tokens_a_step),
            batch_tokens=int(min(max(spec.batch_tokens, max(lengths)), largest_step)),
            dtype=dtype,
            rate=rate,
            elementwise=elementwise,
            elements_kept=kept,
            recompute=recompute,
            full=full,
            steps=steps,
            bytes_rate=bytes_rate,
        )

    if spec.activation_checkpointing != "auto":
        return RunEstimate(made(spec.activation_checkpointing), spec.activation_checkpointing, "")
    plain, there = made(False), available_memory(device)
    if plain.peak_memory_bytes <= MEMORY_SHARE * there:
        return RunEstimate(plain, False, "")
    less = made(True)
    return RunEstimate(
        less,
        True,
        f"activation checkpointing is on: without it {size(plain.peak_memory_bytes)} would be "
        f"needed of {size(there)}, with it {size(less.peak_memory_bytes)}; fewer "
        "--batch-tokens need less memory too",
    )


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
    """
    loss, observers = task.loss(model, recompute=recompute), observers or Observers()
    if observers.evaluate is None:
        evaluate = _evaluation(task, model, held_out, schedule.spec, loss)
        observers = replace(observers, evaluate=evaluate)
    try:
        return fit(
            model,
            batches_of(task, model, train, schedule.spec, schedule.steps),
            schedule,
            loss=loss,
            observers=observers,
            checkpoints=checkpoints,
        )
    finally:
        Runnable(model).rest()


@dataclass(frozen=True)
class Work:
    """One of several runs that are done at once; the fields are arguments of `fit_model`."""

    train: TokenTable
    held_out: TokenTable
    schedule: Schedule
    observers: Observers = field(default_factory=Observers)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)


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
    loss = JointLoss(jobs, recompute=recompute)
    if recompute and any(x.dropout for layers in jobs.layers for x in layers.values()):
        raise ConfigError(
            "dropout of several jobs cannot be repeated by activation checkpointing: turn one of "
            "them off (--dropout 0, --no-activation-checkpointing), or train them one by one"
        )

    def course(job: int, work: Work) -> Course:
        spec, steps = work.schedule.spec, work.schedule.steps
        evaluate = _evaluation(CAUSAL_LM, model, work.held_out, spec, loss.of_job(job))
        return Course(
            jobs.parameters(job),
            batches_of(CAUSAL_LM, model, work.train, spec, steps),
            work.schedule,
            replace(work.observers, evaluate=evaluate),
            work.checkpoints,
            guard=guard_of(jobs, job),
        )

    try:
        courses = [course(job, work) for job, work in enumerate(works)]
        return fit_jobs(jobs, courses, loss=loss, batch_tokens=batch_tokens, ended=ended)
    finally:
        loss.runnable.rest()


def _evaluation(
    task: Task, model: Any, held_out: TokenTable, spec: TrainSpec, loss: Loss
) -> Callable[[], float] | None:
    """The loss on held-out rows, or None where there are none."""
    batches = task.batches(held_out, range(len(held_out)), spec.batch_tokens, model.device)
    return (lambda: held_out_loss(batches, loss)) if batches else None


def batches_of(
    task: Task, model: Any, train: TokenTable, spec: TrainSpec, steps: int
) -> Callable[[int], list[Batch]]:
    """The micro-batches of any step, on the model's device."""
    rows_of = batch_rows(len(train), spec.batch_size, steps, spec.seed)
    return lambda step: task.batches(train, rows_of(step), spec.batch_tokens, model.device)


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
