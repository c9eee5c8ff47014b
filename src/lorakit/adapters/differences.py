"""How large an adapter's layers are, and how two adapters differ.

ΔW = s·B·A is never formed: its singular values come from `lora/spectrum.py`, and those of a
difference from the stacked pairs, since ΔW₁ - ΔW₂ = [s₁B₁, -s₂B₂]·[A₁; A₂].
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lorakit.adapters.pairs import Pair, StoredAdapter
from lorakit.adapters.store.summary import numbers
from lorakit.lora.spectrum import spectrum
from lorakit.lora.variant import Capability, cannot

# A singular value below this share of the largest spans nothing: it is rounding of float32 pairs.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Size:
    """One layer of an adapter.

    Attributes:
        path: of the module.
        rank, scale: of its pair.
        norm: Frobenius norm of ΔW; None for a grouped convolution, which has no single product.
        largest: its largest singular value, likewise.
        effective: how many singular values hold 90 % of the sum of squares, likewise; those of all experts
            together where the parameter holds several.
    """

    path: str
    rank: int
    scale: float
    norm: float | None
    largest: float | None
    effective: int | None


@dataclass(frozen=True)
class LayerDifference:
    """One module that both adapters have.

    Attributes:
        path: of the module.
        norm_a, norm_b: Frobenius norms of ΔW.
        norm_difference: of ΔW_a - ΔW_b.
        cosine: <ΔW_a, ΔW_b> / (norm_a · norm_b); None where one is zero.
        overlap_in, overlap_out: of the input and output subspaces, see `overlap`; None likewise.
    """

    path: str
    norm_a: float
    norm_b: float
    norm_difference: float
    cosine: float | None
    overlap_in: float | None
    overlap_out: float | None


@dataclass(frozen=True)
class Differences:
    """What differs between two adapters.

    Attributes:
        facts: name -> (a, b), where they differ: base, configuration, data, and options of the
            runs they came from.
        metrics: name -> (a, b), all that either has.
        layers: the modules that both have.
        only_a, only_b: paths that one alone has.
        unlike: modules whose shapes differ, or that have no single product; a reason each.
    """

    facts: Mapping[str, tuple[Any, Any]]
    metrics: Mapping[str, tuple[float | None, float | None]]
    layers: tuple[LayerDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unlike: Mapping[str, str]


def sizes(adapter: StoredAdapter) -> list[Size]:
    """The layers of an adapter, the largest first."""
    found = []
    for path, pair in adapter.pairs.items():
        if pair.grouped or Capability.SHRINK not in adapter.spec.variant.capabilities:
            found.append(Size(path, pair.rank, pair.scale, None, None, None))
            continue
        each = [spectrum(one.A, one.B, one.scale)[1] for one in pair.each]
        S = torch.cat(each).sort(descending=True).values
        squares = S.square().cumsum(0)
        enough = int((squares < 0.9 * squares[-1]).sum()) + 1 if float(squares[-1]) > 0 else 0
        norm, largest = float(S.norm()), float(S[0])
        found.append(Size(path, pair.rank, pair.scale, norm, largest, enough))
    return sorted(found, key=lambda size: -(size.norm or 0.0))


def overlap(U: Tensor, V: Tensor) -> float | None:
    """How much of the smaller of two subspaces lies in the other: 0 (none) to 1 (all).

        φ = ||Uᵀ V||_F² / min(i, j)        U: (n, i), V: (n, j), orthonormal columns

    This is the normalised subspace similarity of Hu et al. (arXiv 2106.09685, section 7.2 and
    appendix G), there between the top i and top j right singular vectors of two A. Here it is
    taken of ΔW's own singular vectors, which do not depend on how ΔW is split into B and A: the
    right ones span the inputs that it reads, the left ones the outputs that it writes. Random
    subspaces have φ = max(i, j) / n in the mean.

    >>> e = torch.eye(4)
    >>> overlap(e[:, :2], e[:, 1:4])
    0.5

    Returns:
        φ, or None where a subspace is empty.
    """
    if not min(U.shape[1], V.shape[1]):
        return None
    return float((U.mT @ V).square().sum()) / min(U.shape[1], V.shape[1])


def layer_difference(path: str, a: Pair, b: Pair) -> LayerDifference:
    """Norms, angle and overlaps of two updates of one module, in float64."""
    U_a, S_a, Vh_a = _spanned(a)
    U_b, S_b, Vh_b = _spanned(b)
    norm_a, norm_b = float(S_a.norm()), float(S_b.norm())
    stacked_B = torch.cat([a.scale * b_rows(a), -b.scale * b_rows(b)], dim=1)
    stacked_A = torch.cat([a.A.double().flatten(1), b.A.double().flatten(1)])
    inner = float(((S_a[:, None] * (U_a.mT @ U_b) * S_b) * (Vh_a @ Vh_b.mT)).sum())
    return LayerDifference(
        path,
        norm_a,
        norm_b,
        float(spectrum(stacked_A, stacked_B, 1.0)[1].norm()),
        inner / (norm_a * norm_b) if norm_a and norm_b else None,
        overlap(Vh_a.mT, Vh_b.mT),
        overlap(U_a, U_b),
    )


def experts_difference(path: str, a: Pair, b: Pair) -> LayerDifference:
    """The same for a parameter of many experts: norms and angle of all updates as one long vector.

    Subspaces are each expert's own; their overlaps are the means over the experts that have them.
    """
    each = [layer_difference(path, x, y) for x, y in zip(a.each, b.each, strict=True)]
    norm_a, norm_b, apart = (
        sum(getattr(one, name) ** 2 for one in each) ** 0.5
        for name in ("norm_a", "norm_b", "norm_difference")
    )
    inner = sum((one.cosine or 0.0) * one.norm_a * one.norm_b for one in each)
    whole = norm_a * norm_b
    overlaps: list[float | None] = []
    for name in ("overlap_in", "overlap_out"):
        known = [x for one in each if (x := getattr(one, name)) is not None]
        overlaps.append(sum(known) / len(known) if known else None)
    cosine = inner / whole if whole else None
    return LayerDifference(path, norm_a, norm_b, apart, cosine, overlaps[0], overlaps[1])


def b_rows(pair: Pair) -> Tensor:
    """B as a matrix (out, rank), float64."""
    return pair.B.double().flatten(1)


def differences(a: StoredAdapter, b: StoredAdapter) -> Differences:
    """Compare two adapters: configurations, data, figures, weights."""
    layers, unlike = [], {}
    variants = (a.spec.variant, b.spec.variant)
    lacking = [variant for variant in variants if Capability.SUM not in variant.capabilities]
    for path, pair in a.pairs.items():
        other = b.pairs.get(path)
        if other is None:
            continue
        if lacking:
            unlike[path] = cannot(lacking[0], Capability.SUM)
        elif pair.grouped or other.grouped:
            unlike[path] = "a grouped convolution has no single product B·A"
        elif _sides(pair) != _sides(other):
            unlike[path] = "its shapes differ: the adapters are of different bases"
        elif pair.experts:
            layers.append(experts_difference(path, pair, other))
        else:
            layers.append(layer_difference(path, pair, other))
    measured_a, measured_b = numbers(_told(a).get("metrics")), numbers(_told(b).get("metrics"))
    return Differences(
        facts=_facts(a, b),
        metrics={
            name: (measured_a.get(name), measured_b.get(name)) for name in measured_a | measured_b
        },
        layers=tuple(layers),
        only_a=tuple(path for path in a.pairs if path not in b.pairs),
        only_b=tuple(path for path in b.pairs if path not in a.pairs),
        unlike=unlike,
    )


def _sides(pair: Pair) -> tuple[int, ...]:
    """What two updates of one module have in common, whatever their ranks."""
    return (pair.experts, pair.B.shape[0], *pair.A.shape[1:])


def _spanned(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD without the singular values that are nothing."""
    U, S, Vh = spectrum(pair.A, pair.B, pair.scale)
    kept = int((_NOTHING * S[0] < S).sum())
    return U[:, :kept], S[:kept], Vh[:kept]


def _told(adapter: StoredAdapter) -> Mapping[str, Any]:
    return (adapter.record.provenance if adapter.record else None) or {}


def _facts(a: StoredAdapter, b: StoredAdapter) -> dict[str, tuple[Any, Any]]:
    """Named facts of which the two have different ones."""
    pair = [_described(a), _described(b)]
    names = dict.fromkeys([*pair[0], *pair[1]])
    both = {name: (pair[0].get(name), pair[1].get(name)) for name in names}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _described(adapter: StoredAdapter) -> dict[str, Any]:
    told, base = _told(adapter), adapter.info.base or {}
    found: dict[str, Any] = {"base": base.get("name") or adapter.config.base_name}
    hashes = ("weights_sha256", "tokenizer_sha256", "template_sha256")
    found |= {f"base {name}": base.get(name) for name in hashes}
    for field in fields(adapter.spec):
        value = getattr(adapter.spec, field.name)
        found[field.name] = list(value) if isinstance(value, tuple) else value
    found["data_sha256"] = told.get("data_sha256")
    found["template"] = (told.get("template") or {}).get("sha256")
    run = told.get("config") or {}
    # What the adapter says of itself is above; of the run the rest.
    return found | {f"run {key}": value for key, value in run.items() if key not in found}
