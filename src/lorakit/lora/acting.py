"""On which tokens of a pass the pairs of a model act: for variants that act from a position on.

The layers see activations and no tokens. So one `Acting` stands beside all layers of an adapter, and is
told before each pass. Whoever packs sequences says where they lie (`told`). Any other call of the model
tells it by a hook on the model's inputs: the last invocation in each row of token ids; a call that goes
on from a cache acts as its beginning said, as peft's `generate` does. What no one told is an error.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError, TargetError
from lorakit.lora.layers import LoraLayer, LoraLinear
from lorakit.lora.targets import block_of
from lorakit.lora.variant import Capability

NEVER = 1 << 60
"""Where the invocation of a row without one begins."""
_CACHES = ("cache", "past_key_values", "cache_params")  # transformers 5.24, and what it took before


class Acting:
    """The tokens of the passes to come on which pairs act.

    Args:
        invocation: token ids from whose last occurrence on they act.
    """

    def __init__(self, invocation: Sequence[int]) -> None:
        self.invocation = tuple(invocation)
        self._on: Tensor | None = None
        self._said = self._held = False
        self._starts: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()
        self._current: list[int] = []
        self._hooks: list[Any] = []

    @property
    def now(self) -> Tensor | None:
        """Whether pairs act on each token of the pass, (N,) bool; None for all, (0,) where nobody said."""
        return self._on if self._said else torch.empty(0, dtype=torch.bool)

    def on(self, x: Tensor) -> Tensor | None:
        """The same for the rows of x (…, width), where no kernel asks.

        Raises:
            ModelError: it was not said of as many rows.
        """
        on_N, rows = self.now, x.numel() // x.shape[-1]
        if on_N is not None and len(on_N) not in (1, rows):
            raise ModelError(
                f"{rows} rows come to a layer with an activated pair, and of {len(on_N)} tokens it was "
                "said whether it acts on them: call the whole model with input_ids"
            )
        return None if on_N is None else on_N.expand(rows)

    @contextmanager
    def told(self, on_N: Tensor | None) -> Iterator[None]:
        """Within the block these tokens are acted on, whatever the model is called with.

        It stays said until the next pass: a block may be computed again for its backward.
        """
        before = self._held
        self._on, self._said, self._held = on_N, True, True
        try:
            yield
        finally:
            self._held = before

    @contextmanager
    def everywhere(self, device: torch.device) -> Iterator[None]:
        """Within the block every token is acted on, computed as where some are not."""
        before = self._on, self._said, self._held
        every = torch.ones(1, dtype=torch.bool, device=device)
        self._on, self._said, self._held = every, True, True
        try:
            yield
        finally:
            self._on, self._said, self._held = before

    def in_packed(self, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Where pairs act on packed sequences, (T,); tokens behind the last sequence are of none."""
        device, count = ids_T.device, len(self.invocation)
        sizes = torch.tensor([*lengths, len(ids_T) - sum(lengths)], device=device)
        sequence_T = torch.arange(len(sizes), device=device).repeat_interleave(
            sizes, output_size=len(ids_T)
        )
        begins = self._begins(ids_T[None])[0]
        begins &= sequence_T[: len(begins)] == sequence_T[count - 1 :][: len(begins)]
        place_T = torch.arange(len(ids_T), device=device)
        found = torch.where(begins, place_T[: len(begins)], -1)
        last_S = torch.full((len(sizes),), -1, device=device)
        last_S.scatter_reduce_(0, sequence_T[: len(begins)], found, "amax")
        last_S[-1] = -1
        start_T = last_S[sequence_T]
        return (start_T >= 0) & (place_T >= start_T)

    def _begins(self, ids_BT: Tensor) -> Tensor:
        """Whether an invocation begins at a token, (B, T - its length + 1); (B, 0) for shorter rows."""
        count = len(self.invocation)
        if ids_BT.shape[1] < count:
            return ids_BT.new_zeros(len(ids_BT), 0, dtype=torch.bool)
        wanted = torch.tensor(self.invocation, device=ids_BT.device)
        return (ids_BT.unfold(1, count, 1) == wanted).all(-1)

    def starts(self, ids_BT: Tensor) -> list[int]:
        """Where the last invocation of each row begins, `NEVER` for a row without one."""
        begins = self._begins(ids_BT).cpu()
        return [int(row.nonzero()[-1]) if bool(row.any()) else NEVER for row in begins]

    def connect(self, entry: nn.Module) -> None:
        """Be told by every call of a module that takes token ids."""
        self._hooks = [
            entry.register_forward_pre_hook(self._before, with_kwargs=True),
            entry.register_forward_hook(self._after, with_kwargs=True),
        ]

    def disconnect(self) -> None:
        """Be told no more."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, _: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if self._held:
            return
        ids_BT = named.get("input_ids", inputs[0] if inputs else None)
        if not isinstance(ids_BT, Tensor) or ids_BT.is_floating_point() or ids_BT.dim() != 2:
            raise ModelError(
                "an activated adapter acts from tokens on, and the model was called without input_ids: "
                "embeddings do not say where they stand"
            )
        cache = _cache(named)
        starts = None if cache is None else self._starts.get(cache)
        past = _length(cache)
        if starts is not None and not past and ids_BT.shape[1] == 1:
            past = NEVER - 1  # a state that has no length, after its prompt
        if cache is not None and past:
            if starts is None or len(starts) != len(ids_BT):
                raise ModelError(
                    "the model was called with a cache whose beginning an activated adapter has not "
                    "seen: whether the adapter acts is not known; begin with the whole prompt"
                )
        else:
            starts = self.starts(_without_padding(ids_BT, named.get("attention_mask")))
        self._current = starts
        if cache is not None:
            self._starts[cache] = starts
        self._say(starts, past, ids_BT)

    def _say(self, starts: Sequence[int], past: int, ids_BT: Tensor) -> None:
        self._said = True
        if max(starts) <= past:
            self._on = None
            return
        place_T = torch.arange(past, past + ids_BT.shape[1], device=ids_BT.device)
        start_B1 = torch.tensor(starts, device=ids_BT.device)[:, None]
        self._on = (place_T >= start_B1).flatten()

    def _after(
        self, _: nn.Module, __: tuple[Any, ...], ___: Mapping[str, Any], output: Any
    ) -> None:
        """A cache that the model made itself goes on from what this call was told."""
        cache = _cache(output) if isinstance(output, Mapping) else None
        if cache is not None and not self._held:
            self._starts[cache] = self._current


def connect_acting(model: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
    """Tell the layers of an adapter that acts from a position on which tokens it acts on.

    Raises:
        TargetError: its invocation is a text still, or it adapts what does not see the tokens of a row.
    """
    if not any(Capability.POSITION in layer.variant.capabilities for layer in layers.values()):
        return
    invocation = next(iter(layers.values())).spec.alora
    if isinstance(invocation, str):
        raise TargetError(
            f"alora is the text {invocation!r}: only a tokenizer says which tokens it is; give token ids, "
            "as lorakit.lora.invocation.with_tokens(spec, tokenizer) does"
        )
    for path, layer in layers.items():
        if not isinstance(layer, LoraLinear) or block_of(path) is None:
            raise TargetError(
                f"{path} is {'no linear layer' if block_of(path) is not None else 'outside the blocks'}, "
                "and an activated pair acts on linear layers of the blocks, which see every token of a "
                "row: exclude it"
            )
    acting = Acting(invocation)
    for layer in layers.values():
        layer.acting = acting
    entry = getattr(model, "base_model", model)
    acting.connect(entry if isinstance(entry, nn.Module) else model)


def acting_on(model: nn.Module) -> Acting | None:
    """What the adapter of a model is told by; None where there is none, or it acts on every token."""
    first = next((m for m in model.modules() if isinstance(m, LoraLayer)), None)
    return None if first is None else first.acting


def told(model: nn.Module, ids_T: Tensor, lengths: Sequence[int]) -> Any:
    """A context in which a model computes packed sequences, its adapter acting where it should."""
    acting = acting_on(model)
    return nullcontext() if acting is None else acting.told(acting.in_packed(ids_T, lengths))


def everywhere(model: nn.Module) -> Any:
    """A context in which an adapter acts on every token, as plain LoRA does: for trials of a model."""
    acting = acting_on(model)
    if acting is None:
        return nullcontext()
    return acting.everywhere(next(model.parameters()).device)


def _cache(named: Any) -> Any:
    names = [name for name in _CACHES if name in list(named)]
    return next((named[name] for name in names if named[name] is not None), None)


def _length(cache: Any) -> int:
    """Tokens that a cache holds; those of a state without a length are not counted."""
    if cache is None:
        return 0
    length = getattr(cache, "get_seq_length", None)
    return int(length()) if length is not None else 0


def _without_padding(ids_BT: Tensor, mask: Any) -> Tensor:
    """Ids with -1 where the mask hides them: padding is part of no invocation."""
    if isinstance(mask, Tensor) and mask.shape == ids_BT.shape:
        return ids_BT.masked_fill(mask == 0, -1)
    return ids_BT
