"""`lorakit merge`: a base and adapters -> an ordinary model folder with a certificate.

The weights go from file to file, block of rows by block of rows, and are read back. Where the
model fits the memory, its logits are compared with the adapter's too.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from lorakit.adapters.combine import combine
from lorakit.adapters.load import attach_stored, fit_stored, values_of
from lorakit.adapters.model_paths import stored_for_model
from lorakit.adapters.pairs import StoredAdapter, read_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.peft_config import read_json
from lorakit.adapters.provenance import base_note, check_base
from lorakit.adapters.specs import CombineSpec
from lorakit.config import RunConfig
from lorakit.errors import BaseMismatchError, ModelError
from lorakit.files.cache import Progress, no_progress
from lorakit.files.header import StoredTensor
from lorakit.files.whole import write_folder
from lorakit.files.wording import count
from lorakit.lora.sharing import tied_parameters
from lorakit.lora.variant import Capability, cannot
from lorakit.merging.certify import Certificate, Tolerance
from lorakit.merging.chat_files import write_chat_files
from lorakit.merging.dequantize import dequantize, quantization
from lorakit.merging.expert_files import by_files
from lorakit.merging.formats import format_of
from lorakit.merging.merge import (
    CERTIFICATE,
    require,
    write_certificate,
    write_merged,
)
from lorakit.merging.merge_files import merge_files
from lorakit.merging.model_folder import copy_settings, copy_tokenizer
from lorakit.merging.ties import require_tied_by_config, split_groups, tied_groups
from lorakit.models import ModelSpec, empty_model, identify, load_model
from lorakit.models.files import weight_files
from lorakit.models.fingerprint import hash_files
from lorakit.models.sources import resolve
from lorakit.models.spec import FULL
from lorakit.models.weights import OtherNamesError, tensors_of
from lorakit.run.commands.certifying import compare_logits, probes_of, too_large
from lorakit.run.commands.merging_quantized import asked, merge_into_quantized
from lorakit.run.named import Found, find_adapter
from lorakit.run.recorded import with_recorded
from lorakit.run.recorded_chat import RecordedChat, prompt_notes, recorded_chat

Certify = Literal["auto", "weights", "logits"]


def run_merge(
    config: RunConfig,
    *,
    adapters: Sequence[tuple[str | Path | Found, float]],
    out: Path,
    dtype: str,
    certify: Certify = "auto",
    force: bool = False,
    quantize: str | None = None,
    full_base: str | None = None,
    progress: Progress = no_progress,
) -> Certificate:
    """Merge, check and write the folder.

    Args:
        config: names the base; by default the one that the adapters record.
        adapters: folders or names in the store `config.output.store`, with their weights;
            W + Σ w_i s_i B_i A_i is written.
        out: the new model folder, missing or empty.
        dtype: 'base' (each tensor as it is) or a format of torch's.
        certify: 'weights' reads the merged tensors back and holds them against float64; 'logits'
            compares answers as well, which takes the model in memory; 'auto' where it fits.
        force: use adapters although they were trained on another base.
        quantize: write a quantized folder: nf4, int8, or base: as the base is. None: an ordinary one.
        full_base: the base in full precision, where the base is quantized: what the update is added to
            before it is quantized once.
        progress: told of a download of the built-in model.

    Raises:
        CertificateError: the merged model differs by more than the tolerance; nothing is written.
        InputError: something given cannot be used.
    """
    what = asked(quantize, full_base, dtype, certify)
    found = [(find_adapter(name, config.output.store), weight) for name, weight in adapters]
    config = with_recorded(config, [f for f, _ in found])
    parts = [Part(read_stored(f.folder), weight, name=f.name) for f, weight in found]
    spec = config.model
    where = resolve(spec, progress=progress)
    identity = identify(spec)
    if not force:
        for part in parts:
            check_base(part.adapter.source, part.adapter.record, identity, name=part.name)
    told = [(p, base_note(p.adapter.config.base_name, p.adapter.record, identity)) for p in parts]
    notes = tuple(f"{part.name}: {note}" for part, note in told if note)
    notes += prompt_notes([part.adapter.info for part in parts])
    made_of = {"base": identity.to_dict(), "adapters": [_named(part) for part in parts]}
    kept = None if dtype == "base" else getattr(torch, dtype)
    adapter = _one(parts, force)
    chat, said = recorded_chat([part.adapter.info for part in parts], spec)
    if what is not None:
        return merge_into_quantized(
            *(spec, where.folder, adapter, chat, made_of, out, what, (*notes, *said)),
            beside=_beside(out),
            progress=progress,
        )
    if quantization(where.folder) is None:
        return _merge(
            spec, where.folder, adapter, chat, made_of, out, kept, certify, (*notes, *said)
        )
    with tempfile.TemporaryDirectory(dir=_beside(out)) as place:
        ordinary = Path(place)
        done = dequantize(where.folder, ordinary)
        copy_tokenizer(where.folder, ordinary)
        note = (
            f"the base is quantized ({done.method}): {done.weights} weights were dequantized to "
            "float32 first, and the certificate is against those"
        )
        plain = replace(spec, model=place, revision=None)
        notes, kept = (*notes, note, *said), kept or done.dtype
        return _merge(plain, ordinary, adapter, chat, made_of, out, kept, certify, notes)


def _merge(
    spec: ModelSpec,
    base: Path,
    adapter: StoredAdapter,
    chat: RecordedChat | None,
    made_of: Mapping[str, Any],
    out: Path,
    kept: torch.dtype | None,
    certify: Certify,
    notes: tuple[str, ...],
) -> Certificate:
    """Merge into the files of an ordinary model folder."""
    empty = empty_model(spec)
    adapter = stored_for_model(empty, adapter)
    plan, found = fit_stored(empty, adapter)
    notes = (*notes, *found)
    tied = tied_groups(plan.targets) + split_groups(empty, plan.whole)
    shared = tied_parameters(empty) if tied else []
    if tied:
        require_tied_by_config(empty, tied)
        more = sum(empty.get_parameter(names[0]).numel() * (len(names) - 1) for names in shared)
        notes = (
            *notes,
            f"the base keeps {len(shared)} weights once that several modules use, such as {shared[0][0]} "
            f"and {shared[0][1]}; the adapter makes them differ, so that the merged model keeps one for each "
            f"module: {count(more)} parameters more",
        )
    variant = adapter.spec.variant
    if Capability.MERGE_ROWS not in variant.capabilities and certify != "weights":
        why = cannot(variant, Capability.MERGE_ROWS)
        notes = (*notes, f"merged in memory and not file by file: {why}")
        return _in_memory(spec, adapter, chat, out, kept, tensors_of(base), made_of, notes)
    held = tensors_of(base)
    values = values_of(empty, adapter, plan)
    try:
        files = by_files(empty, plan, adapter.pairs, held)
    except OtherNamesError as error:
        if certify == "weights":
            raise
        notes = (*notes, f"merged in memory and not file by file: {error}")
        return _in_memory(spec, adapter, chat, out, kept, held, made_of, notes)
    made: list[Certificate] = []

    def fill(partial: Path) -> None:
        report = merge_files(
            *(files.places, held, files.plan, files.pairs, partial),
            dtype=kept,
            tied=shared,
            values=values,
        )
        copy_settings(
            base,
            partial,
            dtype=kept,
            untie=bool(tied),
            code=spec.trust_remote_code,
        )
        if chat is not None:
            write_chat_files(partial, chat.template, chat.ends)
        certificate = Certificate((), Tolerance(), report, made_of, notes)
        require(certificate)
        refusal = too_large(spec, empty) if certify == "auto" else None
        if certify == "logits" or (certify == "auto" and refusal is None):
            compared = compare_logits(spec, adapter, partial, format_of(held, kept))
            certificate = replace(certificate, comparisons=compared)
        else:
            why = refusal or "logits were not compared, as asked"
            certificate = replace(certificate, notes=(*notes, why))
        require(certificate)
        write_certificate(partial, certificate)
        made.append(certificate)

    write_folder(out, fill, what="merged model")
    return made[0]


def run_unmerge(config: RunConfig, *, merged: Path, out: Path, progress: Progress) -> int:
    """The base that a merged folder was made of, in a folder of its own: its files' bytes.

    Nothing is subtracted, since rounding cannot be undone: the base is `config.model`, and its
    hash has to be the one in the merged folder's certificate.

    Returns:
        How many files were copied.

    Raises:
        ModelError: the folder has no certificate that names its base.
        BaseMismatchError: the base at hand is another.
    """
    file = merged / CERTIFICATE
    if not file.is_file():
        raise ModelError(f"{merged} has no {CERTIFICATE}: it is no folder that lorakit merged")
    base = (read_json(file).get("made_of") or {}).get("base")
    if not base:
        raise ModelError(f"{file} does not say which base it was made of")
    where = resolve(config.model, progress=progress)
    found = hash_files(weight_files(where.folder))  # afresh: what is promised is bytes
    if found != base["weights_sha256"]:
        raise BaseMismatchError(
            f"{merged} was made of {base['name']!r} (weights {base['weights_sha256'][:12]}…), and "
            f"{where.name!r} is another ({found[:12]}…): name its base with --model"
        )
    files = sorted(f for f in where.folder.iterdir() if f.is_file())

    def fill(partial: Path) -> None:
        for file in files:
            shutil.copyfile(file, partial / file.name)

    write_folder(out, fill, what="base model")
    return len(files)


def _beside(out: Path) -> Path:
    """The nearest folder above that is there: a whole model may not fit the system's own."""
    return next(folder for folder in out.absolute().parents if folder.is_dir())


