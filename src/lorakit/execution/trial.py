"""Does another way to compute give the answer of the model's own code? Asked here, and nowhere else.

Whether sequences can be packed, whether the head is a plain matrix, whether fused blocks or steps
with a KV cache may be used is found by trying it on a few random tokens, not by a model's name: the
answers and their gradients. What was found is remembered for the model (see runnable.py). It holds up
to the next limit that the configuration names (lengths.py); longer rows are tried again.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.execution.by_sequence import is_split
from lorakit.lora.layers import LoraLayer

_log = logging.getLogger("lorakit.execution")
# What another way may fail with where a model is not what it seems to be.
FAILURES = (
    ModelError,
    TypeError,
    ValueError,
    RuntimeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
LENGTHS = (7, 12)
"""Tokens of the two sequences of a trial, where no limit of the model is crossed."""
_ENDS = 16


def tolerance(dtype: torch.dtype) -> float:
    """How far two right ways may differ, as a share of the largest element: rounding alone."""
    return 2e-4 if dtype in (torch.float32, torch.float64) else 5e-2


def random_ids(model: Any, *shape: int) -> Tensor:
    """The same random token ids for every trial, on the model's device."""
    generator = torch.Generator().manual_seed(0)
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.randint(rows, shape, generator=generator).to(model.device)


def positions(lengths: Sequence[int] = LENGTHS) -> Tensor:
    """Places in their sequences of the tokens of a trial's sequences."""
    return torch.cat([torch.arange(n) for n in lengths])


def places_compared(lengths: Sequence[int]) -> Tensor:
    """Which tokens of a trial's sequences are looked at: all of short ones, both ends of long ones.

    The logits of all tokens of a long sequence may take more memory than the model.
    """
    places, start = [], 0
    for n in lengths:
        own = torch.arange(n)
        places.append(start + (own if n <= 2 * _ENDS else torch.cat([own[:_ENDS], own[-_ENDS:]])))
        start += n
    return torch.cat(places)


def row_logits(model: Any, ids_N: Tensor) -> Tensor:
    """The logits of one sequence alone, (N, V), in the model's own code: the oracle of all others.

    Raises:
        ModelError: the model does not run on a row of token ids.
    """
    try:
        logits: Tensor = model(input_ids=ids_N[None], use_cache=False).logits[0]
    except FAILURES as error:
        if isinstance(error, ModelError):
            raise
        text = (
            f"{type(model).__name__} does not run on a row of {len(ids_N)} token ids alone: {error}"
        )
        if model.dtype in (torch.bfloat16, torch.float16):
            # Parts of some models (xLSTM's cells, XLNet's positions) are in float32 whatever it is loaded in.
            kind = str(model.dtype).removeprefix("torch.")
            text += f". It was loaded in {kind}: if that is what it fails on, give --dtype float32"
        raise ModelError(text) from error
    return logits


@dataclass(frozen=True, eq=False)
class Computed:
    """What a way computes of a trial's sequences.

    Attributes:
        answer: its logits or hidden states, (T, …).
        gradients: of a fixed weighted sum of them: with respect to the input embeddings of the
            tokens, (T, D), and to the trained tensors of pairs. () where nothing could be followed
            back.
    """

    answer: Tensor
    gradients: tuple[Tensor, ...]


def computed(
    model: Any,
    compute: Callable[[], Tensor],
    *,
    pick: Tensor | None = None,
    first: int = 0,
    following: bool = True,
) -> Computed:
    """Run a way once, forward and backward.

    Args:
        model: its input embeddings are where the gradient is taken.
        compute: the way.
        pick: the rows of the embeddings, batch and place as one axis, that are tokens; all if left
            out.
        first: the place of its first answer among those of all sequences, for the weights.
        following: whether gradients are asked for.

    Raises:
        ModelError: the model's backward fails in evaluation mode.
    """
    if not following or torch.is_inference_mode_enabled():
        return Computed(compute(), ())
    with torch.enable_grad(), _embedded(model) as leaves:
        answer = compute()
        if not answer.requires_grad:
            return Computed(answer, ())
        if not leaves:  # what looks tokens up without calling the embedding
            return Computed(answer.detach(), ())
        weights = _weights(answer, first)
        pairs = [p for _, p in pair_parameters(model)]
        total = (answer.float() * weights).sum()
        try:
            gradients = torch.autograd.grad(total, [*leaves, *pairs], allow_unused=True)
        except FAILURES as error:
            raise ModelError(
                f"{type(model).__name__} cannot be trained here: its gradient cannot be computed in "
                "evaluation mode, so that no way to run it can be held against its own code "
                f"({str(error).splitlines()[0][:200] if str(error) else type(error).__name__}). Take "
                "another model"
            ) from error
    at_leaves = [g.flatten(0, -2) for g in gradients[: len(leaves)] if g is not None]
    if not at_leaves:
        return Computed(answer.detach(), ())
    of_inputs = sum(at_leaves[1:], at_leaves[0])
    if pick is not None:
        of_inputs = of_inputs.index_select(0, pick)
    of_pairs = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(pairs, gradients[len(leaves) :], strict=True)
    ]
    return Computed(answer.detach(), (of_inputs, *of_pairs))


