"""Swap the layers of a plan for adapted ones, and back."""

from typing import TypeVar

import torch
from torch import nn

from lorakit.errors import TargetError
from lorakit.lora.acting import acting_on, connect_acting
from lorakit.lora.experts import BareParameter, LoraExperts, put_experts, put_parameter
from lorakit.lora.layers import LoraConv, LoraEmbedding, LoraLayer, LoraLinear
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


def attach(model: Model, what: LoraSpec | Plan, *, seed: int = 0) -> Model:
    """Freeze the model and put a pair (A, B) beside every target, in place.

    Nothing that the model computes changes until B is trained away from zero. The same seed
    gives the same A on every device.

    Args:
        model: any module; its own weights are neither copied nor changed.
        what: a spec, or the plan made from it for this model.
        seed: of A's start.

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
        layer = make_layer(base, target, chosen.spec).train(base.training)
        layer.reset(chosen.spec.init, generator)
        layers[target.path] = layer
    connect_acting(model, layers)
    for target in chosen.targets:
        layer = layers[target.path]
        if isinstance(layer, LoraExperts):
            put_experts(model, target.path, layer)
        else:
            model.set_submodule(target.path, layer)
    return model


def base_module(model: nn.Module, target: Target) -> nn.Module:
    """What a target's pair stands beside, in a model without pairs: a module, or a parameter as one."""
    if target.geometry.kind != "experts":
        return model.get_submodule(target.path)
    owner, _, name = target.path.rpartition(".")
    module = model.get_submodule(owner)
    return BareParameter(module.get_parameter(name)).train(module.training)


def detach(model: Model) -> Model:
    """Put the base layers back where they were, in place; their bytes were never changed."""
    if (acting := acting_on(model)) is not None:
        acting.disconnect()
    for path, layer in lora_layers(model).items():
        if isinstance(layer, LoraExperts):
            put_parameter(model, path, layer.base.weight)
        else:
            model.set_submodule(path, layer.base)
    return model


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers of a model by path, in the order of its modules."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLayer)}
