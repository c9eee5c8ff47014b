"""A base whose linear layers are packed while its files are read, tensor by tensor.

transformers knows names, renamings and ties; it is told of a quantizer, by its own registry, and hands
each weight over as it comes from the file. The weight is packed, its layer becomes a `PackedLinear`, and
the tensor is gone before the next one is read: the model in full precision never lies in memory.

Packed are the linear layers inside the blocks, GPT-2's transposed ones too, and the matrices of experts that
a model keeps in one parameter of three axes, each on its own. Embeddings, norms, the output head (tied or not)
and routers stay in full precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError
from lorakit.files.header import StoredTensor
from lorakit.models.classes import built_empty
from lorakit.models.devices import torch_dtype
from lorakit.models.packable import experts_to_pack, layers_to_pack, packed_as
from lorakit.models.spec import ModelSpec
from lorakit.models.weights import tensors_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_METHOD = "lorakit"


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
    from lorakit.kernels.packed.held import HoldsPacked

    chosen = getattr(model.hf_quantizer, "chosen", ())
    if not chosen:
        raise ModelError(
            f"no layer of {type(model).__name__} can be held in {name}: it has no plain linear layers "
            "and no experts inside its blocks; leave --base-dtype out"
        )
    for weight in sorted(chosen):
        path, _, own = weight.rpartition(".")
        holder = model.get_submodule(path)
        if not isinstance(holder if own == "weight" else holder._modules.get(own), HoldsPacked):
            raise ModelError(
                f"weights in {model.name_or_path} have other shapes than config.json says: "
                f"{weight} is not {tuple(getattr(holder, own).shape)}"
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

    @register_quantization_config(_METHOD)
    class Config(QuantizationConfigMixin):
        """Which format weights are packed in."""

        def __init__(self, packing: str = "nf4", **_: Any) -> None:
            self.quant_method: Any = _METHOD
            self.packing = packing

    class Pack(ConversionOps):
        """One weight in the place of the layer that it comes to."""

        def __init__(self, packing: str, experts: dict[str, Any]) -> None:
            self.packing, self.experts = packing, experts

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
                if value.shape != _weight_of(model, name).shape:
                    return {name: value}  # transformers reports shapes that do not fit
                _put_packed(model, name, value, self.packing, self.experts)
                if missing is not None:
                    missing.discard(name)
            return {}

    @register_quantizer(_METHOD)
    class Quantizer(HfQuantizer):
        """Hands the weights that are to be packed to `Pack`."""

        quantization_config: Config

        requires_calibration = False
        chosen: Any = frozenset()
        experts: Any = None

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
            linear = [f"{path}.weight" for path in layers_to_pack(model)]
            self.chosen = frozenset([*linear, *experts_to_pack(model)])
            self.experts = {}
            return model

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
            _put_experts(model, self.experts)
            return model

        def param_needs_quantization(self, model: Any, param_name: str, **more: Any) -> bool:
            return param_name in self.chosen

        def get_quantize_ops(self) -> Any:
            return Pack(self.quantization_config.packing, self.experts)

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return True

    _classes[_METHOD] = Config
    return Config


def _put_experts(model: Any, experts: dict[str, Any]) -> None:
    """Put packed experts in their places, in the model's own order.

    Not before everything is loaded: transformers looks for the parents of all buffers by path, and a
    module that stands under a parameter's name is not found so.
    """
    from lorakit.kernels.read_through import put_reader

    for path in experts_to_pack(model):
        if path in experts:
            put_reader(model, path, experts.pop(path))


def _weight_of(model: Any, name: str) -> Any:
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own)


def _put_packed(
    model: Any, name: str, value: "Tensor", packing: str, experts: dict[str, Any]
) -> None:
    """Pack a weight and put what holds it in its place; of experts it waits in `experts`."""
    from lorakit.kernels.packed.linear import PackedConv1D, PackedLinear
    from lorakit.kernels.packed.matrices import PackedMatrices

    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if own != "weight":
        swapped = bool(getattr(module, "is_transposed", False))
        each = (packed_as(packing, one.t() if swapped else one) for one in value)
        held = PackedMatrices(len(value), each, value.dtype, swapped=swapped)
        experts[name] = held.train(module.training)
        # transformers would draw what it believes to be missing; a bias that is missing is refused later.
        module._is_hf_initialized = True
        return
    transposed = not hasattr(module, "in_features")
    kind = PackedConv1D if transposed else PackedLinear
    packed: Any = kind(packed_as(packing, value.t() if transposed else value), value.dtype)
    if module.bias is not None:
        packed.register_parameter("bias", module.bias)
    packed._is_hf_initialized = True
    model.set_submodule(path, packed.train(module.training))
