"""What is known of the pairs that are attached to a model in memory, beside their numbers.

It is kept by the first adapted layer: an adapter that is attached later never takes it over.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from lorakit.adapters.asking import mapping_in
from lorakit.adapters.info import AdapterInfo
from lorakit.adapters.moments import StoredMoments, read_moments
from lorakit.adapters.trained_rows import TrainedRows, read_trained_rows
from lorakit.lora import lora_layers

_loaded: WeakKeyDictionary[nn.Module, AdapterInfo] = WeakKeyDictionary()
_mappings: WeakKeyDictionary[nn.Module, Mapping[str, Any]] = WeakKeyDictionary()
_templates: WeakKeyDictionary[nn.Module, Mapping[str, Any]] = WeakKeyDictionary()
_moments: WeakKeyDictionary[nn.Module, StoredMoments] = WeakKeyDictionary()
_rows: WeakKeyDictionary[nn.Module, TrainedRows] = WeakKeyDictionary()


def remember_loaded(model: nn.Module, info: AdapterInfo) -> None:
    """Keep what `load_adapter` said of the pairs."""
    _loaded[_first(model)] = info


def loaded_info(model: nn.Module) -> AdapterInfo | None:
    """What `load_adapter` said of the pairs; None where they were attached another way."""
    return _loaded.get(_first(model)) if lora_layers(model) else None


def remember_template(model: nn.Module, template: Mapping[str, Any]) -> None:
    """Keep the template that the pairs were trained with, in JSON's types."""
    _templates[_first(model)] = dict(template)


def attached_template(model: nn.Module) -> Mapping[str, Any] | None:
    """The template that the pairs were trained with, here or before they were loaded; None if unknown."""
    if not lora_layers(model):
        return None
    info = _loaded.get(_first(model))
    recorded = info.provenance.get("template") if info and info.provenance else None
    return _templates.get(_first(model), recorded)


def remember_mapping(model: nn.Module, mapping: Mapping[str, Any]) -> None:
    """Keep how the rows were mapped that the pairs were trained on, by option."""
    _mappings[_first(model)] = dict(mapping)


def attached_mapping(model: nn.Module) -> Mapping[str, Any]:
    """How the rows were mapped that the pairs were trained on, here or before they were loaded."""
    if not lora_layers(model):
        return {}
    info = _loaded.get(_first(model))
    return _mappings.get(_first(model), mapping_in(info.provenance if info else None))


def remember_moments(model: nn.Module, moments: StoredMoments | None) -> None:
    """Keep what AdamW remembers of the pairs; None where they were made another way."""
    if moments is None:
        _moments.pop(_first(model), None)
    else:
        _moments[_first(model)] = moments


def trained_moments(model: nn.Module) -> StoredMoments | None:
    """AdamW's moments of the pairs, where they were trained in this process."""
    return _moments.get(_first(model)) if lora_layers(model) else None


def attached_moments(model: nn.Module) -> tuple[StoredMoments | None, str]:
    """AdamW's moments of the pairs, of training here or in the folder that they were loaded from.

    Returns:
        The moments, and why a file that is there cannot be used, '' for no such reason.
    """
    known, info = trained_moments(model), loaded_info(model)
    if known is not None or info is None:
        return known, ""
    return read_moments(info.folder, lora_layers(model), info.tensors_sha256)


def remember_rows(model: nn.Module, rows: TrainedRows | None) -> None:
    """Keep which rows the pairs were trained on; None where nothing is known of them."""
    if rows is None:
        _rows.pop(_first(model), None)
    else:
        _rows[_first(model)] = rows


def attached_rows(model: nn.Module) -> tuple[TrainedRows | None, str]:
    """The rows that the pairs were trained on, here or before they were loaded.

    Returns:
        The rows, and why a file that is there cannot be used, '' for no such reason.
    """
    if not lora_layers(model):
        return None, ""
    known, info = _rows.get(_first(model)), loaded_info(model)
    if known is not None or info is None:
        return known, ""
    return read_trained_rows(info.folder, info.tensors_sha256)


def _first(model: nn.Module) -> nn.Module:
    return next(iter(lora_layers(model).values()))
