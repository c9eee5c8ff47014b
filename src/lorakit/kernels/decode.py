"""A step of a decoder of the llama family in one compiled call, beside its plain twin in execution/lean.py.

The library reads structures of addresses (native/src/decode.cpp has their layout and the order of the
passes). What does not change from step to step, weights and slots, is laid out once.

Legend: T tokens of a step, D width of the model, H query heads, K key heads, E elements a head.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.kernels import native
from lorakit.kernels.slot_plan import BatchPlan
from lorakit.kernels.slots import SlotGroup

_LANES = 8
"""Floats of a vector: a head is a multiple of it."""


@dataclass(frozen=True, eq=False)
class BlockTensors:
    """What a block computes with. Norms are (weight, ε); those of heads may be None.

    Attributes:
        norms: before attention and before the gated MLP.
        head_norms: of queries and of keys.
        linears: (weight, bias or None) of q, k and v under one another; o; gate and up; down.
        scale: the s of softmax(s·Q Kᵀ).
        window, chunk: tokens that a token sees, see `lorakit.kernels.attention.attend`.
    """

    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]]
    head_norms: tuple[tuple[Tensor, float], tuple[Tensor, float]] | None
    linears: tuple[tuple[Tensor, Tensor | None], ...]
    scale: float
    window: int | None
    chunk: int | None


class _LinearLayout(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("w", "bias", "A", "B")),
        *((name, ctypes.c_int64) for name in ("in_", "out", "linears", "rank", "chunks", "chunk")),
        ("owner", ctypes.c_void_p),
    )


class _BlockLayout(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("norm1", "norm2", "q_norm", "k_norm", "cells")),
        *((name, _LinearLayout) for name in ("qkv", "o", "gate_up", "down")),
        *((name, ctypes.c_float) for name in ("eps1", "eps2", "q_eps", "k_eps", "scale", "unused")),
        *((name, ctypes.c_int64) for name in ("window", "chunk")),
    )


_COUNTS = ("tokens", "blocks", "width", "heads", "key_heads", "head", "places", "runs", "kept")
_ADDRESSES = (
    "block",
    "active",
    "place",
    "run",
    "kept_run",
    "keep",
    "cos",
    "sin",
    "x",
    "room",
    "norm",
)


class _StepLayout(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in (*_COUNTS, "kept_runs", "most_width", "unused")),
        *((name, ctypes.c_void_p) for name in _ADDRESSES),
        ("out", _LinearLayout),
        ("logits", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("unused2", ctypes.c_float),
    )


class CompiledDecoder:
    """A decoder that the compiled kernels run.

    Args:
        blocks: in the order they run.
        norm: the last one.
        head: weight and bias of the output head.
        sizes: H, K and E.
        run, room_of: the kernels.
    """

    def __init__(
        self,
        blocks: Sequence[BlockTensors],
        norm: tuple[Tensor, float],
        head: tuple[Tensor, Tensor | None],
        sizes: tuple[int, int, int],
        run: Callable[..., None],
        room_of: Callable[..., None],
    ) -> None:
        self._kept = blocks, norm, head  # whose addresses are laid out
        self._run, self._room_of = run, room_of
        self._room = torch.empty(0)
        self._blocks = (_BlockLayout * len(blocks))(*(_laid_out(block) for block in blocks))
        self._step = _StepLayout()
        self._step.blocks, self._step.width = len(blocks), norm[0].shape[0]
        self._step.heads, self._step.key_heads, self._step.head = sizes
        self._step.block = ctypes.addressof(self._blocks)
        self._step.norm, self._step.eps = norm[0].data_ptr(), norm[1]
        self._step.out = _linear(head)
        self._groups: Sequence[SlotGroup] = ()
        self._active = torch.zeros(4 * len(blocks) + 1, dtype=torch.int64)

    @classmethod
    def of(
        cls,
        blocks: Sequence[BlockTensors],
        norm: tuple[Tensor, float],
        head: tuple[Tensor, Tensor | None],
        sizes: tuple[int, int, int],
    ) -> "CompiledDecoder | None":
        """The decoder, or None where plain torch runs it: another number format, or other shapes."""
        dtype, device = norm[0].dtype, norm[0].device
        run = native.function("decode", "i", dtype, device)
        room_of = native.function("decode_room", "ii", dtype, device)
        if run is None or room_of is None or sizes[2] % _LANES:
            return None
        tensors: list[Any] = [norm[0], *head]
        for block in blocks:
            norms = (*block.norms, *(block.head_norms or ()))
            tensors += [weight for weight, _ in norms]
            tensors += [each for linear in block.linears for each in linear]
        alike = all(
            each.is_contiguous() and each.dtype == dtype and each.device == device
            for each in tensors
            if each is not None
        )
        return cls(blocks, norm, head, sizes, run, room_of) if alike else None

    def use(self, groups: Sequence[SlotGroup]) -> None:
        """Take the slots of the linear layers that share their input, and of the head, in order.

        Args:
            groups: of every such input and of the head; none where no adapter is to be served.
        """
        self._groups = groups
        if not groups:
            return
        places = [
            linear
            for block in self._blocks
            for linear in (block.qkv, block.o, block.gate_up, block.down)
        ]
        for linear, group in zip([*places, self._step.out], groups, strict=True):
            _with_slots(linear, group)

    def logits(
        self,
        x_TD: Tensor,
        angles_TE: tuple[Tensor, Tensor],
        places: Sequence[tuple[int, int, int, int]],
        keep_L: Tensor,
        kv_caches: Sequence[Tensor],
        batch: BatchPlan,
    ) -> Tensor:
        """Logits at the places `keep_L` of a step, (L, vocabulary); keys and values go to the caches.

        Args:
            x_TD: embeddings; what it holds afterwards is of no use.
            angles_TE: cosines and sines of rotary position embedding.
            places: of each sequence first cell, cells, tokens before this step, tokens of it.
            keep_L: int64.
            kv_caches: of each block (cells, 2, K, E).
            batch: the step's adapters.
        """
        step = self._step
        for block, cache in zip(self._blocks, kv_caches, strict=True):
            block.cells = cache.data_ptr()
        logits = x_TD.new_empty(keep_L.shape[0], step.out.out)
        cos_TE, sin_TE = (each.contiguous() for each in angles_TE)
        table = torch.tensor(places)
        kept = batch.kept
        runs, kept_runs = batch.runs, kept.runs if kept is not None else ()
        wanted = [g.holds(batch.slots) for g in self._groups] if runs else []
        active = torch.tensor(wanted, dtype=torch.int64) if wanted else self._active
        empty = torch.empty(0, dtype=torch.int64)
        run = empty if batch.table is None else batch.table
        kept_run = empty if kept is None or kept.table is None else kept.table
        step.tokens, step.places, step.kept = x_TD.shape[0], len(places), keep_L.shape[0]
        step.runs, step.kept_runs = len(runs), len(kept_runs)
        step.most_width = max((each.width for each in runs), default=1)
        tensors = (active, table, run, kept_run, keep_L, cos_TE, sin_TE, x_TD)
        names = ("active", "place", "run", "kept_run", "keep", "cos", "sin", "x")
        for name, tensor in zip(names, tensors, strict=True):
            setattr(step, name, tensor.data_ptr())
        step.logits = logits.data_ptr()
        needed = ctypes.c_int64()
        self._room_of(ctypes.addressof(step), ctypes.addressof(needed))
        if needed.value > self._room.numel():
            self._room = torch.empty(needed.value)
        step.room = self._room.data_ptr()
        self._run(ctypes.addressof(step))
        return logits


def _laid_out(block: BlockTensors) -> _BlockLayout:
    made = _BlockLayout()
    (first, made.eps1), (second, made.eps2) = block.norms
    made.norm1, made.norm2 = first.data_ptr(), second.data_ptr()
    if block.head_norms is not None:
        (queries, made.q_eps), (keys, made.k_eps) = block.head_norms
        made.q_norm, made.k_norm = queries.data_ptr(), keys.data_ptr()
    for name, linear in zip(("qkv", "o", "gate_up", "down"), block.linears, strict=True):
        setattr(made, name, _linear(linear))
    made.scale, made.window, made.chunk = block.scale, block.window or 0, block.chunk or 0
    return made


def _linear(linear: tuple[Tensor, Tensor | None]) -> _LinearLayout:
    weight, bias = linear
    out, inner = weight.shape
    made = _LinearLayout(in_=inner, out=out, linears=0, rank=0)
    made.w = weight.data_ptr()
    made.bias = None if bias is None else bias.data_ptr()
    return made


def _with_slots(linear: Any, group: SlotGroup) -> None:
    linears, rank = group.A.shape[1:3]
    chunks = group.B.shape[1]
    linear.A, linear.B = group.A.data_ptr(), group.B.data_ptr()
    linear.linears, linear.rank, linear.chunks, linear.chunk = linears, rank, chunks, group.chunk
    linear.owner = group.owners.data_ptr()
