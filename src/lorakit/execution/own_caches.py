"""Steps of a model whose sequences are computed apart, each with the cache that the model itself keeps.

For models whose sequences cannot share one row with a KV cache of ours: recurrent and state-space
layers, latent caches, sparse indexers, position biases. A sequence's cache is whatever the model gives
back beside its logits: keys and values, convolution and recurrent states. It is handed to the model's
next call under the name it came by. Each sequence costs a forward pass in each step.

    CONTINUED  pieces of a prompt, then single tokens, each after what is cached
    PROMPTS    a prompt in one piece, then single tokens: where a cache can only be continued by one
    ROWS       nothing is cached: the whole sequence is computed anew for each token

Which of them is right is found by trying (stepping.py). A cache that lacks tokens, after a step that
failed or was cut, is computed anew from the sequence's own tokens.
"""

import copy
import inspect
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError
from lorakit.execution.steps import Place, Step
from lorakit.kernels.slot_plan import BatchPlan, Costs, SlotRun, plan_batch
from lorakit.kernels.slots import SlotGroup

_ANY_COSTS = Costs(1.0, 1.0, 1.0)
"""One run of one adapter is one segment, whatever segments cost."""
_NO_STATE = {"loss", "logits", "hidden_states", "attentions", "cross_attentions"}


class Way(Enum):
    """How a sequence goes on; the value is said to the user."""

    CONTINUED = "with the model's own cache"
    PROMPTS = "with the model's own cache, each prompt in one piece"
    ROWS = "without a cache: every token computes its whole sequence anew"


@dataclass(frozen=True)
class Call:
    """What a model's forward is told beside its tokens and its cache.

    Attributes:
        positions: the tokens' places.
        mask: a mask of ones over cached and new tokens.
    """

    positions: bool = False
    mask: bool = False


CALLS = (Call(), Call(positions=True), Call(mask=True), Call(positions=True, mask=True))


@dataclass(eq=False)
class SequenceState:
    """One sequence: its tokens, and what the model keeps of the first `seen` of them."""

    ids: list[int] = field(default_factory=list)
    seen: int = 0
    kept: dict[str, Any] = field(default_factory=dict)


class SequenceStates:
    """The sequences by the first of their cells; the cells themselves hold nothing."""

    def __init__(self) -> None:
        self._states: dict[int, SequenceState] = {}

    def at(self, place: Place, new: Sequence[int]) -> SequenceState:
        """The sequence of a place, with the tokens of this step added.

        Raises:
            ModelError: its earlier tokens are not here.
        """
        if not place.past:
            self._states[place.start] = SequenceState()
        state = self._states.get(place.start)
        if state is None or len(state.ids) < place.past:
            raise ModelError(f"the sequence at {place.start} lacks its first {place.past} tokens")
        _cut(state, place.past)
        state.ids += new
        return state

    def copy(self, source: int, target: int, count: int) -> None:
        """Let another sequence begin with the first `count` tokens of one."""
        state = copy.deepcopy(self._states[source])
        _cut(state, count)
        self._states[target] = state

    def forget(self, start: int) -> None:
        """Drop a sequence."""
        self._states.pop(start, None)

    def retain(self, starts: Collection[int]) -> None:
        """Drop all sequences but those that begin at these cells."""
        for start in self._states.keys() - starts:
            del self._states[start]

    @property
    def bytes(self) -> int:
        """What all of them hold now."""
        return sum(tensor_bytes(state.kept) for state in self._states.values())

    def __len__(self) -> int:
        return len(self._states)


def _cut(state: SequenceState, count: int) -> None:
    """Keep the first tokens; a cache that has seen more is dropped, and computed anew when needed."""
    del state.ids[count:]
    if state.seen > count:
        state.seen, state.kept = 0, {}


