"""A model's pairs -> an adapter folder in peft's format."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from lorakit.adapters.asking import asking_of
from lorakit.adapters.attached import (
    attached_mapping,
    attached_rows,
    attached_template,
    trained_moments,
)
from lorakit.adapters.beside import tensors_beside
from lorakit.adapters.naming import describe_parameters, describe_targets
from lorakit.adapters.packed_base import with_packing
from lorakit.adapters.pairs import Pair, StoredAdapter, write_stored
from lorakit.adapters.peft_config import PeftConfig
from lorakit.adapters.peft_experts import taken_of
from lorakit.adapters.peft_names import moved_for_peft
from lorakit.adapters.provenance import Identity, known_identity, make_record
from lorakit.errors import AdapterError
from lorakit.lora import lora_layers
from lorakit.lora.changing import changes_of
from lorakit.lora.parameters import bare_parameters
from lorakit.lora.unreadable import refused_by_peft
from lorakit.models.load import source_of

_log = logging.getLogger("lorakit.adapters")
_GENERATES = "transformers.generation.utils.GenerationMixin"
_TRANSFORMERS = "transformers.modeling_utils.PreTrainedModel"


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    identity: Identity | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the pairs of a model as an adapter folder that peft loads.

    The folder holds adapter_model.safetensors (A and B in their own dtype, float32 over any
    base below float64), adapter_config.json, README.md and lorakit.json; AdamW's moments where the
    pairs were trained here, in optimizer.safetensors; and which rows lorakit trained them on, in
    trained_rows.safetensors. It is written beside its place, flushed and renamed.

    Args:
        model: with pairs attached.
        folder: where; missing or empty, unless `overwrite`.
        identity: the base's fingerprint, recorded so that another base is refused; known
            without being given for a model that `load_model` made.
        provenance: what else to record, in JSON's types: template, data_sha256, config, metrics.
            The template and the mapping of rows are known without being given where lorakit trained
            or loaded the pairs.
        overwrite: replace what is there, once the new folder is whole.

    Returns:
        The folder.

    Raises:
        AdapterError: the model has no pairs.
        OutputError: the folder holds something, or cannot be written (a full disk).
        ConfigError: `provenance` holds something that JSON cannot.
    """
    identity = known_identity(model, identity)
    layers = lora_layers(model)
    if not layers:
        raise AdapterError("this model has no adapter attached: there is nothing to save")
    spec = next(iter(layers.values())).spec
    ties = [c for c in changes_of(model) if c.what.kind == "module" and len(c.what.names) > 1]
    spec = replace(spec, keep_ties=bool(ties) or not spec.modules_to_save)
    task_type, auto_mapping = _task(model)
    experts = [path for path, layer in layers.items() if layer.geometry.experts]
    dense = [path for path in layers if path not in experts]
    kinds = {path: layer.geometry.kind for path, layer in layers.items()}
    moved, lost = moved_for_peft(model, kinds)
    config = PeftConfig(
        spec,
        describe_targets(dense, _base_modules(model, layers)),
        base_name=identity.name if identity is not None else _own_name(model),
        revision=identity.revision if identity is not None else None,
        task_type=task_type,
        auto_mapping=auto_mapping,
        target_parameters=describe_parameters(experts, [*bare_parameters(model), *experts]),
        taken=taken_of(model),
        moved=moved,
    )
    _warn_of_peft(model, dense, lost)
    base = identity.to_dict() if identity is not None else None
    pairs = {
        path: Pair(
            layer.A,
            layer.B,
            layer.target.alpha,
            layer.scale,
            layer.geometry.kind,
            layer.geometry.dilated,
            {name: x for name, x in layer.tensors.items() if name not in ("A", "B")},
            layer.geometry.experts,
        )
        for path, layer in layers.items()
    }
    template = attached_template(model)
    if template is not None and "template" not in (provenance or {}):
        provenance = {**(provenance or {}), "template": dict(template)}
    source, mapping = source_of(model), attached_mapping(model)
    if (source is not None or mapping) and "asking" not in (provenance or {}):
        known = asking_of(source, mapping) if source is not None else dict(mapping)
        provenance = {**(provenance or {}), "asking": known}
    record = make_record(spec, "", base, with_packing(provenance, model))
    rows, _ = attached_rows(model)
    beside = tensors_beside(model, layers)
    adapter = StoredAdapter(Path(folder), config, record, pairs, beside, rows=rows)
    return write_stored(folder, adapter, moments=trained_moments(model), overwrite=overwrite)


def _warn_of_peft(model: nn.Module, dense: Sequence[str], lost: Sequence[str]) -> None:
    """Say where peft would refuse the adapter, or leave pairs of it out."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    refused = refused_by_peft(model_type, dense)
    for path, does in (
        *((path, "loads no adapter with a pair on") for path in refused[:1]),
        *((path, "leaves out the pair on") for path in lost[:1]),
    ):
        _log.warning(
            "peft %s %s beside a %s; lorakit takes it. For peft, leave that target out (--targets "
            "all-linear does), or merge the adapter",
            *(does, path, model_type),
        )


def _base_modules(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Paths of the base model's own modules: all but what lies inside an adapted layer."""
    inside = tuple(path + "." for path in layers)
    return [path for path, _ in model.named_modules() if path and not path.startswith(inside)]


def _ancestors(model: nn.Module) -> set[str]:
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__}


def is_transformers(model: nn.Module) -> bool:
    """Whether it is one of transformers' own models; this room does not import transformers."""
    return _TRANSFORMERS in _ancestors(model)


def _own_name(model: nn.Module) -> str | None:
    """Where transformers loaded the model from; None for any other model."""
    if not is_transformers(model):
        return None
    return cast(Any, model).config.name_or_path or None


def _task(model: nn.Module) -> tuple[str | None, dict[str, str] | None]:
    """peft's task_type for models that generate; the class by name for any other."""
    if is_transformers(model) and _GENERATES in _ancestors(model):
        seq2seq = cast(Any, model).config.is_encoder_decoder
        return ("SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM"), None
    cls = type(model)
    return None, {"base_model_class": cls.__name__, "parent_library": cls.__module__}
