"""A quantized folder -> a model whose packed linear layers stay packed.

transformers builds the model and loads everything that is not packed. Between the two the packed layers are
taken out, so that no memory is ever asked for a plain weight; afterwards each is put in its place as a
`PackedLinear`, read by our own readers. transformers has a hook there for its quantizers, and this is one.
"""

import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorakit.errors import ModelError
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.packing import Packing, whole
from lorakit.kernels.packed.weight import LARGEST
from lorakit.models.files import read_config
from lorakit.models.gguf_packed import packed_sizes
from lorakit.models.packed_files import (
    UNPACKED,
    Held,
    PackedTensor,
    beside,
    packed_tensors,
    quantization,
)
from lorakit.models.sources import find
from lorakit.models.spec import FULL, PACKED, ModelSpec
from lorakit.models.weights import names_in_model, tensors_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_log = logging.getLogger("lorakit.models")
_METHOD = "lorakit-packed"


class _Awaited(nn.Module):
    """Stands where a packed layer will be while transformers loads the rest: its bias alone."""

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.shape = layer.out_features, layer.in_features
        self.register_parameter("bias", layer.bias)


@dataclass
class KeptPacked:
    """The packed weights of a folder, and what becomes of them while a model is loaded.

    Attributes:
        tensors: the packed weights.
        held: every tensor of the folder by name.
        where: the folder, for messages.
        layers: by path in the model, once it is built.
        taken: names, in the files and in the model, of tensors that transformers has no place for.
    """

    tensors: list[PackedTensor]
    held: Held
    where: object
    layers: dict[str, PackedTensor] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def arguments(self, config: "PretrainedConfig") -> dict[str, Any]:
        """What `from_pretrained` must be given so that it calls on this.

        The configuration loses its note of the other library's packing, which transformers would follow.
        """
        del config.quantization_config
        return {"quantization_config": _quantizer_config()(self)}

    def take_out(self, model: "PreTrainedModel") -> None:
        """Replace every packed layer by one without a weight.

        Raises:
            ModelError: a packed weight is of no linear layer of the model.
        """
        for tensor, path in _paths(model, self.tensors):
            layer = None if path is None else model.get_submodule(path)
            if type(layer) is not nn.Linear or path is None:
                kind = "no layer" if layer is None else f"a {type(layer).__name__}"
                raise ModelError(
                    f"{self.where} packs {tensor.stem}, which is {kind} of the model as transformers "
                    "builds it: only linear layers are kept packed, and experts are not. Name the "
                    "unquantized model"
                )
            self.layers[path] = tensor
            bias = f"{tensor.stem}.bias"
            if layer.bias is None and bias in self.held:
                self._require_zero(bias)
            model.set_submodule(path, _Awaited(layer))
        self.taken |= {name for tensor in self.tensors for name in tensor.uses}
        self.taken |= beside(self.held, self.tensors)
        self.taken |= set(names_in_model(model, self.taken).values())

    def put_in(self, model: "PreTrainedModel") -> None:
        """Read every packed layer and put it in its place.

        The output head becomes plain: the loss reads it as a matrix.

        Raises:
            ModelError: a weight cannot be read, or has another shape than config.json says.
        """
        head = model.get_output_embeddings()
        for path, tensor in self.layers.items():
            awaited = model.get_submodule(path)
            assert isinstance(awaited, _Awaited)
            packing = tensor.read()
            if packing.shape != awaited.shape:
                raise ModelError(
                    f"{self.where}: {tensor.stem} is {packing.shape}, and config.json makes it "
                    f"{awaited.shape}"
                )
            layer = _plain if awaited is head else PackedLinear
            model.set_submodule(path, layer(packing, model.dtype, awaited.bias))

    def _require_zero(self, bias: str) -> None:
        """AutoGPTQ wrote a bias of zeros for layers that have none."""
        from lorakit.files import shards

        if bool(shards.read_whole(self.held[bias]).any()):
            raise ModelError(f"{self.where} holds {bias}, which this model has no place for")
        self.taken.add(bias)


