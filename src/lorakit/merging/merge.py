"""W + s·B·A in a new model, and the ordinary model folder of it.

Merging happens in float32 and rounds once. The model that was given is never changed.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lorakit.adapters.save import is_transformers
from lorakit.errors import AdapterError, CertificateError, TargetError
from lorakit.files.header import StoredTensor
from lorakit.files.tensors import system_errors
from lorakit.files.whole import write_folder, write_json
from lorakit.kernels.read_through import put_parameter
from lorakit.lora import lora_layers
from lorakit.lora.experts import LoraExperts
from lorakit.lora.variant import Capability, require_capability
from lorakit.merging.certify import (
    Certificate,
    LogitComparison,
    Tolerance,
    compare,
    floating_dtype,
    probe_logits,
)
from lorakit.merging.formats import format_of, save_as_in
from lorakit.merging.model_folder import complete_settings
from lorakit.merging.rounding import own_rounding
from lorakit.merging.ties import require_tied_by_config, split_in, tied_groups, untie
from lorakit.models.quiet import quiet

CERTIFICATE = "certificate.json"
Model = TypeVar("Model", bound=nn.Module)


def merged_model(model: Model) -> Model:
    """A new model of plain layers that computes what the adapted one does.

    Every weight is a copy, W + s·B·A where there was a pair, in the dtype of W, and the adapter's own
    value where it has one (modules trained whole, biases, rows of embeddings). An adapted
    weight that was tied to others (an embedding to the output head, Zamba's shared block) cannot stay
    tied, because they change otherwise or not at all: each is kept, no weight of the model stays tied,
    and a transformers model's configuration says so.

    Raises:
        AdapterError: the model has no pairs.
        TargetError: the variant cannot be merged; a base layer cannot take its product: it is quantized, or a grouped
            convolution; or a tied weight is in a model whose configuration does not say that it
            is tied, and which would tie it again when loaded.
    """
    layers = lora_layers(model)
    if not layers:
        raise AdapterError("this model has no adapter attached: there is nothing to merge")
    tied = tied_groups(layer.target for layer in layers.values()) + split_in(model)
    # deepcopy asks its memo first, so each adapted layer is replaced as the copy is made.
    memo: dict[int, Any] = {}
    for path, layer in layers.items():
        require_capability(
            *(layer.variant, Capability.MERGE, path), "keep it beside its base", error=TargetError
        )
        try:
            memo[id(layer)] = layer.merged_base()
        except TargetError as error:
            raise TargetError(f"{path} cannot be merged: {error}") from error
    merged = copy.deepcopy(model, memo)
    for path, layer in layers.items():
        if isinstance(layer, LoraExperts):
            put_parameter(merged, path, memo[id(layer)].weight)
    if tied and is_transformers(model):
        require_tied_by_config(merged, tied)
        untie(merged)
    return merged


def write_merged(
    model: nn.Module,
    tokenizer: Any,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    held: Mapping[str, StoredTensor] | None = None,
    probes_ids: Sequence[Sequence[int]],
    tolerance: Tolerance | None = None,
    made_of: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
    finish: Callable[[Path], None] = lambda _: None,
) -> Certificate:
    """Write an ordinary transformers folder of the merged model, with its certificate in it.

    Two comparisons: adapter and merged model in float32, and the adapter in float32 against the
    folder as it was written, read back. On a CPU the latter computes in float32 over the rounded
    weights, because 16-bit products are slow there; elsewhere in the written format.

    Args:
        model: a transformers model with pairs attached; not changed.
        tokenizer: saved beside it.
        folder: missing or empty.
        dtype: of the written weights; None keeps the format that the model is held in, or ...
        held: ... the tensors of the base's files by their names there: each written tensor then has the
            format of its own, and one that they have not (the other half of a tie) that of most of them.
            Give the model in float32 then, which holds them all.
        probes_ids: token ids to compare on; a few hundred tokens will do.
        tolerance: what may differ.
        made_of: the base's fingerprint and the adapters, for the certificate.
        notes: for the certificate; finish: called with the folder once all else is in it.

    Raises:
        CertificateError: the logits differ by more than the tolerance; nothing was written.
        OutputError: the folder holds something, or cannot be written (a full disk).
        AdapterError, TargetError: see `merged_model`; or this is no transformers model.
    """
    if not is_transformers(model):
        raise AdapterError(f"a {type(model).__name__} is no transformers model: use merged_model")
    held_to = tolerance or Tolerance()
    held = held if dtype is None else None
    written = dtype or (format_of(held, None) if held else floating_dtype(model))
    adapter_TV, in_float32, exact_merged = exact_comparison(model, probes_ids, held_to)
    require(Certificate((in_float32,), held_to))
    kept = floating_dtype(model)
    # Parts that the base keeps wider than the rest stay so where the format is the base's own.
    merged = cast(Any, exact_merged)
    if held is None:
        merged = cast(Any, merged_model(model) if written == kept else exact_merged.to(written))
    device = next(model.parameters()).device
    computing = torch.float32 if device.type == "cpu" else written
    made: list[Certificate] = []

    def fill(partial: Path) -> None:
        with quiet():
            with system_errors():
                if held is None:
                    merged.save_pretrained(partial)
                else:
                    save_as_in(merged, partial, held, written)
            complete_settings(partial, dtype=written)
            tokenizer.save_pretrained(partial)
            finish(partial)
            again = type(merged).from_pretrained(partial, dtype=computing).to(device)
        name = str(computing).removeprefix("torch.")
        read_back = compare(
            adapter_TV,
            probe_logits(again, probes_ids),
            dtype=written,
            arithmetic=f"read back, {name} arithmetic",
            tolerance=held_to,
            rounding=in_float32.rounding,
        )
        certificate = Certificate((in_float32, read_back), held_to, None, made_of, notes)
        require(certificate)
        write_certificate(partial, certificate)
        made.append(certificate)

    write_folder(Path(folder), fill, what="merged model")
    return made[0]


def exact_comparison(
    model: Model, probes_ids: Sequence[Sequence[int]], tolerance: Tolerance
) -> tuple[Tensor, LogitComparison, Model]:
    """The adapter's logits in float32, how far a merge in float32 is from them, and that merge.

    Args:
        model: with pairs attached; not changed.
        probes_ids: token ids to compare on.
        tolerance: what may differ.
    """
    exact = model if floating_dtype(model) == torch.float32 else copy.deepcopy(model).float()
    adapter_TV = probe_logits(exact, probes_ids)
    merged = merged_model(exact)
    merged_TV = probe_logits(merged, probes_ids)

    def compared_with(rounding: float | None) -> LogitComparison:
        return compare(
            adapter_TV,
            merged_TV,
            dtype=torch.float32,
            arithmetic="float32 arithmetic",
            tolerance=tolerance,
            rounding=rounding,
        )

    compared = compared_with(None)
    if not compared.passed:
        compared = compared_with(own_rounding(exact, probes_ids, adapter_TV))
    return adapter_TV, compared, merged


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Write certificate.json into a folder."""
    write_json(folder / CERTIFICATE, certificate.to_dict(), allow_nan=False)


def require(certificate: Certificate) -> None:
    """Refuse a merge that departs from its adapter.

    Raises:
        CertificateError: the first comparison that lies beyond the tolerance.
    """
    if certificate.weights is not None and not certificate.weights.passed:
        raise CertificateError(
            f"the merged weights, read back, are not W + s·B·A ({certificate.weights}); nothing "
            "was written: this format may not hold their size, or the disk is failing"
        )
    for comparison in certificate.comparisons:
        if not comparison.passed:
            t = certificate.tolerance
            wide = comparison.dtype in ("float32", "float64")
            limit = (
                f"logit difference {t.logits:g} + {t.logits_relative:g} of the largest, or "
                f"{t.roundings:g} times what rounding alone does to this model"
                if wide
                else f"KL {t.kl:g} and argmax agreement {t.argmax:.0%}"
            )
            hint = "" if wide else "; write it in float32, which rounds less"
            raise CertificateError(
                f"the merged model answers differently from its adapter in {comparison} (the "
                f"tolerance is {limit}); nothing was written{hint}"
            )
