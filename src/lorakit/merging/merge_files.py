"""W + s·B·A into the files of a model, block of rows by block of rows.

The new folder has the base's shards and index; a tensor without a pair is copied byte for byte.
What was written is read back and held against W + s·B·A in float64, so that a model of any size
has a certificate of its weights. Memory is a few blocks of rows, not a shard.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.adapters.pairs import Pair
from lorakit.errors import TargetError
from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.files.tensors import CODES, DTYPES
from lorakit.files.whole import write_json
from lorakit.lora import Plan
from lorakit.lora.experts import expert_factors
from lorakit.lora.variant import Capability, require_capability
from lorakit.lora.whole import Whole
from lorakit.merging.factor_files import FactorMerge
from lorakit.merging.tensor_merge import ExpertsMerge, TensorMerge, ValueMerge, factors, turned
from lorakit.models.weights import OtherNamesError

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightCheck:
    """One merged tensor as it was written, against W + s·B·A in float64.

    Attributes:
        name: of the tensor in the new folder.
        dtype: of the written numbers.
        largest_error: largest absolute difference.
        largest_rounding: largest difference as a share of what rounding may do to its entry: half
            a unit in the last place of `dtype` and, where the sum was in float32, its error.
        update_lost: ‖written - (W + ΔW)‖ / ‖ΔW‖: the share of the update that rounding swallowed.
        passed: that share is at most 1, give or take a thousandth.
    """

    name: str
    dtype: str
    largest_error: float
    largest_rounding: float
    update_lost: float
    passed: bool


@dataclass(frozen=True)
class WeightsReport:
    """All merged tensors of a folder, and how many were copied as they are."""

    merged: tuple[WeightCheck, ...]
    copied: int

    @property
    def passed(self) -> bool:
        """Whether every merged tensor is what it should be."""
        return all(check.passed for check in self.merged)

    def to_dict(self) -> dict[str, Any]:
        """JSON's own types."""
        rows = [asdict(check) for check in self.merged]
        return {"passed": self.passed, "copied": self.copied, "merged": rows}

    def __str__(self) -> str:
        rounding = max(check.largest_rounding for check in self.merged)
        lost = max(check.update_lost for check in self.merged)
        return (
            f"weights read back: {len(self.merged)} merged tensors, the worst entry at {rounding:.3g} of "
            f"what rounding to {self.merged[0].dtype} may do; it took at most {lost:.2g} of a layer's "
            f"update; {self.copied} tensors copied"
        )


def merge_files(
    places: Mapping[str, StoredTensor],
    held: Mapping[str, StoredTensor],
    plan: Plan,
    pairs: Mapping[str, Pair],
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    tied: Sequence[Sequence[str]] = (),
    values: Sequence[Tensor] = (),
) -> WeightsReport:
    """Write the weight files of the merged model and check them.

    Args:
        places: where the weight of each target lies, by its name in the model (`PATH.weight`; the path
            itself of a bare parameter).
        held: every tensor of the base's files.
        plan: of the adapter on this base: layout and ties of each target.
        pairs: by path.
        folder: gets the files; they must not be there.
        dtype: of all floating-point tensors; None keeps each as it is.
        tied: names of each parameter of the model that several modules hold, where merging unties: then
            each name gets a tensor of its own, merged or copied.
        values: of what the plan changes beside the pairs, in its order.

    Raises:
        TargetError: a weight cannot take its product: a grouped convolution, or integers.
        AdapterError: the variant cannot be merged by rows.
        OtherNamesError: a tied weight has a name in the files that the model does not know.
    """
    require_capability(
        *(plan.spec.variant, Capability.MERGE_ROWS, "merging"),
        "merge it in memory instead: certify by logits, or `write_merged`",
    )
    jobs = jobs_of(places, plan, pairs)
    for job in _value_jobs(places, plan.whole, values, split={n for tie in tied for n in tie}):
        jobs.setdefault(job.place.name, []).append(job)
    extra = copies_of(jobs, held, tied)
    written: dict[Path, list[shards.Planned]] = {}
    for place in sorted(held.values(), key=lambda p: (p.file, p.entry.start)):
        there = written.setdefault(place.file, [])
        there += [planned_merge(job, dtype) for job in jobs.get(place.name, ())]
        if place.name not in jobs:
            there.append(planned_copy(place, place.name, dtype))
        # The others of a tie keep the base's numbers under their own names.
        there += [planned_copy(place, name, dtype) for name in extra.get(place.name, ())]
    for file, tensors in written.items():
        shards.write_stream(folder / file.name, tensors)
    write_index(folder, {file.name: tensors for file, tensors in written.items()})
    names = {place.file: place.file.name for place in held.values()}
    merged = [job for same in jobs.values() for job in same]
    checks = [read_back(job, folder / names[job.place.file], dtype) for job in merged]
    copied = sum(map(len, written.values())) - len(merged)
    return WeightsReport(tuple(checks), copied)


