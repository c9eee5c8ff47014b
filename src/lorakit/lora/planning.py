"""What a spec would adapt in a model: shapes, counts, what is left out and why. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lorakit.errors import TargetError, did_you_mean
from lorakit.kernels.packed.counting import count_parameters
from lorakit.lora.called import reasons_of_idle
from lorakit.lora.gates import too_narrow
from lorakit.lora.initialisation import Initialisation
from lorakit.lora.kinds import Geometry, geometry_of, kind_of, refuse_wrapped
from lorakit.lora.parameters import (
    LINEAR,
    Bare,
    bare_parameters,
    chosen_parameters,
    expert_geometry,
    inside_blocks,
    not_adapted,
    parameter_of,
    routers_of,
)
from lorakit.lora.sharing import check_shared, tied_weights
from lorakit.lora.spec import ALL_LINEAR, LoraSpec
from lorakit.lora.targets import block_of, check_patterns, first_hit, layer_range, matches
from lorakit.lora.unreadable import unreadable
from lorakit.lora.variant import Variant
from lorakit.lora.whole import Whole, whole_of


@dataclass(frozen=True)
class Target:
    """One module that gets a pair.

    Attributes:
        path: where it is in the model.
        geometry: its kind and shape.
        rank, alpha, scale: of its own pair as it is held; scale is what the variant makes of the other two.
        frozen: parameters of the module itself, its bias included.
        variant: which tensors it gets, and what may be done with them.
        start: how they begin; of a pair that begins inside the weight half of the rank is trained.
        tied_to: paths of other modules that share its weight tensor.
    """

    path: str
    geometry: Geometry
    rank: int
    alpha: float
    scale: float
    frozen: int
    variant: Variant
    start: Initialisation
    tied_to: tuple[str, ...] = ()

    @property
    def trained_rank(self) -> int:
        """The rank of the pair that is trained."""
        return self.rank // self.start.held

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor that it gets, A and B first."""
        return self.variant.tensors(self.geometry, self.rank)

    @property
    def held(self) -> int:
        """Elements of all its tensors."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def trainable(self) -> int:
        """Those of its elements that are trained."""
        trained = self.variant.tensors(self.geometry, self.trained_rank)
        return sum(math.prod(x) for name, x in trained.items() if name not in self.start.frozen)


@dataclass(frozen=True)
class Skipped:
    """A module with weights that gets no pair, and why."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What would be adapted, in the order of the model's modules, and what would not.

    Attributes:
        whole: parameters that are trained beside the pairs, or rows of them.
    """

    spec: LoraSpec
    targets: tuple[Target, ...]
    skipped: tuple[Skipped, ...]
    total_parameters: int
    whole: tuple[Whole, ...] = ()

    @property
    def trainable(self) -> int:
        """Parameters of all pairs that are trained, and of what is trained beside them."""
        pairs = sum(target.trainable for target in self.targets)
        return pairs + sum(each.elements for each in self.whole)

    @property
    def held(self) -> int:
        """As `trainable`, with the elements of pairs that stay as they began."""
        pairs = sum(target.held for target in self.targets)
        return pairs + sum(each.elements for each in self.whole)

    def __str__(self) -> str:
        share = self.trainable / self.total_parameters
        beside = f" and {len(self.whole)} parameters beside them" if self.whole else ""
        return (
            f"{len(self.targets)} modules{beside}, {self.trainable:,} trainable parameters "
            f"({share:.2%} of {self.total_parameters:,})"
        )


def plan(model: nn.Module, spec: LoraSpec, *, any_rank: bool = False) -> Plan:
    """Say what `spec` would adapt in `model`, without touching it; the meta device will do.

    Args:
        model: the base.
        spec: what to adapt.
        any_rank: allow ranks above a module's smaller side, of pairs that exist already. Such a pair
            holds no more than one of that side's rank would, and a new one is not worth its memory.

    Raises:
        TargetError: a pattern matches nothing, or only what cannot be adapted; a rank exceeds
            its module's size; a module stands in two parents.
        ConfigError: a regular expression or layer range is malformed, or a key of rank_pattern
            or alpha_pattern means no target.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    refuse_wrapped(modules)
    candidates = [path for path, module in modules.items() if kind_of(module)]
    bare = {path: at for path, at in bare_parameters(model).items() if not kind_of(at[0])}
    reasons = _reasons_to_skip(modules, candidates, bare, spec)
    own = [path for path in candidates if path not in reasons]
    if not any_rank:
        reasons |= unreadable(model, own, spec)
        own = [path for path in own if path not in reasons]
    reasons |= reasons_of_idle(model, spec, own, exist=any_rank)
    if not any_rank:
        reasons |= too_narrow(modules, [path for path in own if path not in reasons], spec)
    chosen = [path for path in candidates if path not in reasons]
    parameters = chosen_parameters(bare, reasons, spec)
    if not chosen and not parameters:
        why = sorted(set(reasons.values()))
        raise TargetError(
            f"nothing is left to adapt with targets {list(spec.targets)}: " + "; ".join(why)
        )
    check_shared(model, chosen)
    patterns = {"rank_pattern": spec.rank_pattern, "alpha_pattern": spec.alpha_pattern}
    check_patterns(patterns, [*chosen, *parameters])
    sharing = tied_weights(modules)
    made = [_target(path, modules[path], spec, sharing[path], any_rank) for path in chosen]
    made += [_parameter_target(path, *bare[path], spec, any_rank) for path in parameters]
    # In the order of the modules, those that own the parameters among them.
    order = {path: number for number, path in enumerate(modules)}
    targets = sorted(made, key=lambda t: order[t.path if t.path in order else _owner(t.path)])
    skipped = [
        Skipped(path, type(modules[path]).__name__, why)
        for path, why in reasons.items()
        if path in modules
    ]
    skipped += [Skipped(*left) for left in not_adapted(modules, candidates, bare, parameters)]
    return Plan(
        *(spec, tuple(targets), tuple(skipped), count_parameters(model)),
        beside(model, spec, targets),
    )


