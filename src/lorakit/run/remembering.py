"""What is known of trained pairs beside their numbers, for saving and for going on: moments, and rows."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lorakit.adapters.attached import attached_moments, remember_moments, remember_rows
from lorakit.adapters.moments import StoredMoments, named_tensors
from lorakit.data import Dataset
from lorakit.lora import LoraLayer, lora_layers
from lorakit.lora.initialising import is_changed
from lorakit.run.fitting import orders_of
from lorakit.run.rehearsing import Rehearsing, trained_after
from lorakit.training import FitResult, Moments, TrainSpec


def unread(moments: str, rows: str) -> tuple[str, ...]:
    """Sentences for the reasons why an adapter's moments, and its record of rows, cannot be used."""
    return (
        *((f"the moments of the optimizer begin anew: {moments}",) if moments else ()),
        *((f"the rows that the parent was trained on are not known: {rows}",) if rows else ()),
    )


def moments_of(model: nn.Module) -> tuple[Moments | None, str]:
    """AdamW's moments of a model's pairs by parameter; and why a file of them cannot be used."""
    stored, why = attached_moments(model)
    return (None, why) if stored is None else (for_layers(stored, lora_layers(model)), why)


def for_layers(stored: StoredMoments, layers: Mapping[str, LoraLayer]) -> Moments:
    """Moments by the parameters of these pairs."""
    of = {_parameter(tensor): stored.of[name] for name, tensor in named_tensors(layers).items()}
    return Moments(stored.steps, stored.learning_rate, of)


def remember(
    model: nn.Module,
    fitted: FitResult,
    data: Dataset,
    steps: int,
    spec: TrainSpec,
    rehearsing: Rehearsing | None = None,
) -> None:
    """Keep what is known of the pairs that a run has left, for saving and for going on.

    That is what AdamW remembers of them, and which rows they were trained on.

    Args:
        model: with the pairs.
        fitted: what the run came to.
        data: its rows.
        steps: that its schedule spans.
        spec: of the run.
        rehearsing: of what the run's parent knew; None for fresh pairs.
    """
    moments, layers = fitted.moments, lora_layers(model)
    if not layers:
        return
    known = rehearsing or Rehearsing()
    orders = orders_of(len(data.train), spec, steps, known.rehearsal)
    remember_rows(model, trained_after(known.trained, data.train_hashes, orders, fitted.best_step))
    if moments is None or moments.steps == 0:
        remember_moments(model, None)
        return
    of = {
        name: moments.of[_parameter(tensor)]
        for name, tensor in named_tensors(layers).items()
        if _parameter(tensor) in moments.of
    }
    whole = len(of) == len(named_tensors(layers))
    kept = StoredMoments(moments.steps, moments.learning_rate, of) if whole else None
    remember_moments(model, kept)


def is_trained(model: nn.Module) -> bool:
    """Whether a model's pairs change anything: those that were only just attached do not."""
    return any(is_changed(layer) for layer in lora_layers(model).values())


def _parameter(tensor: Any) -> nn.Parameter:
    assert isinstance(tensor, nn.Parameter)
    return tensor
