"""W + s·B·A into a quantized folder, block of rows by block of rows: added in float32, quantized once.

What was written is read back: each number lies within half a step of W + s·B·A, and the certificate says
what share of the update that is (survival.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lorakit.errors import ModelError, TargetError
from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.files.tensors import DTYPES
from lorakit.kernels.packed.packing import rows as packed_rows
from lorakit.lora.variant import Capability, require_capability
from lorakit.merging.expert_files import FilePairs
from lorakit.merging.merge_files import (
    copies_of,
    jobs_of,
    planned_copy,
    planned_merge,
    read_back,
    write_index,
)
from lorakit.merging.quantized_formats import Format, blocks, quantized_alike
from lorakit.merging.quantized_report import QuantizedCheck, QuantizedReport
from lorakit.merging.survival import Survival
from lorakit.merging.tensor_merge import TensorMerge
from lorakit.models.weights import tensors_of

# NF4 moves a weight by a tenth of its norm, GPTQ's 2 bits by a third.
_OTHER_MODEL = 0.5


@dataclass(frozen=True, eq=False)
class _Weight:
    """One matrix that is going to be quantized.

    Attributes:
        place: W, in a float format.
        footing: W_q dequantized; None: W quantized is.
        job: the update of it, if any.
    """

    place: StoredTensor
    footing: StoredTensor | None
    job: TensorMerge | None
    form: Format

    @property
    def shape(self) -> tuple[int, int]:
        out, width = self.place.entry.shape
        return out, width

    def merged(self, start: int, stop: int) -> Tensor:
        """Rows of W + s·B·A in float32.

        Raises:
            ModelError: they hold NaN or infinity, for which there is no level.
        """
        if self.job is not None:
            rows = self.job.merged(start, stop, torch.float32)
        else:
            rows = shards.read_rows(self.place, start, stop).float()
        if not rows.isfinite().all():
            raise ModelError(
                f"{self.place.name} is not finite once it is merged, and {self.form.name} has no such number"
            )
        return rows

    def quantized(self, start: int, stop: int) -> Tensor:
        """Rows of W_q in float32."""
        if self.footing is not None:
            return shards.read_rows(self.footing, start, stop).float()
        return quantized_alike(self.form, shards.read_rows(self.place, start, stop).float())


def merge_quantized(
    files: FilePairs,
    held: Mapping[str, StoredTensor],
    names: Sequence[str],
    form: Format,
    folder: Path,
    *,
    dtype: torch.dtype,
    based: bool,
    full: Mapping[str, StoredTensor] | None = None,
    packed: Mapping[str, Sequence[StoredTensor]] | None = None,
    tied: Sequence[Sequence[str]] = (),
) -> QuantizedReport:
    """Write the weight files of a merged quantized model and check them.

    Args:
        files: the adapter by the tensors of the base.
        held: every tensor of the base in a float format: dequantized where it is quantized.
        names: of the tensors to quantize.
        form: how.
        folder: gets the files; they must not be there.
        dtype: what the quantized layers compute in.
        based: whether `held` is a quantized base, so that its numbers are W_q.
        full: the same weights in full precision: W, where `held` is W_q.
        packed: of a base in this very format the tensors of each weight, copied where no pair changes it.
        tied: names of each parameter that several modules hold, where merging unties.

    Raises:
        ModelError: `full` is of another model.
        TargetError: a weight cannot take its product.
    """
    require_capability(
        *(files.plan.spec.variant, Capability.MERGE_ROWS, "merging"),
        "merge into full precision instead, without --quantize",
    )
    jobs = jobs_of(files.places, files.plan, files.pairs)
    weights = {name: _weight(name, held, full, jobs, form, based) for name in names}
    distance = None if full is None else _distance(weights)
    extra = copies_of(jobs, held, tied)
    kept = packed or {}
    written: dict[Path, list[shards.Planned]] = {}
    copied, floats = 0, []
    for place in sorted(held.values(), key=lambda p: (p.file, p.entry.start)):
        there = written.setdefault(place.file, [])
        weight = weights.get(place.name)
        if weight is not None and weight.job is None and place.name in kept:
            there += [planned_copy(part, part.name, None) for part in kept[place.name]]
        elif weight is not None:
            there += form.planned(place.name, weight.shape, dtype, weight.merged)
        elif place.name in jobs:
            there += [planned_merge(job, None) for job in jobs[place.name]]
            floats += [(job, place.file.name) for job in jobs[place.name]]
        else:
            there.append(planned_copy(place, place.name, None))
            copied += 1
        there += [planned_copy(place, name, None) for name in extra.get(place.name, ())]
        copied += len(extra.get(place.name, ()))
    for file, tensors in written.items():
        shards.write_stream(folder / file.name, tensors)
    write_index(folder, {file.name: tensors for file, tensors in written.items()})
    back = tensors_of(folder)
    checks = tuple(_checked(weight, back) for weight in weights.values())
    merged = tuple(read_back(job, folder / file, None) for job, file in floats)
    return QuantizedReport(form.name, checks, merged, copied, distance)


def _weight(
    name: str,
    held: Mapping[str, StoredTensor],
    full: Mapping[str, StoredTensor] | None,
    jobs: Mapping[str, Sequence[TensorMerge]],
    form: Format,
    based: bool,
) -> _Weight:
    """Where W, W_q and the update of one weight are."""
    place = held[name]
    source = place if full is None else _same(name, place, full)
    if source.entry.dtype not in DTYPES:
        raise TargetError(f"{source.file}: {name} is kept as {source.entry.dtype}, not as floats")
    own = jobs.get(name, ())
    if len(own) > 1 or any(job.name != name for job in own):
        raise TargetError(
            f"{name} is shared by modules that their pairs make different, and such a weight is not "
            "quantized here: merge without --quantize"
        )
    job = None
    if own:
        job = replace(own[0], place=source, name=name)
    return _Weight(source, place if based else None, job, form)


def _same(name: str, place: StoredTensor, full: Mapping[str, StoredTensor]) -> StoredTensor:
    found = full.get(name)
    if found is None or found.entry.shape != place.entry.shape:
        what = "holds no such tensor" if found is None else f"has it as {found.entry.shape}"
        raise ModelError(
            f"--full-base is another model: the base's {name} is {place.entry.shape}, and it {what}"
        )
    return found


def _rows_of(weight: _Weight) -> Iterator[tuple[int, int]]:
    return blocks(weight.form, weight.shape)


def _distance(weights: Mapping[str, _Weight]) -> float:
    """‖W - W_q‖ / ‖W_q‖ over all weights.

    Raises:
        ModelError: it is more than quantizing makes, or one holds NaN.
    """
    apart = size = 0.0
    for weight in weights.values():
        for start, stop in _rows_of(weight):
            W_q = weight.quantized(start, stop).double()
            W = shards.read_rows(weight.place, start, stop).double()
            apart += float((W - W_q).square().sum())
            size += float(W_q.square().sum())
    distance = (apart / size) ** 0.5 if size else 0.0
    if not distance <= _OTHER_MODEL:
        raise ModelError(
            f"--full-base is another model: its weights are {distance:.2f} of the base's norm away from the "
            f"quantized ones, and quantizing moves them by less than {_OTHER_MODEL}"
        )
    return distance


def _checked(weight: _Weight, back: Mapping[str, StoredTensor]) -> QuantizedCheck:
    """Read a quantized weight back and hold it against W + s·B·A in float64."""
    name = weight.place.name
    packing = weight.form.stored(back, name, weight.shape)
    error, finite, parts = 0.0, True, []
    for start, stop in _rows_of(weight):
        exact = shards.read_rows(weight.place, start, stop).double()
        update = None
        if weight.job is not None:
            update = weight.job.update(start, stop, torch.float32)
            exact = exact + weight.job.update(start, stop, torch.float64)
        found = packed_rows(packing, start, stop, torch.float32)
        gap = (found.double() - exact).abs()
        allowed = weight.form.half_steps(exact).clamp_min(1e-30)
        error = max(error, float((gap / allowed).max()))
        finite = finite and bool(gap.isfinite().all())
        if update is not None:
            parts.append(Survival.of(update, found - weight.quantized(start, stop)))
    # Sums in float32 may fall on the other side of a middle; NaN compares false and so fails.
    passed = finite and error <= 1.001
    return QuantizedCheck(name, error, Survival.total(parts) if parts else None, passed)