def _one(parts: Sequence[Part], force: bool) -> StoredAdapter:
    """The adapters as one: the exact weighted sum, kept in float64."""
    if len(parts) == 1 and parts[0].weight == 1.0:
        return parts[0].adapter
    return combine(parts, CombineSpec(how="cat"), force=force, dtype=torch.float64).adapter


def _named(part: Part) -> dict[str, Any]:
    record = part.adapter.record
    return {
        "name": part.name,
        "weight": part.weight,
        "tensors_sha256": record.tensors_sha256 if record else None,
    }


def _in_memory(
    spec: ModelSpec,
    adapter: StoredAdapter,
    chat: RecordedChat | None,
    out: Path,
    dtype: torch.dtype | None,
    held: Mapping[str, StoredTensor],
    made_of: Mapping[str, Any],
    notes: tuple[str, ...],
) -> Certificate:
    """The way of a model that transformers puts together while it loads: whole, in memory.

    In float32, which holds every number of the files whatever device is going to compute with them.
    """
    model, tokenizer = load_model(replace(spec, dtype="float32", base_dtype=FULL))
    attach_stored(model, adapter)

    def finish(partial: Path) -> None:
        if chat is not None:
            write_chat_files(partial, chat.template, chat.ends)

    return write_merged(
        model,
        tokenizer,
        out,
        dtype=dtype,
        held=held,
        probes_ids=probes_of(adapter, tokenizer),
        made_of=made_of,
        notes=notes,
        finish=finish,
    )
