"""Parameters and bytes of modules of which some are packed."""

from torch import nn

from lorakit.kernels.packed.held import HoldsPacked


def count_parameters(module: nn.Module, *, recurse: bool = True) -> int:
    """Elements of all parameters, a tied one once; a packed weight counts what it stands for.

    Args:
        module: on any device, meta too.
        recurse: with the modules inside it.
    """
    modules = module.modules() if recurse else (module,)
    packed = sum(each.elements for each in modules if isinstance(each, HoldsPacked))
    return packed + sum(parameter.numel() for parameter in module.parameters(recurse))


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and packed weights."""
    packed = sum(m.packed_bytes for m in module.modules() if isinstance(m, HoldsPacked))
    return packed + sum(p.numel() * p.element_size() for p in module.parameters())


def workspace_bytes(module: nn.Module) -> int:
    """Bytes of the workspace that the largest packed weight is multiplied in."""
    packed = (m for m in module.modules() if isinstance(m, HoldsPacked))
    return max((m.workspace_bytes for m in packed), default=0)


def packing_of(module: nn.Module) -> str | None:
    """The packing of a model's weights by name, "nf4"; several joined by "+"; None where none is packed."""
    names = {m.packing_name for m in module.modules() if isinstance(m, HoldsPacked)}
    return "+".join(sorted(names)) or None
