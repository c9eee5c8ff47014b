"""Sequences laid end to end through any transformers model, attention within each.

A batch is one row of T tokens: everything but attention works on the row as it is, with no
padding. Attention is lorakit's, registered with transformers as ``lorakit_packed``; where the
sequences lie travels to it as a keyword argument of the model's forward, and not as a context
variable, because activation checkpointing runs a layer again in the backward, long after a
context has gone. No mask function is registered with it, so transformers builds none (its own
for packed batches is a dense T x T).

    with packed_attention(model):
        hidden_TD = packed_hidden(model, ids_T, positions_T, lengths_S)

Whether a model can be run so is found by trying (`supports_packing`), not by its name.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from lorakit.errors import ModelError
from lorakit.kernels.attention import attend
from lorakit.kernels.layout import Layout, compiles_shapes, layout, rounded
from lorakit.models.quiet import quiet

NAME = "lorakit_packed"
_KEYWORD = "lorakit_layout"
_log = logging.getLogger("lorakit.models")
# What a model's attention was before it was switched, for generation in the middle of training.
_before: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()
_packable: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


@dataclass(frozen=True)
class AttentionSettings:
    """What a model's attention module asks for, beside queries, keys and values.

    Attributes:
        heads: query heads.
        scale: the s of softmax(s·Q Kᵀ).
        window: tokens that a token sees, itself included; None for all before it.
        softcap: scores become c·tanh(score / c); None for none.
        dropout: share of the probabilities set to zero.
    """

    heads: int
    scale: float
    window: int | None
    softcap: float | None
    dropout: float

    def arguments(self) -> dict[str, Any]:
        """As `attend` takes them."""
        return {
            "scale": self.scale,
            "window": self.window,
            "softcap": self.softcap,
            "dropout": self.dropout,
        }


@dataclass(frozen=True, eq=False)
class _Observed(Layout):
    """A layout that also notes what each attention module asked for."""

    seen: dict[nn.Module, AttentionSettings] = field(default_factory=dict)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    lorakit_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: (1, H, T, D) in, (1, T, H, D) out."""
    what = type(module).__name__
    if lorakit_layout is None:
        raise ModelError(f"{what} was not told where the sequences lie: call packed_hidden")
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    for wrong, reason in [
        (not causal, "is not causal"),
        (s_aux is not None, "has attention sinks"),
        (position_bias is not None, "adds a position bias"),
        (attention_mask is not None, "brings a mask"),
        (query.shape[0] != 1 or key.shape[2] != query.shape[2], "uses a cache or a batch"),
    ]:
        if wrong:
            raise ModelError(f"{what} {reason}: its sequences cannot be laid end to end")
    asked = AttentionSettings(
        heads=query.shape[1],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        dropout=dropout,
    )
    if isinstance(lorakit_layout, _Observed):
        lorakit_layout.seen[module] = asked
    out_THD = attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        lorakit_layout,
        **asked.arguments(),
    )
    return out_THD[None], None


AttentionInterface.register(NAME, _attention)


