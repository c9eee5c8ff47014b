"""Swap the layers of a plan for adapted ones, and back."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lorakit.errors import TargetError
from lorakit.lora.acting import acting_on, connect_acting
from lorakit.lora.changing import own_values, put, take_out
from lorakit.lora.conv import LoraConv
from lorakit.lora.experts import LoraExperts, bare_module, put_bare, put_experts
from lorakit.lora.initialising import begin
from lorakit.lora.layers import LoraEmbedding, LoraLayer, LoraLinear
from lorakit.lora.planning import Plan, Target, plan
from lorakit.lora.spec import LoraSpec

Model = TypeVar("Model", bound=nn.Module)

_LAYERS: dict[str, type[LoraLayer]] = {
    "linear": LoraLinear,
    "conv1d": LoraLinear,
    "embedding": LoraEmbedding,
    "conv": LoraConv,
    "experts": LoraExperts,
}


def make_layer(base: nn.Module, target: Target, spec: LoraSpec) -> LoraLayer:
    """The adapted layer for the base module of a target, A and B at zero."""
    return _LAYERS[target.geometry.kind](base, target, spec)


def attach(
    model: Model,
    what: LoraSpec | Plan,
    *,
    seed: int = 0,
    evidence: Mapping[str, Tensor] | None = None,
) -> Model:
    """Freeze the model and put a pair (A, B) beside every target, in place.

    Nothing that the model computes changes until the pairs are trained. The same seed
    gives the same A on every device.

    Args:
        model: any module; its own weights are neither copied nor changed.
        what: a spec, or the plan made from it for this model.
        seed: of A's start.
        evidence: of each module what was found on training rows, for initialisations from rows. Without
            it such a pair begins as plain LoRA, and `lorakit.train` begins it anew from its own rows.

    Returns:
        The same model.

    Raises:
        TargetError: see `plan`; or the model has pairs already.
    """
    if lora_layers(model):
        raise TargetError("this model has an adapter attached already: detach it first")
    chosen = what if isinstance(what, Plan) else plan(model, what)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LoraLayer] = {}
    for target in chosen.targets:
        base = base_module(model, target)
        layer = make_layer(base, target, chosen.spec.held).train(base.training)
        begin(layer, chosen.spec, generator, (evidence or {}).get(target.path))
        layers[target.path] = layer
    connect_acting(model, layers)
    for target in chosen.targets:
        layer = layers[target.path]
        if isinstance(layer, LoraExperts):
            put_experts(model, target.path, layer)
        else:
            model.set_submodule(target.path, layer)
        if isinstance(
            model.get_submodule(target.path.rpartition(".")[0]), nn.TransformerEncoderLayer
        ):
            # In evaluation torch's fast path would read the layer's weight and never call it; with a hook
            # on a layer it keeps off.
            layer.register_forward_pre_hook(_called)
    put(model, chosen.whole, own_values(model, chosen.whole), trainable=True)
    return model


def _called(_layer: nn.Module, _inputs: object) -> None:
    """A hook that does nothing."""


def base_module(model: nn.Module, target: Target) -> nn.Module:
    """What a target's pair stands beside, in a model without pairs: a module, or a parameter as one."""
    if target.geometry.kind != "experts":
        return model.get_submodule(target.path)
    return bare_module(model, target.path)


def detach(model: Model) -> Model:
    """Put the base layers back where they were, in place; their bytes were never changed."""
    take_out(model)
    if (acting := acting_on(model)) is not None:
        acting.disconnect()
    for path, layer in lora_layers(model).items():
        if isinstance(layer, LoraExperts):
            put_bare(model, path, layer.base)
        else:
            model.set_submodule(path, layer.base)
    return model


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers of a model by path, in the order of its modules."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLayer)}
