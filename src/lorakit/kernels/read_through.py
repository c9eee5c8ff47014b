"""A module reads one of its parameters through another module: what stands in its place.

The module keeps its code and its other weights; its class gets the parameter's name as a property. Calling
what was put there gives the tensor that the code multiplies by.
"""

from functools import partial
from typing import Any, cast

from torch import Tensor, nn


def getter(name: str) -> Any:
    """What torch calls where an attribute of a tensor is read: the key of its override."""
    return getattr(Tensor, name).__get__


OF_SHAPE: frozenset[Any] = frozenset(
    {
        *(getter(name) for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda")),
        *(getter(name) for name in ("is_meta", "is_sparse", "is_quantized", "is_cpu")),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.element_size, Tensor.__len__),
        *(Tensor.is_floating_point, Tensor.data_ptr, Tensor.stride, Tensor.is_contiguous),
    }
)
"""What is asked of a weight's shape and place: the same whatever stands in its place."""


def put_reader(model: nn.Module, path: str, reader: nn.Module) -> None:
    """Let the module that owns a parameter read it by calling this, in place.

    Args:
        model: the model.
        path: of the parameter.
        reader: calling it gives the weight.
    """
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    owner._parameters[name] = None  # its place in their order stays
    owner._modules[name] = reader
    _read_through(owner, name)


def put_parameter(model: nn.Module, path: str, weight: nn.Parameter) -> None:
    """Put a plain parameter back where a reader was, in place."""
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    owner._modules.pop(name, None)
    adapted = type(owner)
    if name not in adapted.__dict__.get(_READ, ()):
        owner._parameters[name] = weight
        return
    read = [other for other in adapted.__dict__.get(_READ, ()) if other != name]
    owner.__class__ = adapted.__bases__[0]
    owner._parameters[name] = weight
    for other in read:
        _read_through(owner, other)


_READ = "_read_with_pairs"


def _read_through(owner: nn.Module, name: str) -> None:
    cls = type(owner)
    names = cls.__dict__.get(_READ, ())
    if name in names:
        return
    base = cls.__bases__[0] if names else cls
    read = (*names, name)
    owner.__class__ = _class_of(base, read)


def _as_read(name: str, owner: nn.Module) -> Tensor:
    reader = owner._modules[name]
    assert reader is not None
    return cast(Tensor, reader())


_classes: dict[tuple[type, tuple[str, ...]], type] = {}


def _class_of(base: type, names: tuple[str, ...]) -> type:
    """The class with a property for each name, one and the same for all modules of a class."""
    key = (base, names)
    if key not in _classes:
        properties = {name: property(partial(_as_read, name)) for name in names}
        own = {_READ: names, "__module__": base.__module__, "__qualname__": base.__qualname__}
        _classes[key] = type(base.__name__, (base,), {**properties, **own})
    return _classes[key]
