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

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from lorakit.errors import ModelError
from lorakit.execution.cutting import Axes, SequenceGroup, fitting, merged, sequence_groups, taken
from lorakit.kernels.layout import Layout
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


SCAN_CHUNK = 32
"""Tokens of a chunk of Mamba-2's scan (arXiv 2405.21060, section 6) where torch computes it on the CPU.

The result is the same whatever the chunk. transformers pads each sequence to whole chunks, and the work within
a chunk grows with its square: 128 took 1.27 times as long as 32 on rows of 40 to 97 tokens, 16 1.03 times.
"""

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
    begun: tuple[list["SequenceGroup"], "_Leaves", pytree.TreeSpec] | None = None
    scans: tuple[tuple[Any, int], ...] = ()

    def __post_init__(self) -> None:
        self.scans = tuple(_scans(self.mixing.module))

    def _chunks(self, most: int | None) -> None:
        """Let scans take chunks of at most so many tokens; None: of those they were made with."""
        for scan, own in self.scans:
            scan.chunk_size = own if most is None else min(own, most)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        where = self._layout()
        self.begun = None
        self._chunks(None)  # a pass that was left in its middle did not come to its second hook
        if where is None:
            return None
        for inner in module.modules():
            if isinstance(inner, JointLinear) and inner.jobs.only is None:
                raise ModelError(
                    f"{self.mixing.path} gets the sequences of a row apart, so jobs cannot share a "
                    "pass: train them one by one"
                )
        leaves, tree = pytree.tree_flatten_with_path((args, kwargs))
        groups = sequence_groups(where, together=self.together)
        self.begun = groups, leaves, tree
        self._chunks(SCAN_CHUNK)
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
        self._chunks(None)
        flat = [pytree.tree_flatten(each) for each in outputs]
        total = self._total(leaves)
        whole = [
            merged([each[i] for each, _ in flat], groups, axes, total)
            for i, axes in enumerate(fitting(self.mixing.outputs, flat[0][0], 0))
        ]
        return pytree.tree_unflatten(whole, flat[0][1])

    def _total(self, leaves: "_Leaves") -> int:
        """Tokens of the row, those of no sequence included."""
        known = ((leaf, self.mixing.inputs.get(path)) for path, leaf in leaves)
        return next(int(leaf.shape[axes[0]]) for leaf, axes in known if axes)

    @staticmethod
    def _layout() -> Layout | None:
        where = _within.get()
        return where if where is not None and len(where.lengths) > 1 else None

    def _given(
        self, leaves: "_Leaves", tree: pytree.TreeSpec, group: "SequenceGroup"
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # What comes only in some ways to call the model (None by default) was not there to be tried.
        known = tuple(self.mixing.inputs.get(path) for path, _ in leaves)
        values = [leaf for _, leaf in leaves]
        axes = fitting(known, values, self._total(leaves))
        own = [taken(leaf, each, group) for leaf, each in zip(values, axes, strict=True)]
        given: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(own, tree)
        return given


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


def _scans(module: nn.Module) -> Iterator[tuple[Any, int]]:
    """The scans of Mamba-2 in a module that torch computes on the CPU, and the chunk of each."""
    for inner in module.modules():
        decay, chunk = getattr(inner, "A_log", None), getattr(inner, "chunk_size", None)
        if isinstance(decay, Tensor) and decay.device.type == "cpu" and isinstance(chunk, int):
            yield inner, chunk