def _plain(packing: Packing, dtype: torch.dtype, bias: torch.Tensor | None) -> nn.Linear:
    """A head of its own in the model's format."""
    out, width = packing.shape
    layer = nn.Linear(width, out, bias=False, device="meta")
    layer.weight = nn.Parameter(whole(packing, dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    _log.warning(
        "the output head is unpacked from %s to %s: the loss reads it as a plain matrix",
        packing.name,
        str(dtype).removeprefix("torch."),
    )
    return layer


def _paths(
    model: "PreTrainedModel", tensors: Iterable[PackedTensor]
) -> list[tuple[PackedTensor, str | None]]:
    """Where in the model each packed weight belongs; None for one that has no module there."""
    modules = dict(model.named_modules())
    prefix = f"{model.base_model_prefix}."
    renamed = names_in_model(model, [f"{tensor.stem}.weight" for tensor in tensors])
    places: list[tuple[PackedTensor, str | None]] = []
    for tensor in tensors:
        name = f"{tensor.stem}.weight"
        path = renamed.get(name, name).removesuffix(".weight")
        tried = (path, path.removeprefix(prefix), prefix + path, tensor.stem)
        places.append((tensor, next((p for p in tried if p in modules), None)))
    return places


@functools.cache
def _quantizer_config() -> Any:
    """The class of settings by which transformers finds our quantizer; both are registered once."""
    from transformers import quantizers
    from transformers.utils.quantization_config import QuantizationConfigMixin

    hooks: Any = quantizers  # typed in part
    base: Any = QuantizationConfigMixin

    @hooks.register_quantization_config(_METHOD)
    class PackedConfig(base):
        def __init__(self, kept: KeptPacked) -> None:
            self.quant_method = _METHOD
            self.kept = kept

        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": _METHOD}

        def __deepcopy__(self, memo: dict[int, Any]) -> "PackedConfig":
            return self  # from_pretrained copies a configuration with all that hangs on it

    @hooks.register_quantizer(_METHOD)
    class PackedQuantizer(hooks.HfQuantizer):
        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
            self.quantization_config.kept.take_out(model)

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
            self.quantization_config.kept.put_in(model)
            # What reads the configuration would take the files for another library's. `hf_quantizer` stays:
            # by it transformers refuses to save the model.
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return True

    return PackedConfig


def kept_packed(folder: Path) -> KeptPacked | None:
    """What a model folder holds packed; None of an ordinary one.

    Raises:
        ModelError: it is quantized by a method that is not read here.
    """
    settings = quantization(read_config(folder), folder)
    if settings is None:
        return None
    if settings.get("quant_method") in UNPACKED:
        _log.warning(
            "%s is quantized by %s, which lorakit does not keep packed: its weights are unpacked",
            folder,
            settings["quant_method"],
        )
        return None
    held = tensors_of(folder)
    return KeptPacked(packed_tensors(settings, held, folder), held, folder)


def stays_packed(spec: ModelSpec) -> bool:
    """Whether the folder that a name stands for is quantized and stays so; False where it is not here."""
    if spec.base_dtype != FULL:
        return False
    where = find(spec)
    return where is not None and kept_packed(where.folder) is not None


def bytes_kept(model: "PreTrainedModel", spec: ModelSpec) -> int | None:
    """Bytes of a model's weights whose packed ones stay so, the workspace of their products included.

    Args:
        model: its outline on the meta device.
        spec: its name; of a hub id the weights need not be here.

    Returns:
        None where nothing stays packed, or the weights are not here.
    """
    sizes = _sizes(model, spec)
    if sizes is None:
        return None
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    largest = 0
    for path, stored in sizes.items():
        layer = model.get_submodule(path)
        if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings():
            size, count = layer.weight.element_size(), layer.weight.numel()
            total += stored - count * size
            largest = max(largest, min(count, LARGEST) * size)
    return total + largest


def _sizes(model: "PreTrainedModel", spec: ModelSpec) -> dict[str, int] | None:
    """Bytes of each packed weight by its path; a .gguf file is not converted for it."""
    file = Path(spec.model).expanduser()
    if file.is_file() and file.suffix.lower() == ".gguf":
        return packed_sizes(file, model) if spec.base_dtype == PACKED else None
    where = find(spec) if spec.base_dtype in (FULL, PACKED) else None
    kept = None if where is None else kept_packed(where.folder)
    if kept is None:
        return None
    return {
        path: sum(e.end - e.start for e in (kept.held[name].entry for name in tensor.uses))
        for tensor, path in _paths(model, kept.tensors)
        if path is not None
    }