def jobs_of(
    places: Mapping[str, StoredTensor], plan: Plan, pairs: Mapping[str, Pair]
) -> dict[str, list[TensorMerge]]:
    """What to merge by the base's name of the tensor: several of one that modules with pairs share."""
    jobs: dict[str, list[TensorMerge]] = {}
    for target in plan.targets:
        bare = target.geometry.kind == "experts"
        place = places[target.path if bare else f"{target.path}.weight"]
        pair = pairs[target.path]
        if place.entry.dtype not in DTYPES:
            raise TargetError(
                f"{place.file}: {place.name} is kept as {place.entry.dtype} and cannot take s·B·A: "
                "merge into the unquantized base"
            )
        if pair.grouped:
            raise TargetError(f"{target.path} is a convolution with groups: keep it unmerged")
        if bare and len(place.entry.shape) > 2:
            left, right = expert_factors(pair.A, pair.B, target.geometry)
            experts = ExpertsMerge(place, place.name, left, right, pair.scale)
            jobs.setdefault(place.name, []).append(experts)
            continue
        left, right = factors(target, pair)
        name = place.name
        if target.tied_to:
            name, others = f"{target.path}.weight", [f"{path}.weight" for path in target.tied_to]
            if place.name not in (name, *others):
                raise OtherNamesError(
                    f"{place.file} calls the tied weight {place.name}, and the model {name}"
                )
        five = place, name, left, right, pair.scale
        merge = TensorMerge(*five)
        if Capability.FACTOR in target.variant.capabilities:
            merge = FactorMerge(*five, target.variant, pair.tensors, turned(target))
        jobs.setdefault(place.name, []).append(merge)
    return jobs


def _value_jobs(
    places: Mapping[str, StoredTensor],
    whole: Sequence[Whole],
    values: Sequence[Tensor],
    *,
    split: Collection[str],
) -> Iterator[ValueMerge]:
    """What to write of values beside pairs; each name gets its own where ties are split.

    Raises:
        TargetError: a bias that the base has no place for.
    """
    replaced = {w.names[0]: v for w, v in zip(whole, values, strict=True) if w.kind == "bias"}
    summed = {w.names[0] for w in whole if w.kind == "added"} & replaced.keys()
    for what, value in zip(whole, values, strict=True):
        name = what.names[0]
        if name in summed:  # the base's bias trained, and one beside the pair: one tensor
            if what.kind == "bias":
                continue
            value, what = replaced[name] + what.scale * value, replace(what, kind="bias")
        if name not in places:
            raise TargetError(
                f"the adapter has a bias for {name}, and the base's layer has none: an ordinary model "
                "folder of it has no place for that; keep the adapter beside its base"
            )
        for own in what.names if name in split else (None,):
            place = places[name]
            yield ValueMerge(place, own or place.name, value, value, what.scale, what=what)