@contextlib.contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Within the block the model attends within sequences laid end to end; then as before.

    A model that does not support packing is left as it is, for `padded_logits`. Blocks may be
    nested. A backward with activation checkpointing belongs inside the block, since it runs
    layers again.
    """
    if not supports_packing(model):
        yield
        return
    with _switched(model):
        yield


@contextlib.contextmanager
def _switched(model: Any) -> Iterator[None]:
    old = _switch(model, NAME)
    if old != NAME:
        _before[model] = old
    try:
        yield
    finally:
        _switch(model, old)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode within the block; then every module's own mode again."""
    training: list[nn.Module] = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Within the block the model attends as it was loaded to, also inside `packed_attention`."""
    now = _implementation(model)
    if now == NAME:
        _switch(model, _before.get(model, "eager"))
    try:
        yield
    finally:
        if now == NAME:
            _switch(model, NAME)


def packed_hidden(
    model: Any, ids_T: Tensor, positions_T: Tensor, lengths_S: Sequence[int]
) -> Tensor:
    """The last hidden states of sequences laid end to end, (T, hidden), after the final norm.

    Row t depends on the tokens of its own sequence up to t, and on nothing else.

    Args:
        model: a causal LM inside `packed_attention`.
        ids_T: token ids.
        positions_T: place of each token in its sequence, from 0.
        lengths_S: tokens of each sequence; they sum to T.

    Raises:
        ModelError: the model is not inside `packed_attention`, or cannot run so.
        ValueError: the lengths do not sum to T.
    """
    arguments = _arguments(model, ids_T, positions_T, lengths_S)
    hidden_1TD = model.base_model(**arguments).last_hidden_state
    assert isinstance(hidden_1TD, Tensor)
    return hidden_1TD[0, : ids_T.shape[0]]


def packed_logits(
    model: Any, ids_T: Tensor, positions_T: Tensor, lengths_S: Sequence[int], keep_L: Tensor
) -> Tensor:
    """Next-token logits at the places `keep_L` of the row, (L, vocab).

    They come through the model's own forward, so its scales and soft caps are in them.

    Args:
        model: as for `packed_hidden`.
        ids_T: token ids.
        positions_T: places, from 0.
        lengths_S: tokens of each sequence.
        keep_L: int64 indices into the row of T tokens.

    Raises:
        ModelError, ValueError: as `packed_hidden`.
    """
    arguments = _arguments(model, ids_T, positions_T, lengths_S)
    logits_1LV = model(**arguments, logits_to_keep=keep_L).logits
    assert isinstance(logits_1LV, Tensor)
    return logits_1LV[0]


@torch.no_grad()
def attention_settings(model: Any) -> dict[nn.Module, AttentionSettings]:
    """What each attention module asks for when it trains, found by running a few tokens.

    Args:
        model: one that supports packing; in training mode the dropout is that of training.
    """
    ids_T = torch.zeros(2, dtype=torch.long, device=model.device)
    where = layout((2,), model.device)
    observed = _Observed(where.lengths, where.groups)
    with packed_attention(model):
        arguments = _arguments(model, ids_T, torch.arange(2, device=model.device), (2,))
        model.base_model(**{**arguments, _KEYWORD: observed})
    return observed.seen


def padded_logits(
    model: Any, ids_T: Tensor, positions_T: Tensor, lengths_S: Sequence[int], keep_L: Tensor
) -> Tensor:
    """The same as `packed_logits` for a model that does not support packing: padded on the right.

    The model attends as it was loaded to. Slower, and memory grows with the padding.
    """
    _check_lengths(ids_T, lengths_S)
    mask_SM = torch.zeros(len(lengths_S), max(lengths_S), dtype=torch.long, device=ids_T.device)
    for row, length in enumerate(lengths_S):
        mask_SM[row, :length] = 1
    real = mask_SM.flatten().nonzero()[:, 0]
    ids_SM = torch.zeros_like(mask_SM)
    ids_SM.view(-1)[real] = ids_T
    with own_attention(model):
        logits_SMV = model(input_ids=ids_SM, attention_mask=mask_SM, use_cache=False).logits
    assert isinstance(logits_SMV, Tensor)
    return logits_SMV.flatten(0, 1).index_select(0, real[keep_L])


def supports_packing(model: Any) -> bool:
    """Whether sequences laid end to end give this model what each gives alone; found by trying.

    Two short random sequences must give, within the dtype's rounding, the logits of each alone;
    and the second's must not change when the first's tokens do. Recurrent models, and those
    whose attention is not transformers' switchable one (ALiBi families), answer False. The
    answer is remembered for the model.
    """
    known = _packable.get(model)
    if known is None:
        known = _packable[model] = _try_packing(model)
    return known


@torch.no_grad()
def _try_packing(model: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    lengths = (7, 12)
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (2, sum(lengths)), generator=generator).to(model.device)
    ids[1, lengths[0] :] = ids[0, lengths[0] :]
    positions = torch.cat([torch.arange(n) for n in lengths]).to(model.device)
    keep = torch.arange(sum(lengths), device=model.device)
    try:
        with evaluating(model):
            with _switched(model):
                first, other = (packed_logits(model, row, positions, lengths, keep) for row in ids)
            with own_attention(model):
                alone = [
                    model(input_ids=part[None], use_cache=False).logits[0]
                    for part in ids[0].split(lengths)
                ]
    except (ModelError, TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        _log.info("%s is run padded, not packed: %s", type(model).__name__, error)
        return False
    expected = torch.cat(alone).float()
    scale = expected.abs().max().item()
    apart = (first.float() - expected).abs().max().item() / scale
    leak = (first - other)[lengths[0] :].abs().max().item() / scale
    fits = apart <= (2e-4 if first.dtype == torch.float32 else 5e-2) and leak <= 1e-6
    if not fits:
        _log.info(
            "%s is run padded: packed differs by %.1e, leaks %.1e",
            type(model).__name__,
            apart,
            leak,
        )
    return fits


@torch.no_grad()
def head_is_plain(model: Any) -> bool:
    """Whether logits are exactly ``model.get_output_embeddings()(hidden)``; found by trying.

    If so, a loss may run the head in chunks on `packed_hidden`. The head's output is enlarged for
    the trial, so that a soft cap shows even where it hardly bends this model's own logits.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    ids_1T = torch.arange(6, device=model.device)[None]
    handle = head.register_forward_hook(lambda _module, _inputs, output: output * 1000)
    try:
        with evaluating(model), own_attention(model):
            expected = head(model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state)
            logits = model(input_ids=ids_1T, use_cache=False).logits
    finally:
        handle.remove()
    close = 1e-4 if logits.dtype == torch.float32 else 2e-2
    return bool((logits - expected).abs().max() <= close * expected.abs().max())


def _arguments(
    model: Any, ids_T: Tensor, positions_T: Tensor, lengths_S: Sequence[int]
) -> dict[str, Any]:
    if _implementation(model) != NAME:
        raise ModelError(
            "sequences end to end need `with packed_attention(model):` around the step, and a "
            "model that supports_packing"
        )
    _check_lengths(ids_T, lengths_S)
    few_sizes = compiles_shapes(model.dtype, ids_T.device)
    if few_sizes:  # tokens of no sequence at the end, which nothing attends to and nobody reads
        more = rounded(len(ids_T)) - len(ids_T)
        ids_T, positions_T = (F.pad(x, (0, more)) for x in (ids_T, positions_T))
    return {
        "input_ids": ids_T[None],
        "position_ids": positions_T[None],
        "use_cache": False,
        _KEYWORD: layout(lengths_S, ids_T.device, few_sizes=few_sizes),
    }


def _check_lengths(ids_T: Tensor, lengths_S: Sequence[int]) -> None:
    if sum(lengths_S) != ids_T.shape[0]:
        raise ValueError(f"lengths sum to {sum(lengths_S)}, but there are {ids_T.shape[0]} tokens")


def _implementation(model: Any) -> str:
    return str(model.config._attn_implementation)


def _switch(model: Any, name: str) -> str:
    """Set the attention of every part of the model; return what it was."""
    old = _implementation(model)
    if name != old:
        with quiet():
            model.set_attn_implementation(name)
        if _implementation(model) != name:
            raise ModelError(f"the attention of {type(model).__name__} cannot be switched")
    return old
