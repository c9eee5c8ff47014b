"""Several adapters of one base -> one: sums, cuts, TIES, DARE.

With ΔW_i = s_i·B_i·A_i and weights w_i, module by module (one that an adapter lacks counts as
zero):

    way        result                                              exact    peft's name
    linear     Σ w_i ΔW_i in the smallest rank that holds it       yes      (none)
    cat        the same, ranks added up, only w_i s_i folded in    yes      cat
    svd        the nearest to Σ w_i ΔW_i of a rank or an energy    no       svd
    ties       TIES of the w_i ΔW_i, then cut as svd               no       ties_svd
    dare       Σ drop(w_i ΔW_i), then cut                          no       dare_linear_svd
    dare_ties  dropped, elected and averaged, then cut             no       dare_ties_svd
    factors    (Σ √|w_i s_i| B_i) · (Σ ±√|w_i s_i| A_i)            no       linear

`linear` and `cat` with weights of either sign are task arithmetic (Ilharco et al., arXiv
2212.04089). `factors` has cross terms B_i A_j: it is here because it keeps the rank and is what
peft's `linear` does, not because it is the sum. TIES and DARE work on whole matrices, one module
in memory at a time. Everything is computed in float64 and rounded once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorakit.adapters.experts_refused import refuse_beside, refuse_experts
from lorakit.adapters.pairs import Pair, StoredAdapter, rounded, unit_pair
from lorakit.adapters.parents import Part, common_config, made_of, method_of, weights_by_path
from lorakit.adapters.specs import SPARSE, CombineSpec
from lorakit.errors import AdapterError
from lorakit.lora import arithmetic, spectrum
from lorakit.lora.variant import Capability, require_capability

# Far above float64's rounding of a product, far below anything that training leaves in a pair.
_ZERO = 1e-13


@dataclass(frozen=True, eq=False)
class Combined:
    """One adapter made of several.

    Attributes:
        adapter: not written yet; its record names the parents.
        lost: per module ‖wanted − made‖ / ‖wanted‖ (Frobenius); what was wanted is the weighted sum
            or, with ties and dare, the matrix before it was cut. 0 for the exact ways.
        overall: the same over all modules together.
        notes: what to say aloud.
    """

    adapter: StoredAdapter
    lost: Mapping[str, float]
    overall: float
    notes: tuple[str, ...] = ()


def combine(
    parts: Sequence[Part],
    spec: CombineSpec,
    *,
    source: str = "combination",
    force: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Combined:
    """Put adapters together.

    Args:
        parts: the adapters and their weights, in an order that matters for `dare` alone.
        spec: the way.
        source: what to call the result.
        force: combine although the recorded bases differ.
        dtype: of the new A and B.

    Raises:
        AdapterError: an adapter's variant cannot be summed; shapes of a module differ; a pair of a grouped convolution; `factors` on
            unequal ranks; no parts.
        BaseMismatchError: two adapters belong to different bases.
        ConfigError: a pattern of weights means no module; a weight is not finite.
    """
    if not parts:
        raise AdapterError("nothing to combine: name at least one adapter")
    for part in parts:
        require_capability(
            *(part.adapter.spec.variant, Capability.SUM, part.adapter.source),
            "merge it into a model of its own instead: lorakit merge, alone and at weight 1",
        )
        refuse_beside(
            part.adapter,
            "pairs alone can be combined or cut",
            "merge the adapters one after the other: lorakit merge",
        )
        refuse_experts(
            part.adapter,
            "combining and shrinking work on linear layers only",
            "train one of the rank that you need, or merge the adapters one after the other: lorakit merge",
        )
    config, notes = common_config(parts, force=force)
    weights = [weights_by_path(part) for part in parts]
    paths = dict.fromkeys(path for part in parts for path in part.adapter.pairs)
    pairs: dict[str, Pair] = {}
    lost: dict[str, float] = {}
    squares_lost = squares = 0.0
    for path in paths:
        held = [
            (part.adapter.pairs[path], weights[i][path], i)
            for i, part in enumerate(parts)
            if path in part.adapter.pairs
        ]
        _check_alike(path, parts, [(pair, i) for pair, _, i in held])
        made, missed, norm = _module(path, held, spec)
        pairs[path] = rounded(made, dtype)
        lost[path] = missed / norm if norm else 0.0
        squares_lost += missed**2
        squares += norm**2
    overall = (squares_lost / squares) ** 0.5 if squares else 0.0
    ranks = {path: pair.rank for path, pair in pairs.items()}
    method = {"name": "combine", **method_of(spec, lost=overall)}
    if spec.how in SPARSE:
        method["density"] = spec.share
    made_by = made_of(parts, config, ranks, method=method, notes=notes)
    adapter = StoredAdapter(Path(source), made_by.config, made_by.record, pairs, rows=made_by.rows)
    return Combined(adapter, lost, overall, tuple(notes))


_Held = tuple[Pair, float, int]


def _module(path: str, held: Sequence[_Held], spec: CombineSpec) -> tuple[Pair, float, float]:
    """The pair of one module, the norm of what it misses, and the norm of what was wanted."""
    if spec.how in ("linear", "cat", "svd", "factors"):
        A, B = _concatenated(held)
        U, S, Vh = spectrum.spectrum(A, B, 1.0)
        norm = float(S.norm())
        if spec.how == "cat":
            return _pair(A, B, held), 0.0, norm
        if spec.how == "factors":
            summed = _factors(path, held)
            # ‖wanted − made‖ from the concatenation of the two, the second negated.
            both = torch.cat([A, summed.A]), torch.cat([B, -summed.B], 1)
            return summed, float(spectrum.spectrum(*both, 1.0)[1].norm()), norm
        if spec.how == "linear":
            k = max(int(S.gt(_ZERO * S[0]).sum()), 1)
            return _pair(*spectrum.factors(U, S, Vh, k, A, B), held), 0.0, norm
    else:
        A, B = held[0][0].A, held[0][0].B
        wanted = _sparse(path, held, spec)
        U, S, Vh = torch.linalg.svd(wanted.flatten(1), full_matrices=False)
        norm = float(S.norm())
    k = spectrum.kept(S, rank=spec.rank, energy=spec.energy)
    return _pair(*spectrum.factors(U, S, Vh, k, A, B), held), float(S[k:].norm()), norm


def _concatenated(held: Sequence[_Held]) -> tuple[Tensor, Tensor]:
    """A's below each other, w_i s_i B_i beside each other: B·A = Σ w_i s_i B_i A_i, scale 1."""
    A = torch.cat([pair.A.double() for pair, _, _ in held])
    B = torch.cat([weight * pair.scale * pair.B.double() for pair, weight, _ in held], 1)
    return A, B


