"""Which kernels compute with a loaded model, in one line that is true of packed weights too."""

from dataclasses import replace
from typing import Any

from lorakit.kernels import native
from lorakit.kernels.native import KernelChoice
from lorakit.kernels.packed.linear import PackedLinear


def kernels_of(model: Any) -> KernelChoice:
    """What computes with a model, by its number format, its device and the packing of its weights.

    Raises:
        ConfigError: see `native.requested`.
    """
    choice = native.choose(model.dtype, model.device)
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    if not packed or model.device.type != "cpu":
        return choice
    unknown = sorted({m.packing.name for m in packed if m.frozen.description is None})
    if choice.name != native.PLAIN and unknown:
        return replace(choice, beside=f"plain torch in blocks packed as {' and '.join(unknown)}")
    unpacks = native.beside("packed_fill", "iiii", model.dtype, model.device) is not None
    if choice.name == native.PLAIN and unpacks and not unknown:
        return replace(choice, beside="packed weights are unpacked by compiled kernels")
    return choice
