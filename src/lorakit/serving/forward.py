"""A step through the base: one forward pass for all tokens, adapters beside its linear layers.

`OwnForward` runs the model's own code: its linear layers are replaced by ones that add the step's
adapters, its attention is the registered one of execution/cached.py. `lean.py` has a faster way for
models of the llama family. Both are tried on a few tokens before they are used (`open_forward`).
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorakit.errors import ConfigError, ModelError
from lorakit.execution.cached import Layer, attach_cache, step_logits
from lorakit.execution.lean import LeanBlocks
from lorakit.execution.packed import evaluating, head_is_plain
from lorakit.execution.steps import Place, Step, plan_step
from lorakit.kernels.slots import BatchPlan, Costs, Run, SlotGroup, costs, plan_batch
from lorakit.serving.bank import Bank, adaptable
from lorakit.serving.spec import EngineSpec

_log = logging.getLogger("lorakit.serving")


class Blocks(Protocol):
    """What computes the logits of a step."""

    @property
    def grouped(self) -> Sequence[Sequence[str]]:
        """Paths of linear layers that share their input, in the order they run."""

    def logits(
        self, ids_T: Tensor, step: Step, keep_L: Tensor, arenas: Sequence[Tensor], batch: BatchPlan
    ) -> Tensor:
        """(L, vocabulary) at the places `keep_L` of the step."""

    def use(self, groups: Sequence[SlotGroup]) -> None:
        """Take the slots that belong to `grouped`, in its order."""


class BatchedLinear(nn.Module):
    """A base's linear layer and, beside it, the step's adapters.

    Attributes:
        base: the layer.
        holder: where the step's plan is found while the model runs.
    """

    def __init__(self, base: nn.Module, holder: "OwnBlocks", group: int) -> None:
        super().__init__()
        self.base = base
        self._holder, self._group = [holder], group

    @property
    def weight(self) -> Any:
        """The base's own: some model code reads it."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The base's own."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        y: Tensor = self.base(x)
        holder = self._holder[0]
        if holder.batch is not None and holder.batch.segments:
            rows = y.view(-1, y.shape[-1])
            holder.groups[self._group].add(x.reshape(-1, x.shape[-1]), rows, holder.batch)
        return y


class OwnBlocks:
    """The model's own code, each linear layer a group of its own."""

    def __init__(self, model: Any, layers: dict[nn.Module, Layer]) -> None:
        self.model, self.layers = model, layers
        self.grouped = [(path,) for path in adaptable(model)]
        self.groups: Sequence[SlotGroup] = ()
        self.batch: BatchPlan | None = None

    def use(self, groups: Sequence[SlotGroup]) -> None:
        """Replace the linear layers by ones that add what is in these slots."""
        self.groups = groups
        for number, (path,) in enumerate(self.grouped):
            base = self.model.get_submodule(path)
            self.model.set_submodule(path, BatchedLinear(base, self, number))

    def logits(
        self, ids_T: Tensor, step: Step, keep_L: Tensor, arenas: Sequence[Tensor], batch: BatchPlan
    ) -> Tensor:
        """(L, vocabulary) at the places `keep_L` of the step."""
        self.batch = batch
        beside = {
            module: (arena, layer.asked)
            for (module, layer), arena in zip(self.layers.items(), arenas, strict=True)
        }
        try:
            return step_logits(self.model, ids_T, step, keep_L, beside)
        finally:
            self.batch = None


class Forward:
    """A base made ready to serve: its blocks, the cache's arenas and the adapters' slots.

    Args:
        blocks: what computes.
        layers: the attention modules, in the order they run.
        model: the base.
        spec: limits.
        cells: of the cache.
    """

    def __init__(
        self, blocks: Blocks, layers: Sequence[Layer], model: Any, spec: EngineSpec, cells: int
    ) -> None:
        self.blocks, self.device = blocks, model.device
        self.bank = Bank(
            *(adaptable(model), blocks.grouped, spec.slots, spec.slot_rank),
            dtype=model.dtype,
            device=model.device,
        )
        blocks.use(self.bank.groups)
        self.costs: Costs = costs(model.device, model.dtype, self.bank.numbers, self.bank.rank)
        self.arenas = [
            torch.zeros(
                cells, 2, layer.key_heads, layer.width, dtype=model.dtype, device=model.device
            )
            for layer in layers
        ]

    @torch.inference_mode()
    def run(
        self, ids: Sequence[int], places: Sequence[Place], keep: Sequence[int], runs: Sequence[Run]
    ) -> Tensor:
        """Logits of a step, (len(keep), vocabulary); keys and values go to the arenas.

        Args:
            ids: tokens, sequence after sequence, sorted by slot, the base's last.
            places: the sequences, in that order.
            keep: the tokens whose logits are wanted.
            runs: of adapters, see `lora.batched`.
        """
        step = plan_step(places, self.device)
        batch = plan_batch(tuple(runs), len(ids), self.device, self.costs)
        ids_T = torch.tensor(ids, device=self.device)
        keep_L = torch.tensor(keep, dtype=torch.long, device=self.device)
        return self.blocks.logits(ids_T, step, keep_L, self.arenas, batch)

    @torch.inference_mode()
    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the keys and values of `count` cells."""
        for arena in self.arenas:
            arena[target : target + count] = arena[source : source + count]

    @torch.inference_mode()
    def wipe(self, start: int, size: int) -> None:
        """Zero cells that may hold what is not finite, so that nobody meets it."""
        for arena in self.arenas:
            arena[start : start + size] = 0


def cell_bytes(layers: Sequence[Layer], dtype: torch.dtype) -> int:
    """Memory of one token's keys and values in all layers."""
    return sum(2 * layer.key_heads * layer.width for layer in layers) * dtype.itemsize