def _factors(path: str, held: Sequence[_Held]) -> Pair:
    ranks = {pair.rank for pair, _, _ in held}
    if len(ranks) > 1:
        raise AdapterError(
            f"factors adds the A's and the B's of {path}, whose ranks are {sorted(ranks)}: take "
            "linear or svd"
        )
    scales = [weight * pair.scale for pair, weight, _ in held]
    signed = [(-1.0 if s < 0 else 1.0) * abs(s) ** 0.5 for s in scales]
    A = sum(s * pair.A.double() for s, (pair, _, _) in zip(signed, held, strict=True))
    B = sum(abs(s) * pair.B.double() for s, (pair, _, _) in zip(signed, held, strict=True))
    assert isinstance(A, Tensor)
    assert isinstance(B, Tensor)
    return _pair(A, B, held)


def _sparse(path: str, held: Sequence[_Held], spec: CombineSpec) -> Tensor:
    """The dense matrix that ties, dare or dare_ties makes of one module."""
    updates = []
    for pair, weight, i in held:
        update = weight * _double(pair).delta()
        if spec.how == "ties":
            updates.append(arithmetic.trim(update, spec.share))
        else:
            draw = generator_of(spec.seed, i, path)
            updates.append(arithmetic.drop(update, spec.share, draw))
    if spec.how == "dare":
        return sum(updates[1:], start=updates[0])
    return arithmetic.elect(updates)


def generator_of(seed: int, index: int, path: str) -> torch.Generator:
    """The generator of what `dare` drops of adapter `index` in one module.

    Seeded by the first 8 bytes (big endian) of the SHA-256 of "seed:index:path", less its top bit, so
    that a module's entries do not depend on which other modules there are.
    """
    digest = hashlib.sha256(f"{seed}:{index}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _pair(A: Tensor, B: Tensor, held: Sequence[_Held]) -> Pair:
    return unit_pair(A, B, held[0][0].kind)


def _double(pair: Pair) -> Pair:
    return Pair(pair.A.double(), pair.B.double(), pair.alpha, pair.scale, pair.kind)


def _check_alike(path: str, parts: Sequence[Part], held: Sequence[tuple[Pair, int]]) -> None:
    first, at = held[0]
    for pair, i in held:
        name = parts[i].adapter.source
        if pair.grouped:
            raise AdapterError(
                f"{name}: {path} is a convolution with groups, where B·A is no single product: "
                "such adapters cannot be combined"
            )
        sides = [(p.B.shape[0], *p.A.shape[1:]) for p in (first, pair)]
        if sides[0] != sides[1] or first.kind != pair.kind:
            raise AdapterError(
                f"{path} is {first.kind} {sides[0]} in {parts[at].adapter.source} and {pair.kind} "
                f"{sides[1]} in {name}: these adapters belong to different models"
            )
