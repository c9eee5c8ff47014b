"""A training run that could start, and the figures of one that has ended."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.config import RunConfig
from lorakit.data import Dataset
from lorakit.execution.runnable import Runnable
from lorakit.execution.twins import twin_of
from lorakit.forecast import Forecast
from lorakit.lora import Plan, lora_layers
from lorakit.lora.initialising import notes_of
from lorakit.run.continuing import Parent
from lorakit.run.estimating import RunEstimate
from lorakit.run.invocation_rows import invocation_notes
from lorakit.run.machine import machine, peak_memory, versions
from lorakit.run.merge_aware import rounding_notes
from lorakit.run.session import Session
from lorakit.tasks import Comparison
from lorakit.training import FitResult, TrainSpec


@dataclass(frozen=True)
class Prepared:
    """A run that could start: everything loaded and checked, nothing attached yet.

    Attributes:
        config: as it was asked for, with what a parent brings in its place.
        session: base model, tokenizer, identity, template.
        data: training and held-out rows as tokens.
        plan: what would be adapted.
        steps: optimizer steps.
        learning_rate: the peak, 'auto' resolved.
        estimate: parameters, memory and time expected, and whether activations are recomputed.
        parent: the adapter to go on from, or None.
    """

    config: RunConfig
    session: Session
    data: Dataset
    plan: Plan
    steps: int
    learning_rate: float
    estimate: RunEstimate
    parent: Parent | None = None

    @property
    def forecast(self) -> Forecast:
        """Parameters, memory and time expected."""
        return self.estimate.forecast

    def as_trained(self) -> "Prepared":
        """With the pairs that the model has: an initialisation may have given them ranks by the rows."""
        layers = lora_layers(self.session.model).values()
        targets = tuple(layer.target for layer in layers)
        return replace(self, plan=replace(self.plan, targets=targets))


def way_notes(session: Session, plan: Plan, spec: TrainSpec) -> list[str]:
    """Notes where rows are not packed, where pairs begin otherwise than at zero, where layers are rounded.

    Raises:
        InputError: layers cannot be rounded as the run asks for.
    """
    model = session.model
    why = Runnable(model).why_not_packed
    notes = [f"{type(model).__name__}: {why}"] if why else []
    notes += notes_of(plan.targets)
    return [*notes, *rounding_notes(model, plan.targets, spec, dropout=plan.spec.dropout)]


def end_notes(session: Session, data: Dataset, plan: Plan) -> list[str]:
    """A note for each token that ends answers and that this adapter cannot be taught to write, and
    where it acts, if not everywhere.

    Raises:
        DataError: a row has nothing that it acts on.
    """
    notes = invocation_notes(data.train, data.eval, plan.spec, session.tokenizer)
    model, decode = session.model, session.tokenizer.decode
    head = model.get_output_embeddings()
    heads = {path for path, module in model.named_modules() if module is head}
    if any(target.path in heads for target in plan.targets):
        return notes
    last = data.train.offsets[1:] - 1
    ends = np.unique(data.train.ids_N[last][data.train.weight_N[last] > 0]).tolist()
    for token in ends[:8]:
        twin = twin_of(model, token)
        if twin is not None:
            notes.append(
                f"{decode([token])!r}, which ends answers, has the same row in the model's output "
                f"head as {decode([twin])!r}: no adapter below the head can make the model write the "
                "one and not the other, and answers will not end. Take a template that ends turns "
                "with a token that the model was trained with"
            )
    return notes


def training_figures(
    ready: Prepared,
    fitted: FitResult,
    scores: Comparison,
    choices: Sequence[Mapping[str, Any] | None],
    *,
    command: str,
    started: float,
) -> dict[str, Any]:
    """The figures of a finished run; docs/results.md has a line for each.

    Args:
        ready: what was trained.
        fitted: what the training came to.
        scores: of the sample answers.
        choices: the likelihood of labels before and after; two times None without labels.
        command: how to repeat the run.
        started: of the whole, by `time.perf_counter`.
    """
    config, session, data, spec = ready.config, ready.session, ready.data, ready.config.train
    device = session.model.device
    rate = fitted.tokens / fitted.seconds
    result: dict[str, Any] = {
        "command": command,
        "model": session.identity.name,
        "adapter": str(Path(config.output.out) / "adapter"),
        "saved_as": None,  # known once the adapter is written
        "current": False,  # likewise
        "parent": ready.parent.to_dict() if ready.parent else None,
        "rank": config.lora.rank,
        "alpha": config.lora.alpha,
        "targets": list(config.lora.targets),
        "learning_rate": ready.learning_rate,
        "rows_run": Runnable(session.model).way,
        "probe": None,  # of a parent, see `lorakit.run.beginning`
        "new_rows": None,  # likewise
        "against_parent": None,  # likewise
        "seed": spec.seed,
        "rows": len(data.train),
        "eval_rows": len(data.eval),
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "stopped_early": fitted.stopped_early,
        "train_loss": fitted.train_loss,
        "eval_loss": fitted.eval_loss,
        "eval_loss_before": fitted.eval_loss_before,
        "scores_before": scores.before.values if scores.before else {},
        "scores_after": scores.after.values if scores.after else {},
        "scores_change": {name: change.to_dict() for name, change in scores.changes.items()},
        "headline": scores.after.headline.name if scores.after else None,
        "choices_before": choices[0],
        "choices_after": choices[1],
        "max_new_tokens": scores.after.limit if scores.after else None,
        "trainable_parameters": ready.plan.trainable,
        "total_parameters": ready.plan.total_parameters,
        "optimizer_state_bytes": fitted.state_bytes,
        "tokens": fitted.tokens,
        "real_tokens_per_second": rate,
        "fraction_of_limit": rate * ready.forecast.flops_per_token / ready.forecast.matmul_flops,
        "peak_memory_bytes": peak_memory(device),
        "train_seconds": fitted.seconds,
        "seconds": time.perf_counter() - started,
        "forecast": ready.forecast.to_dict(),
        "template": session.template.to_dict(),
        "data_sha256": data.data_sha256,
        "versions": versions(),
        "machine": machine(device, session.model),
        "layers": [
            {
                "path": target.path,
                "in_features": target.geometry.in_features,
                "out_features": target.geometry.out_features,
                "rank": target.rank,
                "trainable": target.trainable,
            }
            for target in ready.plan.targets
        ],
        "notes": _notes(ready, fitted, scores),
    }
    return result


def _notes(ready: Prepared, fitted: FitResult, scores: Comparison) -> list[str]:
    """What was decided or noticed on the way, one sentence each."""
    data = ready.data
    return [
        *data.notes,
        *([ready.estimate.note] if ready.estimate.note else []),
        *fitted.notes,
        *scores.notes,
    ]


def recorded_scores(scores: Comparison) -> dict[str, Any]:
    """What an adapter keeps of its scores: the values, and which of them to show first."""
    if scores.after is None:
        return {"scores": {}}
    return {"scores": scores.after.values, "headline": scores.after.headline.name}
