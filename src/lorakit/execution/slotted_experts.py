"""A model's bare parameters in service: pairs on experts, of many adapters, read by the model's own code.

A step's tokens belong to many adapters. Two ways are right:

    together   the forward of the module that owns the experts is ours: rows by expert and adapter
    alone      the tokens of one adapter are a step of their own, and the model's code reads the weight
               with that adapter's pairs (AdaptedWeight): right for any code, and for routers too

The first is for modules that say what they compute as transformers' experts do, and only once a trial
gave the answers of the second.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.execution.family import expert_matrices
from lorakit.execution.own_caches import last_logits
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.stepping import Blocks
from lorakit.execution.steps import Place, plan_step
from lorakit.execution.trial import random_ids, same_answer
from lorakit.kernels.expert_slots import (
    ExpertPairs,
    ExpertRows,
    adapters_of,
    add_pairs,
    grouped_product,
    rows_by_expert,
)
from lorakit.kernels.packed.matrices import MatricesTensor, PackedMatrices
from lorakit.kernels.slot_plan import BatchPlan, SlotRun
from lorakit.lora.experts import BareParameter, bare_module, put_experts
from lorakit.lora.kinds import Geometry, kind_of
from lorakit.lora.parameters import bare_parameters, expert_geometry, is_fused

_SAYS = ("num_experts", "has_gate", "has_bias", "has_post_expert_norm", "is_transposed")
"""What a module of transformers says of its experts: how its forward is to be computed."""
_COUNTS = ((4, 1, 1), (7, 1, 1))
"""Tokens of a trial's two sequences in each step."""


class ServedParameter(nn.Module):
    """A bare parameter in service: the pairs on it by the first slot of their adapter.

    Calling it gives what the model's code multiplies by.
    """

    def __init__(self, base: BareParameter | PackedMatrices, geometry: Geometry) -> None:
        super().__init__()
        self.base, self.geometry = base, geometry
        self.held: dict[int, ExpertPairs] = {}
        self.reading: int | None = None

    def forward(self) -> Tensor:
        """The weight, with the pairs of the adapter that is read alone."""
        pairs = None if self.reading is None else self.held.get(self.reading)
        weight = self.weight
        return weight if pairs is None else pairs.beside(weight, self.geometry.swapped)

    @property
    def weight(self) -> Tensor:
        """The base's own."""
        return self.base.weight


class SlottedExperts:
    """The bare parameters of a served model.

    Args:
        model: the base. Parameters that get pairs are replaced in their modules by what reads them
            with the pairs.

    Attributes:
        geometries: of every parameter that pairs can stand on, by path.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._bare = {path: at for path, at in bare_parameters(model).items() if not kind_of(at[0])}
        self.geometries = {path: expert_geometry(*at) for path, at in self._bare.items()}
        self._served: dict[str, ServedParameter] = {}
        # Of each adapter in slots: how many, and the paths that it has pairs on.
        self._held: dict[int, tuple[int, frozenset[str]]] = {}
        self._together: frozenset[str] = frozenset()
        self._runs: tuple[SlotRun, ...] = ()
        self._adapters_T: Tensor | None = None

    def elements(self, rank: int) -> int:
        """Elements of the pairs of a rank on all experts of the model."""
        shapes = [self.geometries[path] for path, at in self._bare.items() if is_fused(*at)]
        return sum(s.experts * rank * (s.in_features + s.out_features) for s in shapes)

    @property
    def is_together(self) -> bool:
        """Whether the experts of one step can belong to many adapters."""
        return bool(self._together)

    def put(self, slot: int, width: int, pairs: Mapping[str, ExpertPairs]) -> None:
        """Let an adapter in slots [slot, slot + width) have these pairs; whoever was there has none.

        Args:
            slot: the first.
            width: how many.
            pairs: by path.
        """
        for first, (many, paths) in list(self._held.items()):
            if first < slot + width and slot < first + many:
                for path in paths:
                    del self._served[path].held[first]
                del self._held[first]
        for path, each in pairs.items():
            self._serve(path).held[slot] = each
        if pairs:
            self._held[slot] = (width, frozenset(pairs))

    def _serve(self, path: str) -> ServedParameter:
        if path not in self._served:
            served = ServedParameter(bare_module(self._model, path), self.geometries[path])
            put_experts(self._model, path, served)
            self._served[path] = served
        return self._served[path]

    def parts(self, runs: Sequence[SlotRun]) -> list[SlotRun]:
        """Of the runs those whose tokens must be a step of their own."""
        return [
            run for run in runs if run.slot in self._held and not self._joins(self._held[run.slot])
        ]

    def _joins(self, held: tuple[int, frozenset[str]]) -> bool:
        return held[1] <= self._together

    @contextlib.contextmanager
    def alone(self, slot: int) -> Iterator[None]:
        """Within the block the model's code reads its weights with the pairs of one adapter."""
        try:
            for served in self._served.values():
                served.reading = slot
            yield
        finally:
            for served in self._served.values():
                served.reading = None

    @contextlib.contextmanager
    def together(self, batch: BatchPlan) -> Iterator[None]:
        """Within the block the tokens of a step have the pairs of their own adapters."""
        runs = tuple(run for run in batch.runs if run.slot in self._held)
        try:
            if runs:
                self._runs = batch.runs
                self._adapters_T = adapters_of(batch.runs, batch.rows, self._model.device)
            yield
        finally:
            self._runs, self._adapters_T = (), None

    def try_together(self, blocks: Blocks, layers: Sequence[AttentionSettings]) -> bool:
        """Let the experts of one step belong to many adapters from now on, if that is right here.

        Args:
            blocks: what computes steps in one row.
            layers: the attention modules, in the order they run.
        """
        owners: dict[nn.Module, list[str]] = {}
        for path, (module, name) in self._bare.items():
            if is_fused(module, name) and all(hasattr(module, says) for says in _SAYS):
                owners.setdefault(module, []).append(path)
        paths = [path for own in owners.values() for path in own]
        if not paths:
            return False
        for module in owners:
            module.forward = partial(self._forward, module)
        self._together = frozenset(paths)
        if not _ExpertTrial(self, blocks, layers, paths).passed():
            for module in owners:
                del module.forward
            self._together = frozenset()
        return bool(self._together)

    def _forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        adapters_T, runs = self._adapters_T, self._runs
        held = [each.held for each in module._modules.values() if isinstance(each, ServedParameter)]
        if adapters_T is None or not any(run.slot in each for run in runs for each in held):
            return type(module).forward(module, *args, **kwargs)
        return _experts(module, adapters_T, runs, *args, **kwargs)

    def random_pairs(self, path: str, generator: torch.Generator) -> ExpertPairs:
        """Pairs of rank 1 whose ΔW is as large as the weight, for a trial."""
        shape, weight = self.geometries[path], self._serve(path).weight
        some = weight[0] if isinstance(weight, MatricesTensor) else weight  # as large as all
        sizes = (shape.experts, shape.in_features, 1), (shape.experts, 1, shape.out_features)
        down, up = (torch.randn(size, generator=generator).to(weight) for size in sizes)
        return ExpertPairs(down, up * some.float().square().mean().sqrt().to(weight.dtype))


