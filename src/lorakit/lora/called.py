"""Which layers a model really calls for a row of tokens: a pair beside any other would do nothing.

Some layers do not run for text (towers for images and sound, attention to an encoder that is not
there). Of others the model reads the weight without calling the layer: the pair would not be computed,
and merging would add it. Others run without gradient. One forward and backward with hooks tells, on
the meta device, so that a model whose weights are not here is told the same; where that cannot be
done, on the model's own weights; and where a module is no model of token ids, nothing is known.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.errors import TargetError
from lorakit.lora.kinds import kind_of
from lorakit.lora.spec import ALL_LINEAR, LoraSpec
from lorakit.lora.targets import matches

_TOKENS = (9, 300)
"""Of the row; of the longer one too where a layer got no gradient: what reads tokens by chunks has
something to give only once a chunk is full."""
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@dataclass(frozen=True)
class Idle:
    """Why a pair beside a layer would do nothing.

    Attributes:
        reason: for a person.
        read: the model may compute with the layer's weight all the same.
    """

    reason: str
    read: bool = False


_READ = Idle(
    "the model never calls it (but may read its weight): a pair would not be computed", True
)
_READ_BY_TORCH = Idle(
    "torch's MultiheadAttention reads its weight and never calls it: a pair would not be computed",
    True,
)
_NO_TEXT = Idle("it does not run for rows of text")
_NO_GRADIENT = Idle("it runs without gradient, so a pair would not be trained")

_known: "WeakKeyDictionary[nn.Module, dict[str, Idle]]" = WeakKeyDictionary()


def idle_layers(model: nn.Module) -> dict[str, Idle]:
    """Adaptable modules by path that a pair would be idle beside, and why; remembered for the model.

    Routed experts that no token of the trial came to are not idle. {} where it cannot be told.
    """
    if model not in _known:
        _known[model] = _tried(model)
    return _known[model]


def read_by_torch(model: nn.Module, paths: Iterable[str]) -> dict[str, Idle]:
    """Of these layers those whose weight a module of torch reads in any model, text or not; and why.

    `nn.MultiheadAttention` hands the weight of `out_proj` to a function and never calls the layer.
    """
    found = {}
    for path in paths:
        parent = model.get_submodule(path.rpartition(".")[0])
        same = isinstance(parent, nn.MultiheadAttention)
        if same and type(parent).forward is nn.MultiheadAttention.forward:
            found[path] = _READ_BY_TORCH
    return found


def not_for_text(model: nn.Module) -> frozenset[str]:
    """Paths of layers that do not run for rows of text: pairs beside them change no answer to text."""
    return frozenset(path for path, idle in idle_layers(model).items() if idle is _NO_TEXT)


def reasons_of_idle(
    model: nn.Module, spec: LoraSpec, chosen: list[str], *, exist: bool = False
) -> dict[str, str]:
    """Of the chosen those that a pair would be idle beside; and why.

    Args:
        model: the base.
        spec: a pattern of its targets that names nothing else is an error.
        chosen: paths.
        exist: the pairs are there already. Those on layers that do not run for text do no harm.

    Raises:
        TargetError: a pattern names idle layers only.
    """
    idle = {**idle_layers(model), **read_by_torch(model, chosen)} if chosen else {}
    reasons = {p: idle[p].reason for p in chosen if p in idle and (idle[p].read or not exist)}
    for pattern in spec.targets:
        named = [p for p in chosen if pattern != ALL_LINEAR and matches(pattern, p)]
        if named and all(path in reasons for path in named):
            raise TargetError(
                f"targets {pattern!r} names {named[0]}, and {reasons[named[0]]}. Leave it out of the "
                "targets"
            )
    return reasons


def _tried(model: nn.Module) -> dict[str, Idle]:
    for meta in (True, False):
        try:
            return _look(model, meta)
        # Whatever the foreign code of a model raises on tensors without values.
        except Exception:
            if all(parameter.is_meta for parameter in model.parameters()):
                return {}
    return {}


def _look(model: nn.Module, meta: bool) -> dict[str, Idle]:
    twin: Any = _twin(model, meta, {}).eval()
    modules = dict(twin.named_modules())
    candidates = {path: m for path, m in modules.items() if path and kind_of(m)}
    run = _Run(set(candidates.values()))
    run(twin, modules.values(), _TOKENS[0])
    if run.called & run.watched - run.with_gradient:
        run(twin, modules.values(), _TOKENS[1])
    idle = {
        path: _NO_GRADIENT for path, m in candidates.items() if m in run.called - run.with_gradient
    }
    uncalled = [
        path
        for path, m in candidates.items()
        if m not in run.called and not _is_choice(path, modules, run.called)
    ]
    # Only a module that runs itself can read the weight of one below it.
    idle |= {
        path: _READ if modules[path.rpartition(".")[0]] in run.called else _NO_TEXT
        for path in uncalled
    }
    return {path: idle[path] for path in candidates if path in idle}


def _is_choice(path: str, modules: dict[str, nn.Module], called: set[nn.Module]) -> bool:
    """Whether it lies in one of several modules that the model chooses among: routed experts."""
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        module = modules[".".join(parts[:end])]
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or module in called:
            continue
        return isinstance(modules[".".join(parts[: end - 1])], nn.ModuleList | nn.ModuleDict)
    return False


def _twin(module: nn.Module, meta: bool, twins: dict[int, Any]) -> nn.Module:
    """The same modules without hooks, on the meta device or on the same memory."""
    if id(module) in twins:
        known: nn.Module = twins[id(module)]
        return known
    twin = copy.copy(module)
    twins[id(module)] = twin
    for name in _HOOKS:
        twin.__dict__[name] = OrderedDict()

    def of(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in twins:
            other = tensor.detach().to("meta") if meta else tensor.detach()
            twins[id(tensor)] = (
                nn.Parameter(other, requires_grad=False)
                if isinstance(tensor, nn.Parameter)
                else other
            )
        same: Tensor = twins[id(tensor)]
        return same

    twin.__dict__["_parameters"] = {name: of(p) for name, p in module._parameters.items()}
    twin.__dict__["_buffers"] = {name: of(b) for name, b in module._buffers.items()}
    twin.__dict__["_modules"] = {
        name: None if child is None else _twin(child, meta, twins)
        for name, child in module._modules.items()
    }
    return twin


@dataclass(eq=False)
class _Run:
    """One forward and backward of a model on a row of tokens.

    Attributes:
        watched: modules whose output is looked at.
        called: modules that were called.
        with_gradient: those of the watched whose output the logits depend on by a gradient.
    """

    watched: set[nn.Module]
    called: set[nn.Module] = field(default_factory=set)
    with_gradient: set[nn.Module] = field(default_factory=set)
    _outputs: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def __call__(self, model: Any, modules: Iterable[nn.Module], tokens: int) -> None:
        self._outputs.clear()
        embedding = model.get_input_embeddings()
        ids_1T = torch.arange(tokens, device=model.device)[None] % len(embedding.weight)
        handles = [m.register_forward_hook(self._note) for m in modules]
        if embedding not in self.watched:  # one that scales what it looks up
            handles.append(embedding.register_forward_hook(lambda _m, _i, y: _followed(y)[1]))
        try:
            with torch.enable_grad(), _Guessed():
                logits = model(input_ids=ids_1T, use_cache=False).logits
                outputs = [y for _, y in self._outputs]
                gradients = torch.autograd.grad(logits.float().sum(), outputs, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        self.with_gradient |= {
            module
            for (module, _), gradient in zip(self._outputs, gradients, strict=True)
            if gradient is not None
        }

    def _note(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        self.called.add(module)
        if module not in self.watched or not isinstance(output, Tensor):
            return None
        if not torch.is_grad_enabled() or not output.is_floating_point():
            return None
        if output.requires_grad:
            self._outputs.append((module, output))
            return None
        # What it is given does not depend on the tokens (positions): a pair's gradient all the same.
        leaf, followed = _followed(output)
        self._outputs.append((module, leaf))
        return followed


def _followed(output: Any) -> tuple[Tensor, Tensor]:
    """A leaf, and a copy of it that may be changed in place."""
    leaf = output.detach().requires_grad_()
    return leaf, leaf.clone()


class _Guessed(TorchDispatchMode):
    """Operations that need values, on tensors that have none: nothing is found, nothing is true."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        aten = torch.ops.aten
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            tensor = args[0]
            if func is aten._local_scalar_dense.default:
                return 0.0 if tensor.is_floating_point() else 0
            if func is aten.nonzero.default:
                return torch.empty(0, tensor.dim(), dtype=torch.long, device="meta")
            if func is aten.equal.default:
                return True
            if func is aten._grouped_mm.default:  # in bfloat16 alone, where there are no values
                rows, columns, offsets = tensor.shape[:-1], args[1].shape[-1:], args[2:3]
                groups = offsets[0].shape if tensor.dim() == args[1].dim() == 2 else ()
                return tensor.new_empty(*groups, *rows, *columns)
        return func(*args, **(kwargs or {}))
