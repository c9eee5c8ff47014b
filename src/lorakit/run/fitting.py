"""Rows and a model in, trained parameters out: what the command and the notebook share."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorakit import forecast as forecasting
from lorakit.data import Batch, TokenTable, micro_batches, order, total_steps
from lorakit.errors import ConfigError, DivergedError
from lorakit.execution.packed import packed_attention
from lorakit.lora.jobs import Jobs
from lorakit.run.machine import available_memory
from lorakit.training import (
    Course,
    FitResult,
    Loss,
    TrainSpec,
    auto_learning_rate,
    fit,
    fit_jobs,
    fused_blocks,
    held_out_loss,
    make_joint_loss,
    make_loss,
    numbers_kept,
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
class Outlook:
    """What a run needs before it starts, and whether it recomputes activations for it.

    Attributes:
        forecast: parameters, FLOPs, memory and time.
        recompute: activation checkpointing, 'auto' resolved.
        note: what the user should know of that, '' for nothing.
    """

    forecast: forecasting.Forecast
    recompute: bool
    note: str


def outlook(
    model: Any,
    table: TokenTable,
    spec: TrainSpec,
    *,
    steps: int,
    trainable: int,
    full: bool = False,
) -> Outlook:
    """Forecast the training of a model on these rows.

    Args:
        model: the base, or one with pairs attached.
        table: the rows.
        spec: the schedule.
        steps: optimizer steps.
        trainable: parameters of the adapter; all of the model's for full fine-tuning.
        full: every parameter of the base is trained.
    """
    shape = forecasting.shape_of(model)
    lengths = table.lengths
    rows = min(spec.batch_size, len(lengths))
    tokens_a_step = rows * float(lengths.mean())
    # The largest step of a run lies about two standard deviations above the mean.
    largest_step = tokens_a_step + 2 * math.sqrt(rows) * float(lengths.std())
    kept = numbers_kept(model, lengths.tolist())
    rate = forecasting.matmul_rate(shape, model.dtype, model.device)
    elementwise = forecasting.elementwise_rate(shape, model.dtype, model.device)
    bytes_rate = forecasting.memory_rate(model.device) if full else None

    def made(recompute: bool) -> forecasting.Forecast:
        return forecasting.forecast(
            shape,
            trainable,
            lengths.tolist(),
            table.loss_tokens,
            epochs_tokens=int(steps * tokens_a_step),
            batch_tokens=int(min(max(spec.batch_tokens, lengths.max()), largest_step)),
            dtype=model.dtype,
            rate=rate,
            elementwise=elementwise,
            numbers_kept=kept,
            recompute=recompute,
            full=full,
            steps=steps,
            bytes_rate=bytes_rate,
        )

    if spec.activation_checkpointing != "auto":
        return Outlook(made(spec.activation_checkpointing), spec.activation_checkpointing, "")
    plain, there = made(False), available_memory(model.device)
    if plain.peak_memory_bytes <= MEMORY_SHARE * there:
        return Outlook(plain, False, "")
    less = made(True)
    return Outlook(
        less,
        True,
        f"activation checkpointing is on: without it {plain.peak_memory_bytes / 1e9:.1f} GB would "
        f"be needed of {there / 1e9:.1f} GB, with it {less.peak_memory_bytes / 1e9:.1f} GB; fewer "
        "--batch-tokens need less memory too",
    )


def fit_model(
    model: Any,
    train: TokenTable,
    held_out: TokenTable,
    spec: TrainSpec,
    *,
    steps: int,
    learning_rate: float,
    recompute: bool = False,
    evaluate: Callable[[], float] | None = None,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    folder: Path | None = None,
    run: str = "",
    resume: bool = False,
) -> FitResult:
    """Train whatever in the model needs a gradient, on these rows; see `lorakit.training.fit`.

    The model is put into training mode and its packed attention for the time of the run, and
    comes back in eval mode.

    Args:
        recompute: activation checkpointing; see `outlook` for the spec's 'auto'.
        evaluate: asked in place of the loss on `held_out`, within packed attention.
    """
    loss = make_loss(model)
    held_out = held_out.take(()) if evaluate is not None else held_out
    with training(model, recompute):
        return fit(
            model,
            batches_of(model, train, spec, steps),
            steps,
            spec,
            loss=loss,
            learning_rate=learning_rate,
            evaluate=_evaluation(model, held_out, spec, loss) or evaluate,
            report=report,
            should_stop=should_stop,
            folder=folder,
            run=run,
            resume=resume,
        )


@dataclass(frozen=True)
class Work:
    """One of several runs that are done at once; the fields are arguments of `fit_model`.

    `until` lets a run rest after that step, with a checkpoint, to be gone on from.
    """

    train: TokenTable
    held_out: TokenTable
    spec: TrainSpec
    steps: int
    learning_rate: float
    report: Report = lambda event: None
    should_stop: Callable[[], bool] = lambda: False
    folder: Path | None = None
    run: str = ""
    resume: bool = False
    until: int | None = None


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
        jobs: the pairs; in each are afterwards the parameters that its spec keeps.
        works: of each job.
        batch_tokens: most tokens of a forward pass.
        recompute: activation checkpointing.
        ended: told of each job as it leaves.

    Raises:
        ModelError: this model's runs cannot share a pass; the message says why.
        ConfigError: dropout together with activation checkpointing.
    """
    model: Any = jobs.model
    loss, alone = make_joint_loss(model), make_loss(model)
    if recompute and any(x.dropout for layers in jobs.layers for x in layers.values()):
        raise ConfigError(
            "dropout of several jobs cannot be repeated by activation checkpointing: turn one of "
            "them off (--dropout 0, --no-activation-checkpointing), or train them one by one"
        )

    def evaluation(job: int, work: Work) -> Callable[[], float] | None:
        measured = _evaluation(model, work.held_out, work.spec, alone)
        if measured is None:
            return None

        def evaluate() -> float:
            with jobs.alone(job):
                return measured()

        return evaluate

    with jobs.together(), training(model, recompute):
        courses = [
            Course(
                model,
                jobs.parameters(job),
                batches_of(model, work.train, work.spec, work.steps),
                work.steps,
                work.spec,
                learning_rate=work.learning_rate,
                evaluate=evaluation(job, work),
                report=work.report,
                should_stop=work.should_stop,
                folder=work.folder,
                run=work.run,
                resume=work.resume,
                until=work.until,
                look=partial(jobs.alone, job),
            )
            for job, work in enumerate(works)
        ]
        return fit_jobs(jobs, courses, loss=loss, batch_tokens=batch_tokens, ended=ended)


@contextmanager
def training(model: Any, recompute: bool) -> Iterator[None]:
    """Within the block training mode, packed attention and the hot path; then eval mode."""
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    try:
        with packed_attention(model), fused_blocks(model, recompute=recompute):
            yield
    finally:
        model.eval()
        if recompute:
            model.activation_checkpointing_disable()


def _evaluation(
    model: Any, held_out: TokenTable, spec: TrainSpec, loss: Loss
) -> Callable[[], float] | None:
    """The loss on held-out rows, or None where there are none."""
    batches = micro_batches(held_out, range(len(held_out)), spec.batch_tokens)
    kept = [batch.to(model.device) for batch in batches]
    return (lambda: held_out_loss(model, kept, loss)) if kept else None


def batches_of(
    model: Any, train: TokenTable, spec: TrainSpec, steps: int
) -> Callable[[int], list[Batch]]:
    """The micro-batches of any step, on the model's device."""
    rows_of = batch_rows(len(train), spec.batch_size, steps, spec.seed)
    return lambda step: [
        batch.to(model.device) for batch in micro_batches(train, rows_of(step), spec.batch_tokens)
    ]


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