def cache_cells(spec: EngineSpec, cell: int, largest: int) -> int:
    """How many cells the memory for the cache holds, a multiple of the longest sequence's.

    Args:
        spec: limits.
        cell: bytes of one.
        largest: cells of the longest sequence.

    Raises:
        ConfigError: it holds less than one sequence.
    """
    cells = int(spec.cache_gb * 1e9 / cell) // largest * largest
    if not cells:
        raise ConfigError(
            f"cache_gb {spec.cache_gb:g} holds {int(spec.cache_gb * 1e9 / cell):,} tokens, and one "
            f"sequence may have {largest:,}: give at least {cell * largest / 1e9:.2f}, or lower "
            "--max-prompt and --max-output"
        )
    return cells


def open_forward(model: Any, spec: EngineSpec, largest: int) -> Forward:
    """Make a base ready: the lean way where a trial says that it answers the same, else its own code.

    The model belongs to the server from then on: its attention is switched and its linear layers
    are replaced.

    Args:
        model: from `load_model`, without an adapter.
        spec: limits.
        largest: cells of the longest sequence, a power of two.

    Raises:
        ModelError: it cannot be served; the text says why.
        ConfigError: the cache is smaller than one sequence.
    """
    expected, plain = _alone(model), head_is_plain(model)
    layers = attach_cache(model)
    cells = cache_cells(spec, cell_bytes(list(layers.values()), model.dtype), largest)
    lean = LeanBlocks.of(model, layers) if plain else None
    if lean is not None and _fits(lean, layers, model, expected):
        return Forward(lean, list(layers.values()), model, spec, cells)
    own = OwnBlocks(model, layers)
    if not _fits(own, layers, model, expected):
        raise ModelError(
            f"{type(model).__name__} cannot be served: with its sequences in one row it answers "
            "otherwise than with each alone. `lorakit generate` answers with it"
        )
    _log.info("%s is served by its own code", type(model).__name__)
    return Forward(own, list(layers.values()), model, spec, cells)


_TRIAL = ((3, 2, 1, 1), (6, 4, 1, 1))
"""Two sequences: how many tokens of each come in each step. A piece of the prompt, the rest of it,
two single tokens; the logits of all but the first step are compared."""


def _trial_ids(model: Any) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    rows = model.get_input_embeddings().weight.shape[0]
    return [torch.randint(rows, (sum(n),), generator=generator).tolist() for n in _TRIAL]


@torch.no_grad()
def _alone(model: Any) -> Tensor:
    """Logits after each step of the trial but the first, each sequence alone, (sequences·3, V)."""
    with evaluating(model):
        return torch.cat(
            [
                model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -3:]
                for ids in _trial_ids(model)
            ]
        ).float()


@torch.inference_mode()
def _fits(blocks: Blocks, layers: dict[nn.Module, Layer], model: Any, expected: Tensor) -> bool:
    """Whether prompts in pieces and then token by token, both in one row, give those logits."""
    size = 16
    arenas = [
        torch.zeros(2 * size, 2, x.key_heads, x.width, dtype=model.dtype, device=model.device)
        for x in layers.values()
    ]
    sequences, got, past = _trial_ids(model), [], (0, 0)
    try:
        for counts in zip(*_TRIAL, strict=True):
            places = [Place(i * size, size, past[i], counts[i]) for i in (0, 1)]
            ids = [sequences[i][past[i] + k] for i in (0, 1) for k in range(counts[i])]
            logits = blocks.logits(
                torch.tensor(ids, device=model.device),
                plan_step(places, model.device),
                torch.tensor([counts[0] - 1, len(ids) - 1], device=model.device),
                arenas,
                BatchPlan(len(ids), (), frozenset()),
            )
            got.append(logits.float())
            past = (past[0] + counts[0], past[1] + counts[1])
    except (ModelError, TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        _log.info("%s: %s", type(blocks).__name__, error)
        return False
    answered = torch.stack(got[1:], dim=1).flatten(0, 1)
    close = 2e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    apart = (answered - expected).abs().max().item() / expected.abs().max().item()
    _log.info("%s: logits differ by %.1e of the largest", type(blocks).__name__, apart)
    return apart <= close
