"""What training rows say of layers, before anything is trained: their inputs, the gradients of their weights.

Every sequence is run alone by the model's own code, in evaluation mode, on the base without pairs. Of a
weight W (out, in), its inputs x (T, in) and the gradients g (T, out) of its outputs, ∂L/∂W = gᵀ x: nothing
is asked of the weight itself, which may be packed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.batches import Batch
from lorakit.execution.modes import evaluating
from lorakit.kernels.head import label_loss

# Rows that are gathered before an SVD takes them in: many small ones would each cost a whole one.
_ROWS = 1024


@dataclass
class Directions:
    """The principal directions of vectors that come in parts (Ross et al. 2008, incremental PCA).

    Attributes:
        most: directions that are kept between parts.
        count: vectors so far.
        total: sum of their squared distances to their mean.
    """

    most: int
    count: int = 0
    total: float = 0.0
    _mean: Tensor | None = None
    _scaled: Tensor | None = None
    _waiting: list[Tensor] = field(default_factory=list)

    def add(self, x_TI: Tensor) -> None:
        """Take vectors in."""
        self._waiting.append(x_TI.double())
        if sum(len(x) for x in self._waiting) >= _ROWS:
            self._take()

    def _take(self) -> None:
        if not self._waiting:
            return
        x = torch.cat(self._waiting)
        self._waiting.clear()
        mean, added = x.mean(0), len(x)
        x = x - mean
        self.total += float((x * x).sum())
        parts = [x]
        if self._mean is not None and self._scaled is not None:
            whole = self.count + added
            apart = self._mean - mean
            share = self.count * added / whole
            self.total += share * float(apart @ apart)
            parts += [self._scaled, share**0.5 * apart[None]]
            mean = (self.count * self._mean + added * mean) / whole
        self._mean, self.count = mean, self.count + added
        S, Vh = _right_vectors(torch.cat(parts))
        self._scaled = (S[:, None] * Vh)[: self.most]

    def finish(self) -> tuple[Tensor, Tensor]:
        """Directions (most, in) of length 1, and the share of the variance that each explains."""
        self._take()
        assert self._scaled is not None
        S = torch.linalg.vector_norm(self._scaled, dim=1)
        tiny = torch.finfo(S.dtype).tiny
        return self._scaled / S.clamp_min(tiny)[:, None], S * S / max(self.total, tiny)


def _right_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right vectors of a tall or wide matrix, by the smaller of its Gram matrices."""
    if len(x) > x.shape[1]:
        values, vectors = torch.linalg.eigh(x.T @ x)
        return values.flip(0).clamp_min(0).sqrt(), vectors.T.flip(0)
    values, vectors = torch.linalg.eigh(x @ x.T)
    S = values.flip(0).clamp_min(0).sqrt()
    return S, (vectors.T.flip(0) @ x) / S.clamp_min(torch.finfo(S.dtype).tiny)[:, None]


@dataclass(frozen=True)
class LayerInputs:
    """The inputs of layers at supervised tokens.

    Attributes:
        directions: of each layer.
        same: layers whose input is that of another, with the first of these.
        tokens: vectors of each layer.
    """

    directions: Mapping[str, tuple[Tensor, Tensor]]
    same: Mapping[str, str]
    tokens: int


@torch.no_grad()
def layer_inputs(model: Any, most: Mapping[str, int], batches: Iterable[Batch]) -> LayerInputs:
    """The principal directions of the inputs of layers, at the supervised tokens of rows.

    Args:
        model: the base, without pairs.
        most: of each module's path how many directions are asked for.
        batches: of the rows.
    """
    of = {path: Directions(2 * count + 16) for path, count in most.items()}
    same, seen, at = dict[str, str](), dict[tuple[int, torch.Size], str](), Tensor()
    first, tokens, held = True, 0, list[Tensor]()

    def see(path: str, x: Tensor) -> None:
        key = (x.data_ptr(), x.shape)
        if first and key in seen:
            same[path] = seen[key]
            of[seen[key]].most = max(of[seen[key]].most, of[path].most)
        elif first:
            seen[key] = path
            held.append(x)  # so that no later input gets its place
        if path not in same:
            of[path].add(x.reshape(-1, x.shape[-1])[at])

    with _watching(model, most, lambda path, x, y: see(path, x)), evaluating(model):
        for ids, weight in _sequences(batches):
            at = torch.nonzero(weight).flatten()
            tokens += len(at)
            model(input_ids=ids[None], use_cache=False)
            first = False
            held.clear()
    found = {path: of[path].finish() for path in most if path not in same}
    return LayerInputs({path: found[same.get(path, path)] for path in most}, same, tokens)


def weight_gradients(
    model: Any, paths: Iterable[str], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """∂L/∂W of layers in float32, L being the mean loss of the supervised tokens of rows.

    They take as much memory as these weights do in float32.

    Args:
        model: the base, without pairs.
        paths: of the modules.
        batches: of the rows.
    """
    of: dict[str, Tensor] = {}

    def add(path: str, x: Tensor, grad: Tensor) -> None:
        g_TO, x_TI = (t.detach().float().reshape(-1, t.shape[-1]) for t in (grad, x))
        of[path] = of[path].addmm_(g_TO.T, x_TI) if path in of else g_TO.T @ x_TI

    def watch(path: str, x: Tensor, y: Tensor) -> None:
        if y.requires_grad:
            y.register_hook(partial(add, path, x.detach()))

    def begin(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        return y.requires_grad_(True) if y.is_leaf else y

    count = 0
    embedding = model.get_input_embeddings().register_forward_hook(begin)
    try:
        with _watching(model, paths, watch), evaluating(model), torch.enable_grad():
            for ids, weight in _sequences(batches):
                at = torch.nonzero(weight).flatten()
                logits = model(input_ids=ids[None], use_cache=False).logits[0]
                label_loss(logits[at - 1], ids[at]).backward()
                count += len(at)
    finally:
        embedding.remove()
    return {path: gradient / count for path, gradient in of.items()}


@contextmanager
def _watching(
    model: nn.Module, paths: Iterable[str], see: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Tell `see` of each module's path, input and output while it runs."""

    def hook(path: str, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        see(path, args[0], y)

    handles = [
        model.get_submodule(path).register_forward_hook(partial(hook, path)) for path in paths
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sequences(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and loss mask of each row that has supervised tokens."""
    for batch in batches:
        parts = zip(
            batch.ids_T.split(batch.lengths_S), batch.weight_T.split(batch.lengths_S), strict=True
        )
        yield from ((ids, weight) for ids, weight in parts if bool(weight.any()))
