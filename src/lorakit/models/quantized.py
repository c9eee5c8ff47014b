"""A base whose linear layers are packed while its files are read, tensor by tensor.

transformers knows names, renamings and ties; it is told of a quantizer, by its own registry, and hands
each weight over as it comes from the file. The weight is packed, its layer becomes a `PackedLinear`, and
the tensor is gone before the next one is read: the model in full precision never lies in memory.

Packed are the linear layers inside the blocks. Embeddings, norms, the output head (tied or not), routers,
and what keeps its matrices otherwise stay in full precision: transformers' Conv1D (GPT-2), and the bare
parameters of fused experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError
from lorakit.files.header import StoredTensor
from lorakit.models.classes import built_empty
from lorakit.models.devices import torch_dtype
from lorakit.models.spec import FULL, ModelSpec
from lorakit.models.weights import tensors_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from lorakit.kernels.packed.packing import Packing

_METHOD = "lorakit"


def packed_as(name: str, weight_OI: "Tensor") -> "Packing":
    """A weight in one of the formats of `--base-dtype`."""
    from lorakit.kernels.packed.four_bits import FourBits
    from lorakit.kernels.packed.fp8 import Fp8
    from lorakit.kernels.packed.int8 import Int8

    makers: dict[str, Callable[[Tensor], Packing]] = {
        "nf4": FourBits.nf4,
        "int4": FourBits.int4,
        "int8": Int8.of,
        "fp8": Fp8.of,
    }
    return makers[name](weight_OI)


def layers_to_pack(model: "nn.Module") -> list[str]:
    """Paths of the linear layers that are packed: plain ones inside the blocks, routers left out.

    Args:
        model: of transformers, on the meta device if need be.
    """
    from torch import nn

    modules = dict(model.named_modules())
    lists = {path for path, module in modules.items() if isinstance(module, nn.ModuleList)}
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    shared = _shared_weights(modules)
    counts = {_experts(module) for module in modules.values()} - {0}
    chosen = []
    for path, module in modules.items():
        if type(module) is not nn.Linear or module is head or id(module.weight) in shared:
            continue
        inside = any(path.startswith(f"{each}.") for each in lists)
        if inside and module.out_features not in counts:
            chosen.append(path)
    return chosen


def bytes_held(model: Any, name: str) -> int | None:
    """Bytes of a model's weights in a format of `--base-dtype`, the workspace of their products included.

    Args:
        model: in full precision, or its outline on the meta device.
        name: of the format; "full" for the weights as they are.

    Returns:
        None where no layer of it would be packed.
    """
    import torch

    from lorakit.kernels.packed.packing import nbytes
    from lorakit.kernels.packed.weight import LARGEST

    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    if name == FULL:
        return everything
    weights = [model.get_submodule(path).weight for path in layers_to_pack(model)]
    if not weights:
        return None
    by_shape: dict[Any, int] = {}
    for weight in weights:
        if weight.shape not in by_shape:
            outline = torch.empty(weight.shape, device="meta")
            by_shape[weight.shape] = nbytes(packed_as(name, outline))
    packed = sum(
        by_shape[weight.shape] - weight.numel() * weight.element_size() for weight in weights
    )
    largest = max(min(weight.numel(), LARGEST) * weight.element_size() for weight in weights)
    return everything + packed + largest


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of a file, read when it is asked for: what transformers wants of safetensors' slices."""

    stored: StoredTensor

    def __getitem__(self, everything: Any) -> "Tensor":
        from lorakit.files.shards import read_whole

        return read_whole(self.stored)[everything]

    def get_dtype(self) -> str:
        """In safetensors' words."""
        return self.stored.entry.dtype

    def get_shape(self) -> list[int]:
        """Of the tensor."""
        return list(self.stored.entry.shape)


