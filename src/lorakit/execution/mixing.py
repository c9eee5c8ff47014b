"""Which modules of a model mix the tokens of a row, found by trying.

A module mixes where what it gives a token changes with earlier tokens that it is given. Of two that do,
one inside the other, the inner one is meant if nothing is left of it in the outer one: then all else of
the model works on a packed row as it is (by_sequence.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lorakit.execution.by_sequence import Axes, MixingModule, split, within
from lorakit.execution.trial import tolerance
from lorakit.kernels.layout import Layout


@torch.no_grad()
def mixing_modules(
    model: nn.Module, run: Callable[[], Any], lengths: tuple[int, int], where: Layout
) -> list[MixingModule]:
    """The smallest modules that carry something from the first sequence of a row into the second.

    Args:
        model: in evaluation mode.
        run: runs the model on one packed row of two sequences, (1, T).
        lengths: their tokens; T should be the size of nothing else.
        where: the layout of the row.

    Raises:
        ModelError: a module that mixes is not called once with tensors of the row's tokens.
    """
    calls: dict[nn.Module, list[_Call]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(module, []).append(_Call(args, kwargs, output))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        with within(None):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return _mixing(model, "", calls, lengths, where)


@dataclass(frozen=True, eq=False)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def _mixing(
    module: nn.Module,
    path: str,
    calls: dict[nn.Module, list[_Call]],
    lengths: tuple[int, int],
    where: Layout,
) -> list[MixingModule]:
    """Of a module and what is below it; [] where nothing is carried over."""
    called = calls.get(module, [])
    children = [
        (child, f"{path}.{name}" if path else name) for name, child in module.named_children()
    ]
    # A list of modules is not called itself, and the whole model gets ids and not what can be moved.
    mine = called[0] if len(called) == 1 else None
    described = None if mine is None else _described(mine, path, module, sum(lengths))
    if described is not None and mine is not None and not _carries(described, mine, lengths, None):
        return []
    below = [each for child, at in children for each in _mixing(child, at, calls, lengths, where)]
    if described is None or mine is None:
        return below
    if below:
        handles = split(below, together=False)
        try:
            if not _carries(described, mine, lengths, where):
                return below
        finally:
            for handle in handles:
                handle.remove()
    return [described]


def _described(call: _Call, path: str, module: nn.Module, tokens: int) -> MixingModule | None:
    """Along which axes the tokens of a call lie; None where nothing that can be moved comes in."""
    leaves = pytree.tree_flatten_with_path((call.args, call.kwargs))[0]
    given = {path: _axes(leaf, tokens) for path, leaf in leaves}
    gives = [_axes(leaf, tokens) for leaf in pytree.tree_leaves(call.output)]
    floats = [path for path, leaf in leaves if given[path] and leaf.is_floating_point()]
    if not floats or not any(gives):
        return None
    return MixingModule(path, module, given, tuple(gives))


def _axes(leaf: Any, tokens: int) -> Axes:
    if not isinstance(leaf, Tensor):
        return None
    return tuple(axis for axis, size in enumerate(leaf.shape) if size == tokens)


def _carries(
    mixing: MixingModule, call: _Call, lengths: tuple[int, int], where: Layout | None
) -> bool:
    """Whether what it gives the second sequence changes with the first's tokens."""
    first, total = lengths[0], sum(lengths)
    leaves, tree = pytree.tree_flatten((call.args, call.kwargs))
    generator = torch.Generator().manual_seed(1)
    moved = []
    for leaf, axes in zip(leaves, mixing.inputs.values(), strict=True):
        # One axis of tokens: hidden states. Masks and biases, which have two, stay.
        if axes is not None and len(axes) == 1 and leaf.is_floating_point():
            noise = torch.randn(leaf.shape, generator=generator).to(leaf)
            noise.narrow(axes[0], first, total - first).zero_()
            leaf = leaf + noise
        moved.append(leaf)
    answers = []
    for each in (leaves, moved):
        args, kwargs = pytree.tree_unflatten(each, tree)
        with within(where):
            output = mixing.module(*args, **kwargs)
        flat = zip(pytree.tree_leaves(output), mixing.outputs, strict=True)
        answers.append(
            [
                leaf.narrow(axes[0], first, total - first)
                for leaf, axes in flat
                if axes is not None and len(axes) == 1
            ]
        )
    for one, other in zip(*answers, strict=True):
        # Rounding may differ where a product's rows are sorted by what the tokens are (experts).
        close = 1e-5 if tolerance(one.dtype) < 1e-2 else 2e-2
        if (one - other).abs().max() > close * one.abs().max().clamp_min(1e-9):
            return True
    return False