def beside(model: nn.Module, spec: LoraSpec, targets: Iterable[Target]) -> tuple[Whole, ...]:
    """What is trained beside these pairs, in a model without pairs; see `whole_of`."""
    scales = {t.path: (t.scale, t.geometry.has_bias * t.geometry.out_features) for t in targets}
    return whole_of(model, spec, scales)


def _reasons_to_skip(
    modules: dict[str, nn.Module], candidates: list[str], bare: Mapping[str, Bare], spec: LoraSpec
) -> dict[str, str]:
    in_blocks = inside_blocks(modules)
    routers = routers_of(modules)
    blocks = layer_range(spec.layers) if spec.layers is not None else None
    have = sorted({b for b in map(block_of, candidates) if b is not None})
    if blocks is not None and (lost := sorted(blocks - set(have))):
        names = "no block" if len(lost) == len(blocks) else f"block {lost[0]}, which is no block"
        span = f"{have[0]} to {have[-1]}" if have else "none"
        raise TargetError(f"layers {spec.layers!r} names {names} of this model; it has {span}")
    hits: dict[str, list[str]] = {pattern: [] for pattern in (*spec.targets, *spec.exclude)}

    def is_hit(pattern: str, path: str) -> bool:
        if pattern == ALL_LINEAR:
            linear = path in modules and kind_of(modules[path]) in LINEAR
            hit = linear and path in in_blocks and path not in routers
        else:
            hit = matches(pattern, path)
        if hit:
            hits[pattern].append(path)
        return hit

    reasons: dict[str, str] = {}
    for path in candidates:
        wanted = [is_hit(pattern, path) for pattern in spec.targets]
        unwanted = [pattern for pattern in spec.exclude if is_hit(pattern, path)]
        if not any(wanted):
            head = kind_of(modules[path]) in LINEAR and path not in in_blocks
            reasons[path] = (
                "router of experts, frozen unless a target names it"
                if path in routers
                else "outside the blocks (output head)"
                if head
                else "no target names it"
            )
        elif unwanted:
            reasons[path] = f"excluded by {unwanted[0]!r}"
        elif blocks is not None and block_of(path) not in blocks:
            reasons[path] = f"outside layers {spec.layers}"
    for path in bare:
        unwanted = [pattern for pattern in spec.exclude if is_hit(pattern, path)]
        if unwanted or (blocks is not None and block_of(path) not in blocks):
            why = f"excluded by {unwanted[0]!r}" if unwanted else f"outside layers {spec.layers}"
            reasons[path] = why
    for pattern, found in hits.items():
        if not found:
            raise TargetError(_no_hit(pattern, pattern in spec.exclude, modules, candidates))
    return reasons


