"""An adapter as a value: its pairs by module path, without a model.

What is done to adapters on disk (combining, shrinking, exporting) reads a `StoredAdapter`, makes
another and writes it. A model's own pairs go through the same writer (save.py).

Longer than 300 lines: a pair of a layer, the pairs of a parameter of many experts, and the adapter that
holds both are one value, read and written in one place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.adapters.beside import belongs, without_training
from lorakit.adapters.card import model_card
from lorakit.adapters.folder import TENSORS, adapter_folder
from lorakit.adapters.foreign_names import own_names
from lorakit.adapters.info import AdapterInfo, describe, pair_kinds
from lorakit.adapters.moments import StoredMoments, write_moments
from lorakit.adapters.names import check_pair, pair_of, tensor_names
from lorakit.adapters.peft_config import CONFIG, PeftConfig, read_config, write_config
from lorakit.adapters.peft_names import renamed
from lorakit.adapters.provenance import Record, make_record, read_record, write_record
from lorakit.adapters.trained_rows import TrainedRows, write_trained_rows
from lorakit.errors import AdapterError
from lorakit.files.copying import hash_of
from lorakit.files.tensors import (
    read_tensors_and_hash,
    read_tensors_at_once,
    require_finite,
    write_tensors,
)
from lorakit.files.whole import write_folder, write_json, write_text
from lorakit.lora import LoraSpec, equations
from lorakit.lora.targets import first_hit
from lorakit.lora.variant import Variant


@dataclass(frozen=True, eq=False)
class Pair:
    """One adapted module: A, B, the scale s of B·A, and what else its variant keeps.

    Attributes:
        A: (rank, in_features), or (rank, in_channels, *kernel); float32 or wider.
        B: (out_features, rank), or (out_channels, rank / groups, 1, …).
        alpha: numerator of the scale.
        scale: s, what the variant makes of alpha and rank.
        kind: linear, conv1d (GPT-2's, whose weight is ΔW transposed), embedding, conv or experts.
        dilated: a convolution whose kernel has gaps; known only where it comes from a model.
        more: the variant's tensors beside A and B by name; {} for plain LoRA.
        experts: how many experts have a pair each in A (experts · rank, in_features), rows by expert, and
            B (out_features, rank · experts), the expert innermost; 0 for a module's one pair.
    """

    A: Tensor
    B: Tensor
    alpha: float
    scale: float
    kind: str = "linear"
    dilated: bool = False
    more: Mapping[str, Tensor] = field(default_factory=dict)
    experts: int = 0

    @property
    def rank(self) -> int:
        """Rows of A, of each expert's where there are several."""
        return self.A.shape[0] // max(self.experts, 1)

    @property
    def each(self) -> "list[Pair]":
        """The pairs of the experts, one by one; itself alone where there are none."""
        if not self.experts:
            return [self]
        A_ERI = self.A.view(self.experts, -1, self.A.shape[1])
        B_ORE = self.B.view(self.B.shape[0], -1, self.experts)
        return [Pair(A_ERI[e], B_ORE[..., e], self.alpha, self.scale) for e in range(self.experts)]

    @property
    def grouped(self) -> bool:
        """Whether it belongs to a convolution with groups, where s·B·A has no meaning."""
        return self.B.shape[1] != self.A.shape[0]

    @property
    def parameters(self) -> int:
        """Elements of A, B and what is kept beside them."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name, A and B first."""
        return {"A": self.A, "B": self.B, **self.more}

    def delta(self) -> Tensor:
        """ΔW = s·B·A: (out, in, *kernel), float32 (float64 of float64 pairs).

        An embedding's is (dim, vocabulary), and a conv1d's (out, in): the base keeps both
        transposed. That of experts is (experts, out, in), whichever way the base keeps them.

        Raises:
            AdapterError: the pair is of a grouped convolution.
        """
        if self.grouped:
            raise AdapterError(
                f"B is {tuple(self.B.shape)} beside a rank of {self.rank}: the pair of a grouped "
                "convolution, which has no single product B·A"
            )
        if self.experts:
            return torch.stack([pair.delta() for pair in self.each])
        return equations.delta(self.A, self.B, self.scale)


def unit_pair(A: Tensor, B: Tensor, kind: str) -> Pair:
    """A pair whose scale is 1: ΔW = B·A, alpha = rank."""
    return Pair(A, B, float(A.shape[0]), 1.0, kind)


def rounded(pair: Pair, dtype: torch.dtype) -> Pair:
    """The pair with A and B in another format, contiguous."""
    A, B, *others = (tensor.to(dtype).contiguous() for tensor in pair.tensors.values())
    return replace(pair, A=A, B=B, more=dict(zip(pair.more, others, strict=True)))


@dataclass(frozen=True)
class AdapterFiles:
    """The files of an adapter folder, read and checked as far as they go by themselves."""

    folder: Path
    config: PeftConfig
    record: Record | None
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Where the tensors are."""
        return self.folder / TENSORS


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """What an adapter folder holds.

    Attributes:
        source: the folder it was read from; of one that is not written yet, what to call it.
        config: its configuration; `config.spec` has its ranks, alphas and targets.
        record: lorakit.json: base, provenance; None in folders that lorakit did not write.
        pairs: by module path, sorted by it or in the order of the model.
        beside: what is trained beside the pairs, by the names in the file: see `adapters.beside`.
        whole: copies of the base's own weights that peft keeps beside a pair on an embedding, by
            their names in the file; never written again.
        notes: what was set aside while reading, one sentence each.
        rows: that it was trained on, to be written beside it; `read_stored` leaves them where they are.
    """

    source: Path
    config: PeftConfig
    record: Record | None
    pairs: Mapping[str, Pair]
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rows: TrainedRows | None = None

    @property
    def spec(self) -> LoraSpec:
        """Ranks, alphas and targets."""
        return self.config.spec

    @property
    def info(self) -> AdapterInfo:
        """The same without its numbers."""
        ranks = {path: pair.rank for path, pair in self.pairs.items()}
        count = sum(pair.parameters for pair in self.pairs.values())
        count += sum(tensor.numel() for tensor in self.beside.values())
        return describe(self.source, self.config, self.record, self.spec, ranks, count, self.notes)

    @property
    def opened(self) -> AdapterFiles:
        """The same by the names of peft's format."""
        tensors = {**_named(self.pairs, self.spec.variant), **self.beside, **self.whole}
        return AdapterFiles(self.source, self.config, self.record, tensors)


def open_adapter(folder: str | Path, *, check: bool = True) -> AdapterFiles:
    """Read an adapter folder: JSON and tensors, the hash compared, every number finite.

    Args:
        folder: where.
        check: False where these very files were checked before and time matters: neither the hash
            nor the numbers are looked at then.

    Raises:
        AdapterError: the folder is no adapter; a foreign, truncated, pickled or changed file; a
            variant that lorakit does not do.
    """
    folder = adapter_folder(folder)
    config, record = read_config(folder), read_record(folder)
    file = folder / TENSORS
    if check:
        tensors, digest = read_tensors_and_hash(file)
        if record is not None and record.tensors_sha256 != digest:
            raise AdapterError(
                f"{file} is not the file that lorakit.json was written for (its SHA-256 differs): it "
                "was damaged, or replaced; remove lorakit.json if that was meant"
            )
        require_finite(file, tensors)
    else:
        tensors = read_tensors_at_once(file)
    own, notes = own_names(file, tensors, record.moved if record else {})
    named = {own[name]: tensor for name, tensor in tensors.items()}
    lasting, more = without_training(named, config.in_training)
    named, notes = {name: named[name] for name in lasting}, (*notes, *more)
    config = replace(config, moved=record.moved if record else {})
    return AdapterFiles(folder, config, record, named, notes)


def read_stored(folder: str | Path, *, check: bool = True) -> StoredAdapter:
    """Read an adapter folder as a value, everything checked that can be without a model.

    Tensors narrower than float32 are widened, which is exact.

    Args:
        folder: where.
        check: as for `open_adapter`; shapes are compared in any case.

    Raises:
        AdapterError: as `open_adapter`; or a missing, extra or misshapen tensor.
    """
    return stored_of(open_adapter(folder, check=check))


def stored_of(opened: AdapterFiles) -> StoredAdapter:
    """The files of an adapter as a value; see `read_stored`.

    Raises:
        AdapterError: a missing, extra or misshapen tensor.
    """
    config, tensors = opened.config, opened.tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    pairs: dict[str, Pair] = {}
    taken: set[str] = set()
    variant = config.spec.variant
    kinds = pair_kinds(opened.file, shapes, config)
    for path, names in tensor_names(kinds, variant).items():
        kind = kinds[path]
        taken |= set(names.values())
        more = {key: _wide(tensors[name]) for key, name in names.items()}
        A, B = more.pop("A"), more.pop("B")
        check_pair(opened.file, path, kind, tuple(A.shape), tuple(B.shape))
        alpha = first_hit(config.spec.alpha_pattern, path, config.spec.alpha)
        rank = first_hit(config.spec.rank_pattern, path, config.spec.rank)
        experts = len(A) // rank if kind == "experts" else 0
        scale = variant.scale(alpha, rank if experts else A.shape[0])
        if kind == "linear" and config.fan_in_fan_out:
            kind = "conv1d"
        pairs[path] = Pair(A, B, alpha, scale, kind, more=more, experts=experts)
    others = {name: tensor for name, tensor in tensors.items() if name not in taken}
    beside = {name: _wide(tensor) for name, tensor in others.items() if belongs(name, config.spec)}
    whole = {name: tensor for name, tensor in others.items() if name not in beside}
    copies = tuple(f"{name} is a copy of a weight of the base and was set aside" for name in whole)
    dense = tuple(path for path, pair in pairs.items() if not pair.experts)
    spec = config.spec if config.plain else replace(config.spec, targets=dense)
    config = replace(config, spec=spec)
    notes = (*opened.notes, *copies)
    return StoredAdapter(opened.folder, config, opened.record, pairs, beside, whole, notes)


def write_stored(
    folder: str | Path,
    adapter: StoredAdapter,
    *,
    provenance: Mapping[str, Any] | None = None,
    moments: StoredMoments | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter as a folder that peft loads.

    The folder holds adapter_model.safetensors (A and B in their own dtype), adapter_config.json,
    README.md and lorakit.json. It is written beside its place, flushed and renamed.

    Args:
        folder: where; missing or empty, unless `overwrite`.
        adapter: ranks and alphas are those of its pairs; its record names the base.
        provenance: what to record in JSON's types; None keeps what the adapter's record has.
        moments: AdamW's, for going on.
        overwrite: replace what is there, once the new folder is whole.

    Returns:
        The folder.

    Raises:
        AdapterError: it has no pairs, or one with other tensors than its variant keeps.
        OutputError: the folder holds something, or cannot be written (a full disk).
        ConfigError: `provenance` holds something that JSON cannot.
    """
    if not adapter.pairs:
        raise AdapterError(f"{adapter.source} has no pair: there is nothing to write")
    known, pairs = adapter.record, adapter.pairs
    base = known.base if known else None
    told = provenance if provenance is not None or known is None else known.provenance
    config = write_config(
        adapter.config,
        ranks={path: pair.rank for path, pair in pairs.items()},
        alphas={path: pair.alpha for path, pair in pairs.items()},
        kinds={path: pair.kind for path, pair in pairs.items()},
    )
    own = {**_named(pairs, adapter.spec.variant), **adapter.beside}
    tensors = {name: own[first] for first, name in renamed(own, adapter.config.moved).items()}
    held = {path for name in own if (found := pair_of(name)) for path in found[:1]}
    moved = {path: there for path, there in adapter.config.moved.items() if path in held}
    make_record(adapter.spec, "", base, told)  # refuses what it cannot hold before any writing

    def fill(partial: Path) -> None:
        write_tensors(partial / TENSORS, tensors)
        digest = hash_of(partial / TENSORS)[1]
        write_record(partial, make_record(adapter.spec, digest, base, told, moved))
        write_moments(partial, moments, digest)
        write_trained_rows(partial, adapter.rows, digest)
        write_json(partial / CONFIG, config, sort_keys=True)
        recorded = (base or {}).get("name") or adapter.config.base_name
        card = model_card(adapter.spec, pairs, recorded, told)
        write_text(partial / "README.md", card)

    return write_folder(Path(folder), fill, overwrite=overwrite, what="adapter")


def _named(pairs: Mapping[str, Pair], variant: Variant) -> dict[str, Tensor]:
    """Every tensor by its name in peft's format, once the pairs have what the variant keeps."""
    named: dict[str, Tensor] = {}
    all_names = tensor_names({path: pair.kind for path, pair in pairs.items()}, variant)
    for path, pair in pairs.items():
        names = all_names[path]
        if pair.tensors.keys() != names.keys():
            raise AdapterError(
                f"{path} has the tensors {', '.join(pair.tensors)}, and the variant "
                f"{variant.name} keeps {', '.join(names)}: a tensor would be lost"
            )
        named |= {names[key]: tensor for key, tensor in pair.tensors.items()}
    return named


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
