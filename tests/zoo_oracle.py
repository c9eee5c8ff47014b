"""transformers' own code with W + s·B·A, each row alone: what every way of lorakit is held against.

The weights of a second model of the same files are replaced, in float32; nothing of lorakit computes.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.func import functional_call
from transformers import AutoConfig

LOGITS_CLOSE = 1e-4


class DiffersError(AssertionError):
    """lorakit's answer is not the oracle's."""


class OracleFailsError(AssertionError):
    """transformers' own code gives no answer to compare with."""


def random_rows(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Rows of random tokens that no special token is among."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 260, (n,), generator=generator) for n in lengths]


def own_model(folder: Path) -> Any:
    """A saved model in float32, by the class that wrote it: a language tower has no automatic one."""
    (name,) = AutoConfig.from_pretrained(folder).architectures
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


class Oracle:
    """transformers' own forward with W + s·B·A, each row alone.

    Args:
        base: the folder of the base.
        layers: adapted layers by their paths; their A, B and scale are copied.
    """

    def __init__(self, base: Path, layers: Mapping[str, Any]) -> None:
        self.base = base
        self.model = own_model(base)
        self.model.requires_grad_(False)
        self.pairs = {
            path: tuple(x.detach().clone().requires_grad_() for x in (layer.A, layer.B))
            for path, layer in layers.items()
        }
        self.scales = {path: layer.scale for path, layer in layers.items()}

    def weights(self) -> dict[str, Tensor]:
        """The adapted weights by parameter name."""
        weights = {}
        bare = dict(self.model.named_parameters())
        for path, (A, B) in self.pairs.items():
            name = path if path in bare else f"{path}.weight"
            weight = bare[name] if name in bare else self.model.get_parameter(name)
            delta = self.scales[path] * (
                B @ A if weight.ndim == 2 else by_expert(A, B, len(weight))
            )
            # GPT-2's layers and some experts keep (in, out).
            turned = delta.shape != weight.shape or type(self.owner(name)).__name__ == "Conv1D"
            weights[name] = weight + (delta.mT if turned else delta)
        return weights

    def owner(self, name: str) -> Any:
        """The module that a parameter belongs to."""
        return self.model.get_submodule(name.rpartition(".")[0])

    def logits(self, row: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Logits of one row, (T, vocabulary)."""
        given = {"input_ids": row[None], "use_cache": False}
        try:
            with torch.set_grad_enabled(weights is not None):
                output = functional_call(
                    self.model,
                    self.weights() if weights is None else weights,
                    (),
                    given,
                    # Zamba's blocks share weights, and each has pairs of its own.
                    tie_weights=False,
                )
        except Exception as error:
            raise OracleFailsError(f"{type(error).__name__}: {str(error)[:200]}") from error
        logits: Tensor = output.logits[0]
        if not logits.isfinite().all():
            raise OracleFailsError("its logits are not finite")
        return logits

    @cached_property
    def shaken(self) -> "Oracle":
        """The same with every weight off by about its last bit: how far rounding alone goes."""
        other = Oracle(self.base, {})
        other.scales = self.scales
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in other.model.parameters():
                weight.mul_(1 + 2**-23 * torch.randn(weight.shape, generator=noise))
        other.pairs = {
            path: tuple(
                (x * (1 + 2**-23 * torch.randn(x.shape, generator=noise))).detach().requires_grad_()
                for x in pair
            )
            for path, pair in self.pairs.items()
        }
        return other

    def is_causal(self, row: Tensor) -> bool:
        """Whether another token leaves the logits of those before it as they are."""
        at = len(row) - 5
        other = row.clone()
        other[at] = 5 + (other[at] - 4) % 250
        before, after = self.logits(row)[:at], self.logits(other)[:at]
        return bool((before - after).abs().max() <= LOGITS_CLOSE * before.abs().max())

    def loss(self, rows: Sequence[Tensor]) -> tuple[float, dict[str, tuple[Tensor, ...]]]:
        """Summed nats of all tokens but each row's first, and gradients of A and B by path."""
        weights = self.weights()
        nll = torch.zeros(())
        for row in rows:
            nll = nll + F.cross_entropy(self.logits(row, weights)[:-1], row[1:], reduction="sum")
        leaves = [x for pair in self.pairs.values() for x in pair]
        try:
            gradients = torch.autograd.grad(nll, leaves, allow_unused=True)
        except RuntimeError as error:
            raise OracleFailsError(f"its gradient: {error}") from error
        found = [
            torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)
        ]
        return float(nll), dict(
            zip(self.pairs, zip(found[::2], found[1::2], strict=True), strict=True)
        )

    @cached_property
    def by_length(self) -> bool:
        """Whether a beginning has other logits than in the whole: ropes that ask for the length."""
        (row,) = random_rows((40,), seed=4)
        whole = self.logits(row)
        parts = [(self.logits(row[:n]) - whole[:n]).abs().max() for n in (12, 30)]
        return bool(max(parts) > 10 * LOGITS_CLOSE * whole.abs().max())

    def chosen_from(self, ids: Sequence[int], answer: Sequence[int]) -> list[Tensor]:
        """The logits that each token of an answer is chosen from, and those of what follows it."""
        whole = torch.tensor([*ids, *answer])
        if not self.by_length:
            return list(self.logits(whole)[len(ids) - 1 :])
        ends = range(len(ids), len(whole) + 1)
        return [self.logits(whole[:end])[-1] for end in ends]


def by_expert(A: Tensor, B: Tensor, experts: int) -> Tensor:
    """B_e A_e of every expert e: A (E·r, in) has its rows by expert, B (out, r·E) expert innermost."""
    return torch.stack([B[:, e::experts] @ A.chunk(experts)[e] for e in range(experts)])


def within(close: float, rounding: float) -> float:
    """What may differ: `close`, or a few times what float32 alone makes of transformers' own code."""
    return max(close, min(4 * rounding, 10 * close))


def largest_apart(
    got: Mapping[str, Sequence[Tensor | None]], right: Mapping[str, Sequence[Tensor]]
) -> tuple[float, str]:
    """The largest difference of a gradient, as a share of its largest element; and whose it is."""
    overall = max((g.abs().max().item() for pair in right.values() for g in pair), default=0.0)
    worst, where = 0.0, ""
    for path, pair in right.items():
        for name, ours, wanted in zip("AB", got[path], pair, strict=True):
            scale = max(wanted.abs().max().item(), 1e-3 * overall)
            difference = wanted if ours is None else ours - wanted
            apart = difference.abs().max().item() / scale
            if not apart <= worst:
                worst, where = apart, f"{path}.{name}"
    return worst, where