def _no_hit(pattern: str, excluding: bool, modules: dict[str, nn.Module], known: list[str]) -> str:
    option = "exclude" if excluding else "targets"
    others = [path for path in modules if pattern != ALL_LINEAR and matches(pattern, path)]
    if others:
        kinds = sorted({type(modules[path]).__name__ for path in others})
        return (
            f"{option} {pattern!r} matches only {', '.join(kinds)} (such as {others[0]}), which "
            "cannot be adapted; name linear layers, embeddings or convolutions inside it"
        )
    names = {path.rsplit(".", 1)[-1] for path in known}
    return f"{option} {pattern!r} matches no module; {did_you_mean(pattern, names)}"


def _target(
    path: str, module: nn.Module, spec: LoraSpec, tied_to: tuple[str, ...], any_rank: bool
) -> Target:
    geometry = geometry_of(module, path)
    rank, alpha, scale = _rank_and_scale(path, geometry, spec, any_rank)
    frozen = count_parameters(module, recurse=False)
    how = spec.initialisation
    return Target(path, geometry, rank, alpha, scale, frozen, spec.variant, how, tied_to)


def _rank_and_scale(
    path: str, geometry: Geometry, spec: LoraSpec, any_rank: bool
) -> tuple[int, float, float]:
    """Rank, alpha and scale of one target, of its pair as it is held.

    Raises:
        TargetError: the rank does not fit its size, or the variant or the initialisation not its kind.
    """
    if why := spec.variant.unfit(geometry):
        raise TargetError(f"{path}: {why}")
    how, held, rank = spec.initialisation, spec.held, first_hit(spec.rank_pattern, path, spec.rank)
    if why := how.unfit(geometry.kind, geometry.largest_rank(), rank):
        raise TargetError(f"init {how.name} {why}; leave {path} out, or take init kaiming")
    if rank > geometry.largest_rank() and not any_rank:
        name = path.rsplit(".", 1)[-1]
        raise TargetError(
            f"rank {rank} is above {geometry.largest_rank()}, the smaller side of {path} "
            f"({geometry.out_features} x {geometry.in_features}): lower rank, or set "
            f"rank_pattern: {{{name}: {geometry.largest_rank()}}}"
        )
    if rank % geometry.groups:
        raise TargetError(
            f"rank {rank} of {path} is not a multiple of its {geometry.groups} groups: "
            "set a rank_pattern for it"
        )
    alpha = first_hit(held.alpha_pattern, path, held.alpha)
    return how.held * rank, alpha, spec.variant.scale(alpha, how.held * rank)


def _parameter_target(
    path: str, module: nn.Module, name: str, spec: LoraSpec, any_rank: bool
) -> Target:
    geometry = expert_geometry(module, name)
    rank, alpha, scale = _rank_and_scale(path, geometry, spec, any_rank)
    frozen = parameter_of(module, name).numel()
    how = spec.initialisation
    return Target(path, geometry, rank, alpha, scale, frozen, spec.variant, how)


def _owner(path: str) -> str:
    return path.rpartition(".")[0]