def _experts(
    module: Any,
    adapters_T: Tensor,
    runs: Sequence[SlotRun],
    hidden_TD: Tensor,
    experts_TK: Tensor,
    weights_TK: Tensor,
) -> Tensor:
    """What transformers' experts compute (5.24), each token with the pairs of its adapter."""
    rows = rows_by_expert(experts_TK, adapters_T, runs, module.num_experts)
    tokens = rows.order // experts_TK.shape[1]
    into, out = expert_matrices(module)
    x = _product(module, into, hidden_TD[tokens], rows)
    x = module._apply_gate(x) if module.has_gate else module.act_fn(x)
    x = _product(module, out, x, rows)
    if module.has_post_expert_norm:
        x = module.post_expert_norm(x)
    x = x * weights_TK.flatten()[rows.order, None]
    y = torch.empty_like(x)
    y[rows.order] = x
    return y.view(*experts_TK.shape, -1).sum(dim=1).to(hidden_TD.dtype)


def _product(module: Any, name: str, x_SI: Tensor, rows: ExpertRows) -> Tensor:
    found = module._modules.get(name)
    served = found if isinstance(found, ServedParameter) else None
    weight = getattr(module, name) if served is None else served.weight
    weight = weight if module.is_transposed else weight.mT
    y_SO = grouped_product(x_SI.to(weight.dtype), weight, rows.stops)
    if module.has_bias:
        y_SO += getattr(module, f"{name}_bias")[rows.experts]
    if served is not None:
        add_pairs(x_SI, y_SO, rows, served.held)
    return y_SO


class _ExpertTrial:
    """Two sequences of two adapters and one of the base in steps together, against each alone."""

    def __init__(
        self,
        experts: SlottedExperts,
        blocks: Blocks,
        layers: Sequence[AttentionSettings],
        paths: Sequence[str],
    ) -> None:
        self.experts, self.blocks, self.layers, self.paths = experts, blocks, layers, paths

    @torch.inference_mode()
    def passed(self) -> bool:
        model, counts = self.experts._model, (*_COUNTS, _COUNTS[0])
        generator = torch.Generator().manual_seed(0)
        lengths = [sum(each) for each in counts]
        sequences = random_ids(model, sum(lengths)).split(lengths)
        try:
            for slot in (0, 1):
                pairs = {p: self.experts.random_pairs(p, generator) for p in self.paths}
                self.experts.put(slot, 1, pairs)
            expected = []
            for slot, ids in enumerate(sequences):
                with self.experts.alone(slot):
                    expected.append(last_logits(model, ids, len(counts[slot])))
            return same_answer(
                *(model, "pairs on experts, many adapters in one step"),
                lambda: self._steps(model, sequences, counts),
                torch.stack(expected, dim=1).flatten(0, 1),
            )
        finally:
            self.experts.put(0, 2, {})

    def _steps(
        self, model: Any, sequences: Sequence[Tensor], counts: Sequence[tuple[int, ...]]
    ) -> Tensor:
        size = 1 << (max(map(sum, counts)) - 1).bit_length()
        kv_caches = [
            torch.zeros(
                *(len(counts) * size, 2, x.key_heads, x.cell_width),
                dtype=model.dtype,
                device=model.device,
            )
            for x in self.layers
        ]
        logits, past = [], [0] * len(counts)
        for step_counts in zip(*counts, strict=True):
            each = list(enumerate(zip(past, step_counts, strict=True)))
            places = [Place(i * size, size, before, n) for i, (before, n) in each]
            ids_T = torch.cat([sequences[i][before : before + n] for i, (before, n) in each])
            ends = torch.tensor(step_counts, device=model.device).cumsum(0) - 1
            runs = tuple(SlotRun(i, 1, step_counts[i]) for i in (0, 1))
            batch = BatchPlan(len(ids_T), (), frozenset(), runs)
            with self.experts.together(batch):
                step = plan_step(places, model.device)
                logits.append(self.blocks.logits(ids_T, step, ends, kv_caches, batch))
            past = [before + n for _, (before, n) in each]
        return torch.cat(logits)
