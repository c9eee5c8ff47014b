"""`lorakit.merge` for Python and notebooks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.merging.certify import Certificate
from lorakit.run.commands.merging import Certify, run_merge
from lorakit.run.notebook.given import BASE, Adapter, Base, adapter_folders, config_of, weighted

_OPTIONS = (*(name for name in BASE if name != "dtype"), "store")


def merge(
    adapter: Adapter | Sequence[Adapter | tuple[Adapter, float]] | Mapping[str, float],
    out: str | Path,
    *,
    model: Base | None = None,
    dtype: str = "base",
    certify: Certify = "auto",
    force: bool = False,
    **options: Any,
) -> Certificate:
    """Fold adapters into their base: an ordinary model folder that transformers alone loads.

        W + Σ_i w_i · s_i · B_i A_i

    >>> import lorakit
    >>> model, tokenizer = lorakit.load_model("tiny-model")
    >>> plan = lorakit.attach(model, lorakit.LoraSpec(rank=2))
    >>> certificate = lorakit.merge(model, "merged")
    >>> certificate.passed
    True
    >>> merged, _ = lorakit.load_model("merged")

    Args:
        adapter: a folder, a name in the store, or a model with pairs attached; several of them, or
            several with their weights: {"invoices": 0.7, "mails": 0.3}.
        out: the new model folder, missing or empty.
        model: the base. By default the one that a given model was loaded from, and the built-in
            model otherwise.
        dtype: 'base' keeps each tensor's own format; or float32, bfloat16, float16.
        certify: 'weights' reads the merged tensors back, 'logits' compares answers as well,
            'auto' compares where the model fits the memory.
        force: use adapters although they were trained on another base.
        **options: revision, device, trust_remote_code, store; as on the command line.

    Returns:
        How exact the merge is; also in certificate.json of the folder.

    Raises:
        CertificateError: the merged model differs by more than the tolerance; nothing is written.
        InputError: an option is unknown, or something given cannot be used.
    """
    parts = weighted(adapter)
    base = model or next((a for a, _ in parts if isinstance(a, nn.Module)), None)
    config = config_of("merge", base, options, _OPTIONS)
    with adapter_folders([a for a, _ in parts]) as folders:
        pairs = list(zip(folders, (weight for _, weight in parts), strict=True))
        return run_merge(
            config, adapters=pairs, out=Path(out), dtype=dtype, certify=certify, force=force
        )
