"""An adapter of a lower rank: module by module, or by one threshold for all."""

from pathlib import Path

import torch

from lorakit.adapters.combine import Combined, combine
from lorakit.adapters.experts_refused import refuse_beside, refuse_experts
from lorakit.adapters.pairs import StoredAdapter, rounded, unit_pair
from lorakit.adapters.parents import Part, common_config, made_of, method_of
from lorakit.adapters.specs import CombineSpec, ShrinkSpec
from lorakit.errors import AdapterError
from lorakit.lora import spectrum
from lorakit.lora.variant import Capability, require_capability


def shrink(
    adapter: StoredAdapter,
    spec: ShrinkSpec,
    *,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Combined:
    """Cut an adapter's pairs to their first singular values.

    The error is exactly the singular values that were cut; what it does to the answers, the
    singular values do not tell.

    Args:
        adapter: not changed.
        spec: how far. With `threshold` the singular values of all modules are ranked together,
            which for a number of them leaves the smallest error of all modules together.
        name: what the user calls it, for the record.
        dtype: of the new A and B.

    Raises:
        AdapterError: the adapter's variant cannot be cut; a pair of a grouped convolution.
    """
    require_capability(
        *(adapter.spec.variant, Capability.SHRINK, adapter.source),
        "train one of a lower rank instead",
    )
    refuse_beside(adapter, "pairs alone can be cut", "train one of a lower rank instead")
    refuse_experts(
        adapter,
        "shrinking works on linear layers only",
        "train one of a lower rank instead",
    )
    part = Part(adapter, name=name)
    if not spec.threshold:
        made = combine(
            [part], CombineSpec(how="svd", rank=spec.rank, energy=spec.energy), dtype=dtype
        )
        parts_ranks = {path: pair.rank for path, pair in made.adapter.pairs.items()}
        pairs, lost, overall = made.adapter.pairs, made.lost, made.overall
    else:
        for path, pair in adapter.pairs.items():
            if pair.grouped:
                raise AdapterError(f"{adapter.source}: {path} is a convolution with groups")
        thin = {p: spectrum.spectrum(x.A, x.B, x.scale) for p, x in adapter.pairs.items()}
        parts_ranks = spectrum.global_threshold(
            {path: S for path, (_, S, _) in thin.items()}, rank=spec.rank, energy=spec.energy
        )
        pairs, lost, missed, whole = {}, {}, 0.0, 0.0
        for path, (U, S, Vh) in thin.items():
            k, pair = parts_ranks[path], adapter.pairs[path]
            A, B = spectrum.factors(U, S, Vh, k, pair.A, pair.B)
            pairs[path] = rounded(unit_pair(A, B, pair.kind), dtype)
            gone, all_of_it = float(S[k:].norm()), float(S.norm())
            lost[path] = gone / all_of_it if all_of_it else 0.0
            missed, whole = missed + gone**2, whole + all_of_it**2
        overall = (missed / whole) ** 0.5 if whole else 0.0
    config, notes = common_config([part], force=True)
    method = {"name": "shrink", **method_of(spec, lost=overall)}
    told = made_of([part], config, parts_ranks, method=method, notes=notes)
    made_adapter = StoredAdapter(Path("shrink"), told.config, told.record, pairs, rows=told.rows)
    return Combined(made_adapter, lost, overall, tuple(notes))
