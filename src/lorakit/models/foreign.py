"""Layers that another library packed: none is believed before its gradient was seen to be right here.

    y = W x + b        the input gradient of Σ g·y must be g W, while training and in evaluation

Some lose it in silence: a forward pass in evaluation mode may have weights repacked for inference, after
which nothing is followed back through them, and products of integers have no gradient at all. What
happens depends on the processor and on versions, so that it is asked at load, on the machine at hand: one
layer of each class, copied, because the question itself may repack it. W is what the layer makes of the
unit vectors.
"""

import copy
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

# What their layers' classes or tensors are defined in.
_LIBRARIES = (
    *("bitsandbytes", "torchao", "compressed_tensors", "optimum", "hqq", "gptqmodel", "awq"),
    *("transformers.integrations", "eetq", "aqlm", "auto_round", "quark"),
)
# How far a gradient may be from g W, as a share of its largest element: rounding to 8 bits is far below.
_CLOSE = 0.1


def check_gradients(model: "nn.Module") -> None:
    """Try the input gradient of one layer of each foreign class in a model.

    Raises:
        ModelError: a layer gives another one or none; the text names its class, path and mode.
    """
    seen: set[Any] = set()
    for path, module in model.named_modules():
        name = _foreign(module)
        if name is not None and name not in seen:
            seen.add(name)
            _check(module, name, path)


def _foreign(module: "nn.Module") -> str | None:
    """The class of a linear layer that another library packed; None of any other module."""
    from torch import Tensor, nn

    own = type(module)
    if not all(
        isinstance(getattr(module, each, None), int) for each in ("in_features", "out_features")
    ):
        return None
    if own.__module__.startswith(_LIBRARIES):
        return f"{own.__module__.partition('.')[0]}'s {own.__name__}"
    weight = module._parameters.get("weight")
    if isinstance(weight, Tensor) and type(weight) not in (Tensor, nn.Parameter):
        kind = type(weight)
        return f"{own.__name__} with {kind.__module__.partition('.')[0]}'s {kind.__name__}"
    return None


def _check(module: Any, name: str, path: str) -> None:
    import torch

    device = next(
        (t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu")
    )
    dtype = getattr(module, "compute_dtype", None) or _floats(module)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, module.in_features, generator=generator).to(device, dtype)
    slope = torch.randn(3, module.out_features, generator=generator).to(device, dtype)
    failed = "its input gradient cannot be computed"
    try:
        with torch.no_grad():
            units = torch.eye(module.in_features, dtype=dtype, device=device)
            zero = torch.zeros(1, module.in_features, dtype=dtype, device=device)
            twin = copy.deepcopy(module).train()
            weight_IO = twin(units).float() - twin(zero).float()
        twin = copy.deepcopy(module)
        # After an evaluation too: what that repacked is trained with from then on.
        for mode, training in (("training", True), ("evaluation", False), ("training", True)):
            failed = f"in {mode} mode its input gradient cannot be computed"
            apart = _apart(twin.train(training), x, slope, weight_IO)
            if not apart <= _CLOSE:
                raise _refused(
                    name, path, f"in {mode} mode its input gradient is wrong by {apart:.0%}"
                )
    except ModelError:
        raise
    except Exception as error:  # whatever another library raises
        words = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise _refused(name, path, f"{failed} ({words})") from error


def _apart(module: Any, x: "Tensor", slope: "Tensor", weight_IO: "Tensor") -> float:
    """The largest difference between the input gradient and g W, as a share of the largest element."""
    import torch

    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        (gradient,) = torch.autograd.grad(y, leaf, slope.to(y.dtype))
    wanted = slope.float() @ weight_IO.T
    return ((gradient.float() - wanted).abs().max() / wanted.abs().max()).item()


def _floats(module: Any) -> Any:
    """The format of a layer's floating-point tensors of two bytes or more; float32 where there is none."""
    import torch

    kinds = [t.dtype for t in (*module.parameters(), *module.buffers())]
    wide = [kind for kind in kinds if kind in (torch.bfloat16, torch.float16, torch.float32)]
    return wide[0] if wide else torch.float32


def _refused(name: str, path: str, why: str) -> ModelError:
    return ModelError(
        f"{path} is {name}, and {why}, tried on this machine: pairs beside it would be trained wrongly. "
        "Name the model that it was made from, with --base-dtype nf4 or int8 if memory is short"
    )