def read(cls: Any, config: Any, folder: "Path", spec: ModelSpec) -> tuple[Any, Any]:
    """A model in `spec.base_dtype`, and transformers' report of what it loaded.

    Args:
        cls: what loads it, see `class_of`.
        config: its configuration.
        folder: of its files.
        spec: with a format of `--base-dtype`.

    Raises:
        ModelError: the model is quantized already; a file is broken.
    """
    import torch
    from transformers import GenerationConfig

    text = config.get_text_config()
    said = getattr(config, "quantization_config", None) or getattr(
        text, "quantization_config", None
    )
    if said:
        method = said.get("quant_method") if isinstance(said, Mapping) else said
        raise ModelError(
            f"{folder} is quantized already (by {method}): leave --base-dtype out, or name the model "
            "that it was made from"
        )
    with torch.device("meta"):
        concrete: Any = type(built_empty(cls, config, spec))
    # Not by the folder's name: transformers would map whole files, and all that is read of them would
    # stay in memory.
    model, report = concrete.from_pretrained(
        None,
        config=config,
        dtype=torch_dtype(spec),
        state_dict={each: LazyTensor(stored) for each, stored in tensors_of(folder).items()},
        quantization_config=_registered()(spec.base_dtype),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model.config.name_or_path = model.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    # What reads the configuration would take the files for quantized ones. `hf_quantizer` stays: by it
    # transformers refuses to save the model.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, report


def check(model: Any, name: str) -> None:
    """See that something was packed, and everything that should be.

    Raises:
        ModelError: it was not.
    """
    from lorakit.kernels.packed.linear import PackedLinear

    chosen = getattr(model.hf_quantizer, "chosen", ())
    if not chosen:
        raise ModelError(
            f"no layer of {type(model).__name__} can be held in {name}: it has no plain linear layers "
            "inside its blocks (GPT-2's Conv1D and experts in bare parameters stay as they are); leave "
            "--base-dtype out"
        )
    left = [p for p in sorted(chosen) if not isinstance(model.get_submodule(p), PackedLinear)]
    if left:
        raise ModelError(
            f"{len(left)} weights in {model.name_or_path} have other shapes than config.json says: "
            f"{left[0]}.weight is not {tuple(model.get_submodule(left[0]).weight.shape)}"
        )


_classes: dict[str, Any] = {}


def _registered() -> Any:
    """The class of configurations under which transformers knows the quantizer, registered once."""
    if _METHOD in _classes:
        return _classes[_METHOD]
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from lorakit.kernels.packed.linear import PackedLinear

    @register_quantization_config(_METHOD)
    class Config(QuantizationConfigMixin):
        """Which format weights are packed in."""

        def __init__(self, packing: str = "nf4", **_: Any) -> None:
            self.quant_method: Any = _METHOD
            self.packing = packing

    class Pack(ConversionOps):
        """One weight in the place of the layer that it comes to."""

        def __init__(self, packing: str) -> None:
            self.packing = packing

        def convert(
            self,
            input_dict: dict[str, Any],
            source_patterns: list[str],
            target_patterns: list[str],
            **more: Any,
        ) -> dict[str, Any]:
            model, missing = more["model"], more.get("missing_keys")
            for name, given in input_dict.items():
                value = given[0] if isinstance(given, list) else given
                path = name.rpartition(".")[0]
                layer = model.get_submodule(path)
                if tuple(value.shape) != (layer.out_features, layer.in_features):
                    return {name: value}  # transformers reports shapes that do not fit
                packed = PackedLinear(packed_as(self.packing, value), value.dtype)
                if layer.bias is not None:
                    packed.register_parameter("bias", layer.bias)
                marked: Any = packed
                marked._is_hf_initialized = True
                model.set_submodule(path, packed.train(layer.training))
                if missing is not None:
                    missing.discard(name)
            return {}

    @register_quantizer(_METHOD)
    class Quantizer(HfQuantizer):
        """Hands the weights of `layers_to_pack` to `Pack`."""

        quantization_config: Config

        requires_calibration = False
        chosen: Any = frozenset()

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
            self.chosen = frozenset(layers_to_pack(model))
            return model

        def param_needs_quantization(self, model: Any, param_name: str, **more: Any) -> bool:
            path, _, name = param_name.rpartition(".")
            return name == "weight" and path in self.chosen

        def get_quantize_ops(self) -> Any:
            return Pack(self.quantization_config.packing)

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return True

    _classes[_METHOD] = Config
    return Config


def _shared_weights(modules: "Mapping[str, nn.Module]") -> set[int]:
    """Weights that stand in several modules."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in modules.values():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _experts(module: "nn.Module") -> int:
    """How many experts a module says it has, or holds in a list of that name."""
    from torch import nn

    names = ("num_experts", "moe_num_experts", "num_local_experts", "n_routed_experts")
    counts = [getattr(module, name, None) for name in names]
    listed = getattr(module, "experts", None)
    counts.append(len(listed) if isinstance(listed, nn.ModuleList) else None)
    return next((count for count in counts if isinstance(count, int) and count > 1), 0)
