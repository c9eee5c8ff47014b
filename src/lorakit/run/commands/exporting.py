"""`lorakit export`: an adapter -> what another runtime loads."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorakit.adapters.export import (
    Finding,
    lint,
    vllm_safe,
    write_gguf_adapter,
    write_gguf_model,
)
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.export.gguf_model import converter
from lorakit.adapters.pairs import StoredAdapter, read_stored, write_stored
from lorakit.adapters.provenance import check_base
from lorakit.config import RunConfig
from lorakit.errors import ConfigError, OutputError
from lorakit.files.cache import Progress, no_progress
from lorakit.models import empty_model, identify
from lorakit.run.commands.merging import run_merge
from lorakit.run.named import find_adapter

Form = Literal["peft", "vllm", "gguf", "gguf-merged"]
Kind = Literal["f32", "f16", "bf16", "q8_0"]
_KINDS: dict[str, tuple[Kind, ...]] = {
    "gguf": ("f32", "f16"),
    "gguf-merged": ("f32", "f16", "bf16", "q8_0"),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and what is to be said about it."""

    path: Path
    sentences: tuple[str, ...]


def run_export(
    config: RunConfig,
    *,
    adapter: str | Path,
    form: Form,
    out: Path,
    kind: Kind | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Exported:
    """Write an adapter for another runtime.

    Args:
        config: names the base, which the two forms of GGUF need, and the store.
        adapter: a folder, or a name in the store.
        form: which runtime.
        out: a folder for peft and vLLM, a file for GGUF; missing, or an empty folder.
        kind: number format of a GGUF file; f32 where None.
        force: use the adapter although it was trained on another base.
        progress: told of a download of the built-in model.

    Raises:
        InputError: something given cannot be used, or the runtime has no place for the adapter.
        CertificateError: the merged model differs by more than the tolerance.
    """
    if kind is not None and kind not in _KINDS.get(form, ()):
        has = ", ".join(_KINDS.get(form, ())) or "the format of the adapter alone"
        raise ConfigError(f"--to {form} has no --type {kind}: it has {has}")
    stored = read_stored(find_adapter(adapter, config.output.store).folder)
    match form:
        case "peft":
            return Exported(write_stored(out, stored), stored.notes)
        case "vllm":
            safe = vllm_safe(stored)
            return Exported(write_stored(out, safe), (*stored.notes, _changed(stored, safe)))
        case "gguf":
            if not force:
                check_base(stored.source, stored.record, identify(config.model))
            base = GgufBase.of(empty_model(config.model).config)
            written = write_gguf_adapter(
                stored, out, base=base, kind="f16" if kind == "f16" else "f32"
            )
            return Exported(written, stored.notes)
        case "gguf-merged":
            return _merged(config, adapter, out, kind or "f32", force, progress)


def run_lint(
    config: RunConfig, *, adapter: str | Path, with_base: bool
) -> tuple[str, tuple[Finding, ...]]:
    """What each runtime would refuse or mis-scale; nothing is written.

    Args:
        config: names the base and the store.
        adapter: a folder, or a name in the store.
        with_base: whether the base is looked at as well.

    Returns:
        What the adapter is called, and the findings.
    """
    found = find_adapter(adapter, config.output.store)
    base = GgufBase.of(empty_model(config.model).config) if with_base else None
    return found.name, lint(found.folder, base)


def _merged(
    config: RunConfig, adapter: str | Path, out: Path, kind: Kind, force: bool, progress: Progress
) -> Exported:
    converter()  # before minutes of merging, whether it is there at all
    if out.exists():
        raise OutputError(f"{out} exists: give the GGUF model another name")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    # Beside the file: a whole model may not fit the system's own temporary folder.
    with tempfile.TemporaryDirectory(dir=out.absolute().parent) as place:
        certificate = run_merge(
            config,
            adapters=[(adapter, 1.0)],
            out=Path(place) / out.stem,
            dtype="float32",
            force=force,
            progress=progress,
        )
        write_gguf_model(Path(place) / out.stem, out, kind=kind)
    note = f"the certificate is of the merge in float32; {kind} rounds after it"
    return Exported(out, (*certificate.sentences(), *(() if kind == "f32" else (note,))))


def _changed(stored: StoredAdapter, safe: StoredAdapter) -> str:
    """What folding did, in a sentence."""
    spec = safe.spec
    both = [(stored.pairs[path], pair) for path, pair in safe.pairs.items()]
    folded = sum(not math.isclose(old.scale, new.scale) for old, new in both)
    padded = sum(old.rank != new.rank for old, new in both)
    return (
        f"rank {spec.rank} and alpha {spec.alpha:g} everywhere: {folded} of {len(both)} scales "
        f"folded into B, {padded} pairs padded with zeros"
    )
