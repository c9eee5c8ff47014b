"""Which modules of a model mix the tokens of a row, found by trying.

A module mixes where what it gives a token changes with earlier tokens that it is given. Of two that do,
one inside the other, the inner one is meant if nothing is left of it in the outer one: then all else of
the model works on a packed row as it is (by_sequence.py).

A module that is given no hidden states may count the tokens of the row, as embeddings of places do that
take them from nowhere else. It counts where a sequence's tokens get something else in the row than alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.execution.by_sequence import MixingModule, split, within
from lorakit.execution.cutting import Axes
from lorakit.execution.trial import FAILURES, tolerance
from lorakit.kernels.layout import Layout


@torch.no_grad()
def mixing_modules(
    model: nn.Module,
    run: Callable[[], Any],
    lengths: tuple[int, int],
    where: Layout,
    *,
    counting: bool = False,
) -> list[MixingModule]:
    """The smallest modules that carry something from the first sequence of a row into the second.

    Args:
        model: in evaluation mode.
        run: runs the model on one packed row of two sequences, (1, T).
        lengths: their tokens; T should be the size of nothing else.
        where: the layout of the row.
        counting: those that count the tokens of the row are meant too.

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
    return [
        replace(each, chooses=_chooses(each, calls[each.module][0], sum(lengths)))
        for each in _mixing(model, "", calls, lengths, where, counting)
    ]


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
    counting: bool,
) -> list[MixingModule]:
    """Of a module and what is below it; [] where nothing is carried over."""
    called = calls.get(module, [])
    children = [
        (child, f"{path}.{name}" if path else name) for name, child in module.named_children()
    ]
    # A list of modules is not called itself, and the whole model gets ids and not what can be moved.
    mine = called[0] if len(called) == 1 else None
    described = None if mine is None else _described(mine, path, module, sum(lengths))
    counter = None
    if counting and described is None and mine is not None:
        counter = _described(mine, path, module, sum(lengths), floats=False)
        if counter is not None and not _counts(counter, mine, lengths, where, ()):
            counter = None
    if described is not None and mine is not None and not _carries(described, mine, lengths, None):
        if not counting:
            return []
        described = None  # what is inside may count all the same
    below = [
        each
        for child, at in children
        for each in _mixing(child, at, calls, lengths, where, counting)
    ]
    if counter is not None and mine is not None:
        # Not the model as a whole: that would be each row alone under another name.
        whole = any(isinstance(inner, nn.ModuleList) for inner in module.modules())
        return below if whole or not _counts(counter, mine, lengths, where, below) else [counter]
    if described is None or mine is None:
        return below
    if below:
        handles = split(below, together=False)
        try:
            if not _carries(described, mine, lengths, where):
                return below
        except FAILURES:
            pass  # it cannot use what the inner ones give it of each sequence
        finally:
            for handle in handles:
                handle.remove()
    return [described]


def _described(
    call: _Call, path: str, module: nn.Module, tokens: int, *, floats: bool = True
) -> MixingModule | None:
    """Along which axes the tokens of a call lie; None where nothing that can be moved comes in.

    Args:
        floats: whether hidden states come in; else there must be none, but whole numbers.
    """
    leaves = pytree.tree_flatten_with_path((call.args, call.kwargs))[0]
    given = {path: _axes(leaf, tokens) for path, leaf in leaves}
    gives = [_axes(leaf, tokens) for leaf in pytree.tree_leaves(call.output)]
    by_token = [leaf for path, leaf in leaves if given[path]]
    if not by_token or not any(gives):
        return None
    if floats != any(leaf.is_floating_point() for leaf in by_token):
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
        answers.append(_of_second(output, mixing, lengths))
    return any(not _close(one, other) for one, other in zip(*answers, strict=True))


def _counts(
    mixing: MixingModule,
    call: _Call,
    lengths: tuple[int, int],
    where: Layout,
    below: Sequence[MixingModule],
) -> bool:
    """Whether it gives the second sequence something else in the row than where it gets it apart.

    Args:
        mixing: the module.
        call: a call of it with the row.
        lengths, where: of the row.
        below: modules inside it that get the sequences apart already.
    """
    answers = []
    for apart in ([mixing], below):
        handles = split(apart, together=False)
        try:
            with within(where):
                output = mixing.module(*call.args, **call.kwargs)
        except FAILURES:
            return False
        finally:
            for handle in handles:
                handle.remove()
        answers.append(_of_second(output, mixing, lengths))
    return any(not _close(one, other) for one, other in zip(*answers, strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    # Rounding may differ where a product's rows are sorted by what the tokens are (experts).
    close = 1e-5 if tolerance(one.dtype) < 1e-2 else 2e-2
    return bool((one - other).abs().max() <= close * one.abs().max().clamp_min(1e-9))


class _Choices(TorchDispatchMode):
    """Notes whether something is chosen among as many as there are tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.met = tokens, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _CHOOSING and self.tokens in args[0].shape[-1:]:
            self.met = True
        return func(*args, **(kwargs or {}))


_CHOOSING = (torch.ops.aten.topk, torch.ops.aten.sort, torch.ops.aten.argsort)


def _chooses(mixing: MixingModule, call: _Call, tokens: int) -> bool:
    """Whether it picks some of the tokens, as sparse attention does.

    Which of equal ones are picked may change with padding, so such a module gets no padded tokens.
    """
    with _Choices(tokens) as choices, within(None):
        mixing.module(*call.args, **call.kwargs)
    return choices.met


def _of_second(output: Any, mixing: MixingModule, lengths: tuple[int, int]) -> list[Tensor]:
    """What the tokens of the second sequence get."""
    first, second = lengths
    return [
        leaf.narrow(axes[0], first, second)
        for leaf, axes in zip(pytree.tree_leaves(output), mixing.outputs, strict=True)
        if axes is not None and len(axes) == 1
    ]
