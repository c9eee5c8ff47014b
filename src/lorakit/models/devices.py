"""Where a model computes, and in which number format: what a spec's 'auto' means on this machine."""

from typing import TYPE_CHECKING

from lorakit.errors import ModelError
from lorakit.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch


def torch_device(spec: ModelSpec) -> "torch.device":
    """The device a spec means: ``auto`` is cuda, else mps, else cpu.

    Raises:
        ModelError: the device is not there.
    """
    import torch

    if spec.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(spec.device)
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count(),
    }[device.type]
    if (device.index or 0) >= there:
        raise ModelError(f"device {spec.device!r} is not there; --device auto takes what is")
    return device


def torch_dtype(spec: ModelSpec) -> "torch.dtype":
    """The number format a spec means.

    ``auto`` is a fixed rule of the hardware, so that runs repeat: bfloat16 on cuda and mps devices
    that compute in it and on processors with AVX512-BF16 or AMX; float32 elsewhere, because a
    processor without such units emulates bf16 products, many times slower than float32's.
    """
    import torch

    if spec.dtype != "auto":
        dtype = getattr(torch, spec.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    kind = torch_device(spec).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        native = cpu_multiplies_bf16()
    else:
        native = True
    return torch.bfloat16 if native else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has units for bf16 products; False where torch cannot tell."""
    import torch

    # torch has no public function for this; where a torch renames these, float32 is used.
    functions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in functions)
