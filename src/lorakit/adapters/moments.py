"""optimizer.safetensors: what AdamW remembers of an adapter's pairs, so that training can go on.

    ….lora_A.weight.exp_avg, ….lora_A.weight.exp_avg_sq   bfloat16, in the shape of the tensor
    steps, learning_rate                                  that they were gathered in and at
    adapter_sha256                                        of adapter_model.safetensors: 32 bytes

peft, vLLM, llama.cpp and servers ignore the file; the store keeps it, the hub and exports do not
get it. Both moments together take as many bytes as A and B in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorakit.adapters.names import tensor_names
from lorakit.errors import AdapterError
from lorakit.files.tensors import read_tensors, write_tensors
from lorakit.lora import LoraLayer

MOMENTS = "optimizer.safetensors"


@dataclass(frozen=True)
class StoredMoments:
    """AdamW's moments of an adapter, by the names of its tensors in peft's format.

    Attributes:
        steps: that they were gathered in.
        learning_rate: the peak rate of these steps.
        of: of each tensor its first and its second moment.
    """

    steps: int
    learning_rate: float
    of: Mapping[str, tuple[Tensor, Tensor]]


def write_moments(folder: Path, moments: StoredMoments | None, adapter_sha256: str) -> None:
    """Write the file beside an adapter's tensors, whose hash it names; none without moments."""
    if moments is None:
        return
    tensors = {
        "steps": torch.tensor(moments.steps),
        "learning_rate": torch.tensor(moments.learning_rate, dtype=torch.float64),
        "adapter_sha256": torch.tensor(list(bytes.fromhex(adapter_sha256)), dtype=torch.uint8),
    }
    for name, (first, second) in moments.of.items():
        tensors[f"{name}.exp_avg"] = first.to(torch.bfloat16)
        tensors[f"{name}.exp_avg_sq"] = second.to(torch.bfloat16)
    write_tensors(folder / MOMENTS, tensors)


def read_moments(
    folder: Path, layers: Mapping[str, LoraLayer], adapter_sha256: str | None
) -> tuple[StoredMoments | None, str]:
    """The moments of an adapter whose pairs are attached; None where there are none of these.

    Args:
        folder: of the adapter.
        layers: the pairs as they are attached.
        adapter_sha256: of the folder's adapter_model.safetensors.

    Returns:
        The moments, and why there are none: '' where the folder has no such file.
    """
    path = folder / MOMENTS
    if not path.is_file():
        return None, ""
    try:
        tensors = read_tensors(path)
    except AdapterError as error:
        return None, str(error)
    try:
        written_for = bytes(tensors["adapter_sha256"].tolist()).hex()
        steps, rate = int(tensors["steps"]), float(tensors["learning_rate"])
        of = {
            name: (tensors[f"{name}.exp_avg"], tensors[f"{name}.exp_avg_sq"])
            for name, tensor in named_tensors(layers).items()
            if tensor.shape == tensors[f"{name}.exp_avg"].shape
        }
    except (KeyError, ValueError, RuntimeError):
        return None, f"{path} is not of this adapter's tensors"
    if written_for != adapter_sha256 or len(of) < len(named_tensors(layers)):
        return None, f"{path} was written for other tensors than {folder} holds"
    return StoredMoments(steps, rate, of), ""


def named_tensors(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """The tensors of attached pairs by their names in peft's format."""
    if not layers:
        return {}
    variant = next(iter(layers.values())).variant
    names = tensor_names({path: layer.geometry.kind for path, layer in layers.items()}, variant)
    return {
        names[path][key]: tensor
        for path, layer in layers.items()
        for key, tensor in layer.tensors.items()
    }