def _weights(answer: Tensor, first: int) -> Tensor:
    """Of the sum whose gradient is taken: the same for a token whatever is computed beside it."""
    t = torch.arange(first + 1, first + 1 + len(answer), device=answer.device)
    v = torch.arange(answer[0].numel(), device=answer.device)
    return torch.sin(t[:, None] * (0.7 * v + 1)).view(answer.shape)


def joined(parts: Sequence[Computed]) -> Computed:
    """What the sequences of a trial give, each computed alone."""
    answer = torch.cat([part.answer for part in parts])
    if any(not part.gradients for part in parts):
        return Computed(answer, ())
    inputs = torch.cat([part.gradients[0] for part in parts])
    pairs = [sum(each[1:], each[0]) for each in zip(*(p.gradients[1:] for p in parts), strict=True)]
    return Computed(answer, (inputs, *pairs))


def pair_parameters(model: Any) -> list[tuple[str, Tensor]]:
    """The trained tensors of a model's pairs, with their paths."""
    return [
        (f"{path}.{name}", parameter)
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]


@contextlib.contextmanager
def _embedded(model: Any) -> Iterator[list[Tensor]]:
    """Within the block what the input embeddings give is followed back to; it is in the list."""
    leaves: list[Tensor] = []

    def follow(_module: Any, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return None
        leaves.append(output.detach().requires_grad_())
        # A leaf may not be scaled in its place, as some models do with their embeddings.
        return leaves[-1].clone()

    embeddings = model.get_input_embeddings()
    for module in model.modules():  # outer ones first: inside, the tokens are in another order
        if is_split(module) and any(inner is embeddings for inner in module.modules()):
            embeddings = module
            break
    handle = embeddings.register_forward_hook(follow)
    try:
        yield leaves
    finally:
        handle.remove()


def same_computed(
    model: Any,
    way: str,
    compute: Callable[[], Computed],
    expected: Computed,
) -> bool:
    """Whether a way gives these answers and these gradients, up to rounding; see `same_answer`."""
    results: list[Computed] = []

    def answer() -> Tensor:
        results.append(compute())
        return results[-1].answer

    if not same_answer(model, way, answer, expected.answer):
        return False
    got, wanted = results[-1].gradients, expected.gradients
    if len(got) != len(wanted):
        # A way that cannot be followed back is no way to train by.
        return not wanted
    largest = max((g.float().abs().max().item() for g in wanted[1:]), default=0.0)
    for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
        scale = other.float().abs().max().item()
        if one.shape != other.shape:
            _log.info(
                "%s, %s: gradients of %s, not %s", *_named(model, way), one.shape, other.shape
            )
            return False
        apart = (one.float() - other.float()).abs().max().item()
        # A pair that hardly matters is compared with those that do.
        if not apart <= _gradient_tolerance(model.dtype) * max(
            scale, largest * 1e-2 * (number > 0)
        ):
            _log.info(
                "%s, %s: gradients differ by %.1e, of at most %.1e",
                *_named(model, way),
                apart,
                scale,
            )
            return False
    return True


def _named(model: Any, way: str) -> tuple[str, str]:
    return type(model).__name__, way


def _gradient_tolerance(dtype: torch.dtype) -> float:
    """As `tolerance`, for what has gone through the model twice."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.15


def same_answer(
    model: Any,
    way: str,
    compute: Callable[[], Tensor],
    expected: Tensor | Callable[[], Tensor],
    *,
    close: float | None = None,
) -> bool:
    """Whether `compute` gives `expected`, up to rounding; a failure in it counts as no.

    Args:
        model: for its name and dtype.
        way: what is tried, for the log.
        compute: the other way.
        expected: what the model's own code gives, or a function that computes it (whose failure
            is a failure of the model, and is raised).
        close: the largest difference, as a share of the largest element of `expected`; that of
            `tolerance` if left out.
    """
    name = type(model).__name__
    wanted = (expected() if callable(expected) else expected).float()
    try:
        answer = compute().float()
    except FAILURES as error:
        _log.info("%s, %s: %s", name, way, error)
        return False
    if answer.shape != wanted.shape:
        _log.info("%s, %s: %s in place of %s", name, way, answer.shape, wanted.shape)
        return False
    apart = (answer - wanted).abs().max().item()
    scale = wanted.abs().max().item()
    _log.info("%s, %s: differs by %.1e, of at most %.1e", name, way, apart, scale)
    return apart <= (tolerance(model.dtype) if close is None else close) * scale
