"""AdamW over one flat buffer, and the learning rate of each step.

All trainable parameters become views of one tensor, and their gradients views of another: the
optimizer, the norm for clipping, the checkpoint and the snapshot of the best step are then one
operation each instead of hundreds of small ones.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lorakit.errors import ConfigError
from lorakit.training.spec import TrainSpec

_LLAMA_EXPONENT, _QWEN_EXPONENT = 0.781, 0.0775


class FlatAdamW:
    """AdamW (arXiv 1711.05101) on parameters laid end to end.

    Attributes:
        flat: (n,) all parameters; each `Parameter` of the model is a view of a part of it.
        grad: (n,) all gradients, likewise.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], spec: TrainSpec) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ConfigError("the model has no trainable parameter: attach an adapter first")
        kinds = {(p.dtype, p.device) for p in self.parameters}
        if len(kinds) > 1:
            raise ConfigError(f"trainable parameters must share one dtype and device, not {kinds}")
        first = self.parameters[0]
        count = sum(p.numel() for p in self.parameters)
        self.flat = torch.empty(count, dtype=first.dtype, device=first.device)
        self.grad = torch.zeros_like(self.flat)
        start = 0
        for parameter in self.parameters:
            part = slice(start, start + parameter.numel())
            self.flat[part].copy_(parameter.detach().reshape(-1))
            parameter.data = self.flat[part].view(parameter.shape)
            parameter.grad = self.grad[part].view(parameter.shape)
            start = part.stop
        self.flat.grad = self.grad
        self._adam = torch.optim.AdamW(
            [self.flat],
            lr=0.0,
            betas=(spec.beta1, spec.beta2),
            weight_decay=spec.weight_decay,
            fused=first.device.type in ("cpu", "cuda", "mps"),
        )

    @torch.no_grad()
    def step(self, learning_rate: float, *, divide_by: float, clip: float) -> float:
        """Divide the summed gradient, clip it, move the parameters, clear the gradient.

        Args:
            learning_rate: of this step.
            divide_by: the step's count of loss-bearing tokens.
            clip: largest L2 norm; 0 for none.

        Returns:
            The gradient's norm after the division and before clipping. Where it is not finite
            nothing has moved.
        """
        self.grad.div_(divide_by)
        norm = float(torch.linalg.vector_norm(self.grad))
        if math.isfinite(norm):
            if clip and norm > clip:
                # The guard against division by zero is torch's clip_grad_norm_'s.
                self.grad.mul_(clip / (norm + 1e-6))
            for group in self._adam.param_groups:
                group["lr"] = learning_rate
            self._adam.step()
        self.grad.zero_()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on: parameters, both moments, the step count."""
        kept = self._adam.state.get(self.flat, {})
        moments = {name: kept[name] for name in ("exp_avg", "exp_avg_sq", "step") if name in kept}
        return {"flat": self.flat, **moments}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state()` gave, to the bit."""
        self.flat.copy_(state["flat"])
        moments = {name: tensor.clone() for name, tensor in state.items() if name != "flat"}
        if moments:
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = moments[name].to(self.flat.device)
            self._adam.state[self.flat] = moments

    @property
    def state_bytes(self) -> int:
        """Bytes of both moments."""
        return 2 * self.flat.numel() * self.flat.element_size()


def learning_rate_at(step: int, steps: int, peak: float, spec: TrainSpec) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then cosine, linear or constant.

    The warm-up's first step has peak / warm-up steps, not zero; the decay ends at zero one step
    after the last, so that no step is spent at rate zero.

    >>> spec = TrainSpec(warmup=0.0, schedule="linear")
    >>> [learning_rate_at(step, 4, 1.0, spec) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    rising = math.ceil(spec.warmup * steps) if spec.warmup else 0
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    match spec.schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1.0 - done)
        case "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * done))


def auto_learning_rate(
    hidden_size: int, steps: int, *, family: str = "llama", full: bool = False
) -> float:
    """A first learning rate by rule, with the scale alpha/r and alpha 32.

    Full fine-tuning's is taken as 5e-5 · (2000 / hidden_size)^p with p = 0.781, or 0.0775 for
    the qwen family; low-rank adaptation's best rate is about 10 times that, about 15 times in
    runs of under 100 steps, and hardly depends on the rank ("LoRA Without Regret", Thinking
    Machines 2025; the fit is tinker-cookbook's hyperparam_utils).

    >>> auto_learning_rate(2000, 1000), auto_learning_rate(2000, 1000, full=True)
    (0.0005, 5e-05)
    """
    exponent = _QWEN_EXPONENT if family.startswith("qwen") else _LLAMA_EXPONENT
    rate = 5e-5 * (2000 / hidden_size) ** exponent
    times = 1.0 if full else (15.0 if steps < 100 else 10.0)
    return float(f"{rate * times:.2g}")