def copies_of(
    jobs: Mapping[str, Sequence[TensorMerge]],
    held: Mapping[str, StoredTensor],
    tied: Sequence[Sequence[str]],
) -> dict[str, list[str]]:
    """Names by the base's tensor of which each gets a copy: those of a tie that nothing else writes."""
    merged = {job.name for same in jobs.values() for job in same}
    copies: dict[str, list[str]] = {}
    for names in tied:
        sources = [name for name in names if name in held]
        if not sources:
            raise OtherNamesError(f"the files of this model hold no tensor {' or '.join(names)}")
        for name in names:
            if name in merged or (name in held and name not in jobs):
                continue
            copies.setdefault(name if name in held else sources[0], []).append(name)
    return copies


def planned_copy(place: StoredTensor, name: str, dtype: torch.dtype | None) -> shards.Planned:
    """A tensor of the base as it is, or in another floating-point format."""
    entry = place.entry
    own = DTYPES.get(entry.dtype)
    if dtype is None or own is None or own == dtype:
        return shards.Planned(
            name, entry.dtype, entry.shape, shards.raw(place), entry.end - entry.start
        )
    return _made(name, dtype, entry.shape, _converted(place, dtype))


def _converted(place: StoredTensor, dtype: torch.dtype) -> Iterator[memoryview]:
    if not place.entry.shape:
        yield shards.as_bytes(shards.read_whole(place).to(dtype))
        return
    for start, stop in shards.blocks(place.entry.shape):
        yield shards.as_bytes(shards.read_rows(place, start, stop).to(dtype))


def planned_merge(job: TensorMerge, dtype: torch.dtype | None) -> shards.Planned:
    """A tensor of the base with its update, in its own format or in another."""
    entry = job.place.entry
    kept = dtype or DTYPES[entry.dtype]
    parts = (shards.as_bytes(job.merged(a, b, kept)) for a, b in shards.blocks(entry.shape))
    return _made(job.name, kept, entry.shape, parts)


def _made(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], parts: Iterator[memoryview]
) -> shards.Planned:
    size = math.prod(shape) * dtype.itemsize
    return shards.Planned(name, CODES[dtype], shape, parts, size)


def write_index(folder: Path, written: Mapping[str, Sequence[shards.Planned]]) -> None:
    """The index of several shards, as transformers writes it; a single file has none."""
    if len(written) == 1 and "model.safetensors" in written:
        return
    where = {tensor.name: file for file, tensors in written.items() for tensor in tensors}
    total = sum(tensor.size for tensors in written.values() for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_json(folder / INDEX, index)


def read_back(job: TensorMerge, file: Path, dtype: torch.dtype | None) -> WeightCheck:
    """Read a merged tensor back and compare it with W + s·B·A in float64.

    What may differ: half a unit in the last place of the format, and where the sum ran in float32
    (rank + 2) · 2⁻²⁴ · (|W| + |s| ‖b‖ ‖a‖), the error bound of its inner products.
    """
    entry = job.place.entry
    kept = dtype or DTYPES[entry.dtype]
    eps = torch.finfo(kept).eps
    least = float(torch.finfo(kept).smallest_normal) * eps / 2
    in_float32 = job.left.dtype != torch.float64 and entry.dtype != "F64"
    unit = (job.left.shape[-1] + 2) * 2.0**-24 if in_float32 else 2.0**-50
    back = StoredTensor(file, job.name, entry)
    error = rounding = missed = size = 0.0
    for start, stop in shards.blocks(entry.shape):
        W = shards.read_rows(job.place, start, stop).double()
        update = job.update(start, stop, torch.float64)
        reach = job.reach(start, stop)
        exact = W + update
        gap = (shards.read_rows(back, start, stop).double() - exact).abs()
        allowed = exact.abs().mul_(eps / 2).add_(least).add_(W.abs().add_(reach), alpha=unit)
        error = max(error, float(gap.max()))
        rounding = max(rounding, float(gap.div(allowed).max()))
        missed += float(gap.square().sum())
        size += float(update.square().sum())
    name = str(kept).removeprefix("torch.")
    lost = (missed / size) ** 0.5 if size else 0.0
    # NaN compares false and so fails; max() above would let one go, hence the sums.
    passed = rounding <= 1.001 and math.isfinite(missed)
    return WeightCheck(job.name, name, error, rounding, lost, passed)
