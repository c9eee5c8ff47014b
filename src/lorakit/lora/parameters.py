"""Bare parameters of a model: which hold the experts of a block, which are adapted, and what is left out. Pure."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from lorakit.errors import TargetError, did_you_mean
from lorakit.kernels.packed.matrices import PackedMatrices
from lorakit.lora.kinds import Geometry, geometry_of, kind_of
from lorakit.lora.spec import LoraSpec
from lorakit.lora.targets import matches

LINEAR = ("linear", "conv1d")
EXPERTS = "experts"
"""The word in `target_parameters` that means every fused expert of a model."""
Bare = tuple[nn.Module, str]
"""A bare parameter: the module that owns it, and its name there."""
# What modules call the number of their experts.
_COUNTS = ("num_experts", "moe_num_experts", "num_local_experts", "n_routed_experts")


def own_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters by name, in its order; packed matrices in the place of one among them."""
    for name, parameter in module._parameters.items():
        held = module._modules.get(name)
        if parameter is not None:
            yield name, parameter
        elif isinstance(held, PackedMatrices):
            yield name, held.weight


def parameter_of(module: nn.Module, name: str) -> Tensor:
    """A module's own parameter, or the packed matrices in its place."""
    held = module._modules.get(name)
    return held.weight if isinstance(held, PackedMatrices) else module.get_parameter(name)


def expert_geometry(module: nn.Module, name: str) -> Geometry:
    """The geometry of a bare parameter, as peft reads it.

    Raises:
        TargetError: it has another number of axes than 2 or 3.
    """
    weight = parameter_of(module, name)
    swapped = bool(getattr(module, "is_transposed", False))
    match weight.shape:
        case (count, first, second):
            sides = (first, second) if swapped else (second, first)
            return Geometry("experts", *sides, experts=count, swapped=swapped)
        case (outs, ins):
            return Geometry("experts", ins, outs, experts=1)
    raise TargetError(
        f"{name} has {weight.dim()} axes; the pairs of target_parameters are for matrices (2 axes) and "
        "for the matrices of experts (3 axes)"
    )


def bare_parameters(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Module and name of each floating-point parameter of two or three axes, by path, all modules."""
    return {
        f"{path}.{name}": (module, name)
        for path, module in model.named_modules()
        if path
        for name, parameter in own_parameters(module)
        if parameter.dim() in (2, 3) and parameter.is_floating_point()
    }


def count_of(module: nn.Module) -> int:
    """How many experts a module says it has; 0 where it says nothing."""
    counts = (getattr(module, key, None) for key in _COUNTS)
    return next((count for count in counts if isinstance(count, int) and count > 1), 0)


def is_fused(module: nn.Module, name: str) -> bool:
    """Whether a parameter holds the matrices of experts: its first axis counts them, or is a multiple."""
    parameter, count = parameter_of(module, name), count_of(module)
    if not count or parameter.dim() not in (2, 3):
        return False
    if parameter.dim() == 3:
        return len(parameter) == count
    return len(parameter) > count and len(parameter) % count == 0


def names_parameter(pattern: str, path: str, module: nn.Module, name: str) -> bool:
    """Whether a pattern of `target_parameters` means the parameter at `path`."""
    return is_fused(module, name) if pattern == EXPERTS else matches(pattern, path)


def chosen_parameters(
    bare: Mapping[str, Bare], reasons: Mapping[str, str], spec: LoraSpec
) -> list[str]:
    """The bare parameters that are adapted, in the order of the model.

    Raises:
        TargetError: a pattern of target_parameters means none.
    """
    chosen: set[str] = set()
    for pattern in spec.target_parameters:
        named = {path for path, at in bare.items() if names_parameter(pattern, path, *at)}
        if not named:
            some = [path for path, at in bare.items() if is_fused(*at)]
            raise TargetError(
                f"target_parameters {pattern!r} means no parameter of this model; "
                + (
                    did_you_mean(pattern, [".".join(path.split(".")[-2:]) for path in some])
                    if some
                    else "it keeps no experts in bare parameters: leave target_parameters out (experts "
                    "that are modules are linear layers like any others, see targets)"
                )
            )
        chosen |= named
    return [path for path in bare if path in chosen and path not in reasons]


def not_adapted(
    modules: dict[str, nn.Module],
    candidates: list[str],
    bare: Mapping[str, Bare],
    adapted: list[str],
) -> list[tuple[str, str, str]]:
    """Path, class and reason of modules that keep matrices of their own which get no pair."""
    known = set(candidates)
    fused = [path for path, at in bare.items() if is_fused(*at) and path not in adapted]
    left = sum(parameter_of(*bare[path]).numel() for path in fused)
    inside = inside_blocks(modules)
    weights = sum(
        parameter.numel()
        for path in inside
        for _, parameter in own_parameters(modules[path])
        if parameter.dim() >= 2
    )
    skipped = []
    for path, module in modules.items():
        if path in known:
            continue
        has_fused = any(is_fused(module, name) for name, _ in own_parameters(module))
        for name, p in own_parameters(module):
            if p.dim() < 2 or f"{path}.{name}" in adapted:
                continue
            reason = f"keeps a bare {p.dim()}-D parameter {name!r}"
            if isinstance(module, nn.Linear):
                reason = (
                    "a Linear class that computes more than its product: a pair would not merge"
                )
            if not has_fused and p.dim() == 2 and len(p) == count_of(module):
                reason = "router of experts, frozen unless target_parameters names it"
            if f"{path}.{name}" in fused:
                reason = (
                    f"experts in bare parameters, {left / max(weights, 1):.0%} of the weights of the "
                    "blocks: `--target-parameters experts` adapts them"
                )
            skipped.append((path, type(module).__name__, reason))
    return skipped


def inside_blocks(modules: dict[str, nn.Module]) -> set[str]:
    """Paths inside the repeated blocks: the elements of a ModuleList.

    A model without any (a plain stack of layers) is one block, less its last linear layer.
    """
    lists = [path + "." for path, module in modules.items() if isinstance(module, nn.ModuleList)]
    inside = {path for path in modules if any(path.startswith(prefix) for prefix in lists)}
    if any(kind_of(modules[path]) in LINEAR for path in inside):
        return inside
    linear = [path for path, module in modules.items() if kind_of(module) in LINEAR]
    return set(linear[:-1]) if len(linear) > 1 else set(linear)


def routers_of(modules: Mapping[str, nn.Module]) -> set[str]:
    """Paths of the linear layers that choose among experts: one output for each of them.

    A router stands beside its experts, which are a fused parameter or a list of modules.
    """
    counts: dict[str, int] = {}
    for path, module in modules.items():
        for name, _ in own_parameters(module):
            if is_fused(module, name):
                counts[path] = count_of(module)
    lists = {path for path, module in modules.items() if isinstance(module, nn.ModuleList)}
    for path in lists:
        if path.rsplit(".", 1)[-1] == "experts" and len(modules[path]) > 1:  # type: ignore[arg-type]
            counts[path] = len(modules[path])  # type: ignore[arg-type]
    blocks = {path for path in modules if _owner(path) in lists and _owner(path) not in counts}
    routers: set[str] = set()
    for path, count in counts.items():
        beside = _owner(path)
        while beside and beside not in blocks:
            routers |= {
                other
                for other, module in modules.items()
                if other.startswith(beside + ".")
                and not other.startswith(path + ".")
                and kind_of(module) in LINEAR
                and geometry_of(module, other).out_features == count
            }
            beside = _owner(beside)
    return routers


def _owner(path: str) -> str:
    return path.rpartition(".")[0]
