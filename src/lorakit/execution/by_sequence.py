"""Modules that mix tokens, called sequence by sequence inside a packed row.

A recurrence, a causal convolution or an attention of a model's own carries state from one sequence of
a packed row into the next. Everything else of the model works on tokens one by one. So the row stays
packed, and the mixing modules alone are given its sequences apart: as rectangles of similar lengths
padded on the right, which a causal module does not see, or one at a time. Which modules mix is found
by trying (mixing.py).

    handles = split(mixing_modules(model, run, lengths), together=True)
    with within(layout):
        model(...)                                            # one row of T tokens

Outside of `within` the modules work as ever. Activation checkpointing runs a layer again in the
backward, when the block has ended: `kept_within` is its context_fn, which brings the layout back.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from lorakit.errors import ModelError
from lorakit.kernels.layout import Layout, PaddedGroup
from lorakit.lora.jobs import JointLinear

_within: ContextVar[Layout | None] = ContextVar("lorakit_within", default=None)


@contextlib.contextmanager
def within(where: Layout | None) -> Iterator[None]:
    """Within the block split modules get the sequences of this layout apart; None: whole rows."""
    token = _within.set(where)
    try:
        yield
    finally:
        _within.reset(token)


def kept_within() -> tuple[Any, Any]:
    """The `context_fn` of torch's checkpoint: a layer that runs again has the layout it had."""
    return contextlib.nullcontext(), within(_within.get())


Axes = tuple[int, ...] | None
_Leaves = list[tuple[pytree.KeyPath, Any]]


@dataclass(frozen=True)
class MixingModule:
    """A module that mixes the tokens of its row.

    Attributes:
        path: in the model.
        module: itself.
        inputs: for each leaf of (arguments, keyword arguments), by its key path, the axes along which
            tokens lie; None for one that was no tensor.
        outputs: the same of what it gives.
        chooses: whether it picks some of the tokens, so that padded ones might change which.
    """

    path: str
    module: nn.Module
    inputs: Mapping[pytree.KeyPath, Axes]
    outputs: tuple[Axes, ...]
    chooses: bool = False


@dataclass(eq=False)
class _Split:
    """The two hooks of a module: the first group is called by torch, the others from the second hook."""

    mixing: MixingModule
    together: bool
    begun: tuple[list["_Group"], "_Leaves", pytree.TreeSpec] | None = None

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        where = self._layout()
        self.begun = None
        if where is None:
            return None
        for inner in module.modules():
            if isinstance(inner, JointLinear) and inner.jobs.only is None:
                raise ModelError(
                    f"{self.mixing.path} gets the sequences of a row apart, so jobs cannot share a "
                    "pass: train them one by one"
                )
        leaves, tree = pytree.tree_flatten_with_path((args, kwargs))
        groups = _groups(where, together=self.together)
        self.begun = groups, leaves, tree
        return self._given(leaves, tree, groups[0])

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self.begun is None or self._layout() is None:
            return None
        (groups, leaves, tree), self.begun = self.begun, None
        outputs = [output]
        for group in groups[1:]:
            own, keywords = self._given(leaves, tree, group)
            outputs.append(module.forward(*own, **keywords))
        flat = [pytree.tree_flatten(each) for each in outputs]
        total = self._total(leaves)
        merged = [
            _merged([each[i] for each, _ in flat], groups, axes, total)
            for i, axes in enumerate(_fitting(self.mixing.outputs, flat[0][0], 0))
        ]
        return pytree.tree_unflatten(merged, flat[0][1])

    def _total(self, leaves: "_Leaves") -> int:
        """Tokens of the row, those of no sequence included."""
        known = ((leaf, self.mixing.inputs.get(path)) for path, leaf in leaves)
        return next(int(leaf.shape[axes[0]]) for leaf, axes in known if axes)

    @staticmethod
    def _layout() -> Layout | None:
        where = _within.get()
        return where if where is not None and len(where.lengths) > 1 else None

    def _given(
        self, leaves: "_Leaves", tree: pytree.TreeSpec, group: "_Group"
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # What comes only in some ways to call the model (None by default) was not there to be tried.
        known = tuple(self.mixing.inputs.get(path) for path, _ in leaves)
        values = [leaf for _, leaf in leaves]
        axes = _fitting(known, values, self._total(leaves))
        own = [_taken(leaf, each, group) for leaf, each in zip(values, axes, strict=True)]
        given: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(own, tree)
        return given


@dataclass(frozen=True, eq=False)
class _Group:
    """Sequences that are called together: `rows` (n·M,), `real`, `tokens` as in `PaddedGroup`."""

    count: int
    length: int
    rows: Tensor
    real: Tensor | None
    tokens: Tensor


def split(mixing: Sequence[MixingModule], *, together: bool) -> list[RemovableHandle]:
    """Give these modules the sequences of a packed row apart, within `within`.

    Args:
        mixing: from `mixing.mixing_modules`.
        together: sequences of similar lengths as one rectangle, padded on the right; else each alone.

    Returns:
        Handles: removing them lets the modules work on whole rows again.
    """
    handles = []
    for each in mixing:
        hooks = _Split(each, together and not each.chooses)
        handles.append(each.module.register_forward_pre_hook(hooks.before, with_kwargs=True))
        handles.append(each.module.register_forward_hook(hooks.after, with_kwargs=True))
    return handles


def is_split(module: nn.Module) -> bool:
    """Whether `split` holds for this module."""
    hooks = module._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), _Split) for hook in hooks)


