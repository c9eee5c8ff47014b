"""`lorakit merge --quantize`: a base and adapters -> a quantized model folder, and what arrived in it."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.experts_refused import refuse_beside
from lorakit.adapters.load import fit_stored
from lorakit.adapters.model_paths import stored_for_model
from lorakit.adapters.pairs import StoredAdapter
from lorakit.errors import ConfigError, ModelError
from lorakit.files.cache import Progress
from lorakit.files.header import StoredTensor
from lorakit.files.whole import write_folder, write_json
from lorakit.lora.sharing import tied_parameters
from lorakit.merging.certify import Certificate, Tolerance
from lorakit.merging.chat_files import write_chat_files
from lorakit.merging.dequantize import dequantize, quantization
from lorakit.merging.expert_files import by_files
from lorakit.merging.formats import format_of
from lorakit.merging.merge import require, write_certificate
from lorakit.merging.model_folder import copy_settings, copy_tokenizer
from lorakit.merging.quantizable import choose, left_out
from lorakit.merging.quantized_files import merge_quantized
from lorakit.merging.quantized_formats import Format, format_named, own_format
from lorakit.merging.quantized_report import advice
from lorakit.merging.ties import require_tied_by_config, tied_groups
from lorakit.models import ModelSpec, empty_model
from lorakit.models.files import read_config
from lorakit.models.sources import resolve
from lorakit.models.weights import tensors_of
from lorakit.run.recorded_chat import RecordedChat


@dataclass(frozen=True)
class Quantized:
    """What was asked for.

    Attributes:
        format: nf4, int8, or base: the base's own.
        full_base: a folder or id of the base in full precision, or None.
    """

    format: str
    full_base: str | None = None


def asked(
    quantize: str | None, full_base: str | None, dtype: str, certify: str
) -> Quantized | None:
    """The quantized output that options ask for; None for an ordinary one.

    Raises:
        ConfigError: a format that is not written, or options that do not go together.
    """
    if quantize is None and full_base is None:
        return None
    form = quantize or "base"
    if form != "base":
        format_named(form)
    if dtype != "base":
        raise ConfigError(
            f"--dtype {dtype} is the number format of an ordinary merged model, and --quantize and "
            "--full-base write a quantized one: leave one of them out"
        )
    if certify == "logits":
        raise ConfigError(
            "--certify logits compares with an adapter that nothing was rounded of: the certificate of a "
            "quantized model says what share of the update arrived in its weights; leave --certify out"
        )
    return Quantized(form, full_base)


@dataclass(frozen=True)
class _Weights:
    """The base as files.

    Attributes:
        folder: in float formats; W_q where it was dequantized.
        own: the folder as it was given.
        quantized: names of the weights that it quantizes, None of one in full precision.
        form: what is written.
        packed: see `merge_quantized`.
        notes: what was done.
    """

    folder: Path
    own: Path
    quantized: tuple[str, ...] | None
    form: Format
    packed: Mapping[str, tuple[StoredTensor, ...]]
    notes: tuple[str, ...]


def merge_into_quantized(
    spec: ModelSpec,
    base: Path,
    adapter: StoredAdapter,
    chat: RecordedChat | None,
    made_of: Mapping[str, Any],
    out: Path,
    what: Quantized,
    notes: tuple[str, ...],
    *,
    beside: Path,
    progress: Progress,
) -> Certificate:
    """Merge, quantize, check and write the folder.

    Args:
        spec, base: the base and its folder.
        adapter: what is merged.
        chat, made_of, notes: for the folder and its certificate.
        out: the new model folder.
        what: was asked for.
        beside: a folder with room for the dequantized base.
        progress: told of a download of the base in full precision.

    Raises:
        CertificateError: what was written is not W + s·B·A within half a step; nothing is kept.
        InputError: something given cannot be used.
    """
    settings = quantization(base)
    if settings is None:
        if what.format == "base" or what.full_base is not None:
            option = "--quantize base" if what.full_base is None else "--full-base"
            raise ConfigError(
                f"{option} is for a base that is quantized, and {spec.model} is in full precision: "
                "--quantize nf4 and --quantize int8 add the update to it and quantize once"
            )
        plain = _Weights(base, base, None, format_named(what.format), {}, ())
        return _write(spec, plain, adapter, chat, made_of, out, None, notes)
    held = tensors_of(base)
    form = own_format(settings, held) if what.format == "base" else format_named(what.format)
    full = None
    if what.full_base is not None:
        where = resolve(replace(spec, model=what.full_base, revision=None), progress=progress)
        if quantization(where.folder) is not None:
            raise ModelError(
                f"--full-base {what.full_base} is quantized itself: name the folder in full precision"
            )
        full = tensors_of(where.folder)
    with tempfile.TemporaryDirectory(dir=beside) as place:
        ordinary = Path(place)
        done = dequantize(base, ordinary)
        copy_tokenizer(base, ordinary)
        own = {name: form.own(held, name) for name in done.names}
        packed = {name: parts for name, parts in own.items() if parts is not None}
        said = (
            f"the base is quantized ({done.method}), and the update was added to its {done.weights} weights "
            "as they are dequantized"
        )
        if full is not None:
            said = (
                f"the base is quantized ({done.method}); the update was added to the full-precision weights "
                f"of {what.full_base} and quantized once, and what arrived is measured against the "
                "quantized base"
            )
        # transformers computes bitsandbytes' layers in the format that config.json names.
        found = _Weights(ordinary, base, done.names, form, packed, (said,))
        there = replace(spec, model=place, revision=None)
        return _write(there, found, adapter, chat, made_of, out, full, notes)


def _write(
    spec: ModelSpec,
    base: _Weights,
    adapter: StoredAdapter,
    chat: RecordedChat | None,
    made_of: Mapping[str, Any],
    out: Path,
    full: Mapping[str, StoredTensor] | None,
    notes: tuple[str, ...],
) -> Certificate:
    """Merge into the files of a base in float formats."""
    empty = empty_model(spec)
    adapter = stored_for_model(empty, adapter)
    plan, said = fit_stored(empty, adapter)
    refuse_beside(
        adapter,
        "a quantized merge takes pairs alone",
        "merge it into the full-precision base: lorakit merge without --quantize",
    )
    tied = tied_groups(plan.targets)
    if tied:
        require_tied_by_config(empty, tied)
    held = tensors_of(base.folder)
    chosen = choose(empty, held, base.quantized)
    files = by_files(empty, plan, adapter.pairs, held)
    dtype = _computing(base.folder, held)
    made: list[Certificate] = []
    based = base.quantized is not None

    def fill(partial: Path) -> None:
        report = merge_quantized(
            *(files, held, chosen.names, base.form, partial),
            dtype=dtype,
            based=based,
            full=full,
            packed=base.packed,
            tied=tied_parameters(empty) if tied else (),
        )
        copy_settings(
            base.folder, partial, dtype=None, untie=bool(tied), code=spec.trust_remote_code
        )
        config = read_config(partial)
        config["quantization_config"] = base.form.settings(dtype, chosen.skipped)
        write_json(partial / "config.json", config)
        if chat is not None:
            write_chat_files(partial, chat.template, chat.ends)
        more = _notes(
            advice(report, based=based and full is None),
            left_out(chosen),
            base.form.unread([held[name] for name in chosen.names]),
        )
        certificate = Certificate(
            (), Tolerance(), report, made_of, (*notes, *said, *base.notes, *more)
        )
        require(certificate)
        write_certificate(partial, certificate)
        made.append(certificate)

    write_folder(out, fill, what="merged model")
    return made[0]


def _notes(*found: str | None) -> tuple[str, ...]:
    logits = "logits were not compared: a quantized model rounds more than a merge may"
    return tuple(note for note in (*found, logits) if note)


def _computing(folder: Path, held: Mapping[str, StoredTensor]) -> torch.dtype:
    """The format that quantized layers compute in: what config.json names, else that of most numbers."""
    config = read_config(folder)
    named = str(config.get("dtype") or config.get("torch_dtype") or "")
    if named in ("float32", "bfloat16", "float16"):
        found: torch.dtype = getattr(torch, named)
        return found
    return format_of(held, None)
