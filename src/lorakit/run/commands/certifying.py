"""The logits of a merge beside its adapter's, where the model fits the memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.load import attach_stored
from lorakit.adapters.pairs import StoredAdapter
from lorakit.data import DataSpec, Example, encode_prompt, resolve_template
from lorakit.files.wording import size
from lorakit.merging.certify import Certificate, LogitComparison, Tolerance, compare, probe_logits
from lorakit.merging.merge import exact_comparison, require
from lorakit.models import ModelSpec, load_model
from lorakit.models.devices import torch_device
from lorakit.models.spec import FULL
from lorakit.run.machine import free_memory
from lorakit.run.session import recorded_template

# Texts that the certificate compares on: prose, code, numbers, another language, a list.
PROBES = (
    "Write a short letter to a neighbour about a parcel that was left at the wrong door.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))",
    "In 1969 the crew needed 4 days, 6 hours and 45 minutes; how many minutes is that?",
    "Übersetze bitte: The train to Vienna leaves at half past seven from platform 9.",
    'Order 10482: {"items": ["lamp", "desk"], "total": 129.90, "currency": "EUR"}',
)


def too_large(spec: ModelSpec, empty: Any) -> str | None:
    """Why the logits cannot be compared here: the model twice in float32 exceeds the memory."""
    device = torch_device(spec)
    needed = 2 * 4 * sum(parameter.numel() for parameter in empty.parameters())
    free = free_memory(device)
    if needed <= free:
        return None
    return (
        f"logits were not compared: that needs the model twice in float32, {size(needed)}, "
        f"and {size(free)} are free; --certify logits tries all the same"
    )


def compare_logits(
    spec: ModelSpec, adapter: StoredAdapter, folder: Path, written: torch.dtype
) -> tuple[LogitComparison, ...]:
    """Adapter and merge in float32, and adapter in float32 against the folder read back.

    On a CPU the folder is read back into float32, because 16-bit products are slow there;
    elsewhere it computes in the format it was written in.
    """
    tolerance = Tolerance()
    model, tokenizer = load_model(replace(spec, dtype="float32", base_dtype=FULL))
    probes = probes_of(adapter, tokenizer)
    attach_stored(model, adapter)
    adapter_TV, in_float32, merged = exact_comparison(model, probes, tolerance)
    require(Certificate((in_float32,), tolerance))
    del model, merged
    wide = torch_device(spec).type == "cpu" or written == torch.float64
    name = str(torch.float32 if wide else written).removeprefix("torch.")
    again, _ = load_model(
        ModelSpec(
            model=str(folder),
            device=spec.device,
            dtype=name,
            trust_remote_code=spec.trust_remote_code,
        )
    )
    read_back = compare(
        adapter_TV,
        probe_logits(again, probes),
        dtype=written,
        arithmetic=f"read back, {name} arithmetic",
        tolerance=tolerance,
        rounding=in_float32.rounding,
    )
    return in_float32, read_back


def probes_of(adapter: StoredAdapter, tokenizer: Any) -> list[list[int]]:
    """The probe texts as the adapter's own template puts them to the model."""
    template = recorded_template(adapter.info, None) or resolve_template(DataSpec(), tokenizer)
    return [
        encode_prompt(Example(origin=f"probe {i}", prompt=text), tokenizer, template).tolist()
        for i, text in enumerate(PROBES)
    ]