def _groups(where: Layout, *, together: bool) -> list[_Group]:
    if together:
        return [_group(each) for each in where.groups]
    device = where.groups[0].rows.device
    groups, start = [], 0
    for n in where.lengths:
        rows = torch.arange(start, start + n, device=device)
        groups.append(_Group(1, n, rows, None, rows))
        start += n
    return groups


def _group(group: PaddedGroup) -> _Group:
    whole = len(group.real) == len(group.rows)
    real = None if whole else group.real
    return _Group(group.count, group.length, group.rows, real, group.tokens)


def _fitting(axes: tuple[Axes, ...], leaves: list[Any], total: int) -> list[Axes]:
    """The axes of tokens in each leaf; a tensor that was none when the module was tried is looked at."""
    if len(axes) != len(leaves):
        raise ModelError(
            "a module that mixes tokens is called in another way than when it was tried"
        )
    return [
        tuple(axis for axis, size in enumerate(leaf.shape) if axis and size == total)
        if each is None and isinstance(leaf, Tensor)
        else each
        for each, leaf in zip(axes, leaves, strict=True)
    ]


def _taken(leaf: Any, axes: Axes, group: _Group) -> Any:
    """The part of an argument that belongs to a group: its tokens in a rectangle, (n, …, M, …)."""
    if not isinstance(leaf, Tensor) or not axes:
        return leaf
    n, length, rows = group.count, group.length, group.rows
    if len(axes) == 1 and _numbered(leaf):  # counted from the row's start: from the sequence's
        axis = axes[0]
        places = torch.arange(length, device=leaf.device).to(leaf.dtype)
        shape = [1] * leaf.dim()
        shape[axis] = length
        return places.view(shape).expand(*leaf.shape[:axis], length, *leaf.shape[axis + 1 :])
    if axes == (0,):  # tokens without a batch: sequences one after another
        return leaf.index_select(0, rows)
    if len(axes) == 1:
        axis = axes[0]
        taken = leaf.index_select(axis, rows).unflatten(axis, (n, length)).movedim(axis, 0)
        return taken.flatten(0, 1)  # (n·1, …), or (n·heads, …) where heads lie in the batch
    if len(axes) == 2 and 0 not in axes:
        return _mask_taken(leaf.movedim(axes, (-2, -1)), group).movedim((-2, -1), axes)
    raise ModelError("a module that mixes tokens gets them along axes that cannot be cut")


def _numbered(leaf: Tensor) -> bool:
    """Whether these are the places 0, 1, 2, … of the row's tokens, and nothing else."""
    if leaf.is_floating_point() or leaf.dtype == torch.bool:
        return False
    return torch.equal(leaf.flatten(), torch.arange(leaf.numel(), device=leaf.device))


def _mask_taken(mask: Tensor, group: _Group) -> Tensor:
    """(n·batch, …, M, M) of a mask or bias (batch, …, T, T) over queries and keys.

    Padded keys, which repeat a sequence's last token, are hidden as the row's last token is hidden
    from its first; padded queries see what that last token sees, so that nothing is without a key.
    """
    n, length = group.count, group.length
    rows_nM = group.rows.view(n, length)
    apart = mask[..., rows_nM[:, :, None], rows_nM[:, None, :]]
    if group.real is not None:
        real = torch.zeros(n * length, dtype=torch.bool, device=mask.device)
        real[group.real] = True
        apart = torch.where(real.view(n, 1, length), apart, mask[..., :1, -1:, None])
    return apart.movedim(-3, 0).flatten(0, 1)


def _merged(parts: list[Any], groups: list[_Group], axes: Axes, total: int) -> Any:
    """One output of all groups, its tokens in the row's order again; zeros for those of no sequence."""
    if not isinstance(parts[0], Tensor) or not axes:
        return parts[0]
    if len(axes) != 1:
        return None  # probabilities of attention and the like, which nobody asked for
    axis, tokens = axes[0], []
    for part, group in zip(_as_wide(parts, axis), groups, strict=True):
        flat = part if axis == 0 else part.movedim(axis, 1).flatten(0, 1)
        tokens.append(flat if group.real is None else flat.index_select(0, group.real))
    flat = torch.cat(tokens)
    places = torch.cat([group.tokens for group in groups])
    row = flat.new_zeros(total, *flat.shape[1:]).index_copy(0, places, flat)
    return row if axis == 0 else row[None].movedim(1, axis)


def _as_wide(parts: list[Tensor], axis: int) -> list[Tensor]:
    """Parts alike in all sizes but the tokens': the k best keys are fewer where there are fewer than k.

    The last of them is repeated: a set of keys stays the same.
    """
    widest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    wide = []
    for part in parts:
        for other in range(axis + 1, part.dim()):
            if part.shape[other] < widest[other]:
                places = torch.arange(widest[other], device=part.device)
                part = part.index_select(other, places.clamp_max(part.shape[other] - 1))
        wide.append(part)
    return wide
