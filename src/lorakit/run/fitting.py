"""Rows and a model in, trained parameters out: what the command and the notebook share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorakit.data import TokenTable, micro_batches, order, total_steps
from lorakit.models.attention import packed_attention
from lorakit.training import (
    FitResult,
    TrainSpec,
    auto_learning_rate,
    fit,
    held_out_loss,
    make_loss,
)

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


def fit_model(
    model: Any,
    train: TokenTable,
    held_out: TokenTable,
    spec: TrainSpec,
    *,
    steps: int,
    learning_rate: float,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    folder: Path | None = None,
    run: str = "",
    resume: bool = False,
) -> FitResult:
    """Train whatever in the model needs a gradient, on these rows; see `lorakit.training.fit`.

    The model is put into training mode and its packed attention for the time of the run, and
    comes back in eval mode.
    """
    device = model.device
    loss = make_loss(model)
    rows_of = _rows_of(len(train), spec.batch_size, steps, spec.seed)
    kept = [b.to(device) for b in micro_batches(held_out, range(len(held_out)), spec.batch_tokens)]
    if spec.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    try:
        with packed_attention(model):
            return fit(
                model,
                lambda step: [
                    batch.to(device)
                    for batch in micro_batches(train, rows_of(step), spec.batch_tokens)
                ],
                steps,
                spec,
                loss=loss,
                learning_rate=learning_rate,
                evaluate=(lambda: held_out_loss(model, kept, loss)) if kept else None,
                report=report,
                should_stop=should_stop,
                folder=folder,
                run=run,
                resume=resume,
            )
    finally:
        model.eval()
        if spec.activation_checkpointing:
            model.activation_checkpointing_disable()


def _rows_of(rows: int, batch_size: int, steps: int, seed: int) -> Callable[[int], tuple[int, ...]]:
    """The rows of any step; steps asked for in turn cost one draw an epoch."""
    iterator, at = order(rows, batch_size, steps=steps, seed=seed), 0

    def rows_of(step: int) -> tuple[int, ...]:
        nonlocal iterator, at
        if step != at:
            iterator, at = order(rows, batch_size, steps=steps, seed=seed, start_step=step), step
        at += 1
        return next(iterator)

    return rows_of