class SequencesApart:
    """A model that computes each sequence of a step apart; see `stepping.Blocks`.

    Args:
        model: the base, in evaluation mode.
        paths: its linear layers that adapters may add to.
        way: how a sequence goes on.
        call: what its forward is told.
    """

    def __init__(self, model: Any, paths: Sequence[str], way: Way, call: Call) -> None:
        self.model, self.kind, self.call = model, way, call
        self.grouped = [(path,) for path in paths]
        self.states = SequenceStates()
        self.groups: Sequence[SlotGroup] = ()
        self._run: SlotRun | None = None
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        self._names = inspect.signature(model.forward).parameters.keys()

    @property
    def way(self) -> str:
        """How a step is computed, for the user."""
        return f"each sequence apart, {self.kind.value}"

    def use(self, groups: Sequence[SlotGroup]) -> None:
        """Let every linear layer add what is in these slots."""
        self.groups = groups
        for number, (path,) in enumerate(self.grouped):
            module = self.model.get_submodule(path)
            module.register_forward_hook(partial(self._add, number))

    def _add(self, group: int, module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        if self._run is None:
            return
        # All rows are of one sequence, however many of its tokens come here: an expert gets some.
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        if x.shape[0]:
            run = (SlotRun(self._run.slot, self._run.width, x.shape[0]),)
            plan = plan_batch(run, x.shape[0], x.device, _ANY_COSTS)
            self.groups[group].add(x, y.view(-1, y.shape[-1]), plan)

    def logits(
        self,
        ids_T: Tensor,
        step: Step,
        keep_L: Tensor,
        kv_caches: Sequence[Tensor],
        batch: BatchPlan,
    ) -> Tensor:
        """(L, vocabulary) at the places `keep_L` of the step."""
        ids, keep = ids_T.tolist(), keep_L.tolist()
        runs = [run for run in batch.runs for _ in range(run.rows)]
        rows: dict[int, Tensor] = {}
        first = 0
        for place in step.places:
            last = first + place.count
            state = self.states.at(place, ids[first:last])
            wanted = [t for t in keep if first <= t < last]
            if wanted or self.kind is Way.CONTINUED:
                self._run = runs[first] if first < len(runs) else None
                try:
                    tail = self._forward(state, last - min(wanted, default=last - 1))
                finally:
                    self._run = None
                rows |= {t: tail[t - last] for t in wanted}
            first = last
        if not keep:
            return torch.empty(0, self._vocabulary, device=ids_T.device)
        return torch.stack([rows[t] for t in keep])

    def following(self, state: SequenceState, ids: Sequence[int]) -> Tensor:
        """Logits of the token after a sequence's tokens, (vocabulary,).

        Args:
            state: of the sequence; an empty one at first.
            ids: all its tokens: those that the state has, and new ones.
        """
        state.ids = list(ids)
        return self._forward(state, 1)[-1]

    def _forward(self, state: SequenceState, count: int) -> Tensor:
        """Logits of a sequence's last `count` tokens at least, (≥ count, vocabulary)."""
        pending = len(state.ids) - state.seen
        caching = self.kind is not Way.ROWS
        if (self.kind is Way.PROMPTS and pending > 1) or pending < count:
            state.seen, state.kept = 0, {}
        # Until the call has succeeded nothing is known of what it left in the cache.
        past, kept = state.seen, state.kept
        state.seen, state.kept = 0, {}
        ids_1T = torch.tensor([state.ids[past:]], device=self.model.device)
        told = _keeping(self.model, count)
        if self.call.positions:
            told["position_ids"] = torch.arange(past, len(state.ids), device=ids_1T.device)[None]
        if self.call.mask:
            told["attention_mask"] = torch.ones(
                1, len(state.ids), dtype=torch.long, device=ids_1T.device
            )
        output = self.model(input_ids=ids_1T, use_cache=caching, **kept, **told)
        if caching:
            state.kept = {
                name: value
                for name, value in output.items()
                if value is not None and name in self._names and name not in _NO_STATE
            }
            if not state.kept:
                raise ModelError(f"{type(self.model).__name__} gives no cache back")
            state.seen = len(state.ids)
        logits: Tensor = output.logits[0]
        return logits


def last_logits(model: Any, ids_T: Tensor, count: int) -> Tensor:
    """Logits of the last tokens of one sequence, (count, vocabulary), as one row without a cache."""
    output = model(input_ids=ids_T[None], use_cache=False, **_keeping(model, count))
    logits: Tensor = output.logits[0, -count:]
    return logits


def _keeping(model: Any, count: int) -> dict[str, Any]:
    """Ask for the logits of the last tokens alone, where the model's forward can be asked."""
    names = inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in names else {}


@dataclass(frozen=True)
class StateBytes:
    """Memory of a sequence: `fixed` bytes, and `token` more for each of its tokens."""

    fixed: int
    token: int


@torch.inference_mode()
def measured_bytes(blocks: SequencesApart, ids: Sequence[int]) -> StateBytes:
    """What the model keeps of a sequence, measured after a quarter of these tokens and after all.

    Args:
        blocks: of the model.
        ids: any tokens, at least four.
    """
    if blocks.kind is Way.ROWS:
        return StateBytes(0, 8)  # its token ids
    sizes = []
    counts = (len(ids) // 4, len(ids))
    for count in counts:
        state = SequenceState(list(ids[:count]))
        blocks._forward(state, 1)
        sizes.append(tensor_bytes(state.kept))
    token = math.ceil((sizes[1] - sizes[0]) / (counts[1] - counts[0]))
    return StateBytes(max(sizes[1] - token * counts[1], 0), token)


def tensor_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors that a value holds, each counted once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(tensor_bytes(each, seen) for each in value.values())
    if isinstance(value, list | tuple | set):
        return sum(tensor_bytes(each, seen) for each in value)
    return tensor_bytes(vars(value), seen) if hasattr(value, "__dict__") else 0
