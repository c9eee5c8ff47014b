"""AdamW over one flat buffer, and the learning rate of each step.

All trainable parameters become views of one tensor, and their gradients views of another: the
optimizer, the norm for clipping, the checkpoint and the snapshot of the best step are then one
operation each instead of hundreds of small ones.

Parameters of 16 bits keep a master copy in float32 (arXiv 1710.03740): a step of 1e-5 on a weight
of 0.1 is far below the spacing of bfloat16 there (5e-4) and would be rounded away. The model
computes with the master copy rounded to its own format; the optimizer moves the master copy. That
takes 16 bytes a parameter, as float32 without a copy does: 2 + 2 of weight and gradient, 4 of the
master copy and 8 of the moments, against 4 + 4 + 8. Moments in 8 bits (`TrainSpec.moments`) take 2 in
place of 8: `lorakit.training.moments`.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lorakit.errors import ConfigError
from lorakit.training.moments import SMALL, FlatMoments, PackedMoments, State, WideMoments
from lorakit.training.rates import EVERYTHING, FlatRates, Rates
from lorakit.training.spec import TrainSpec

_LLAMA_EXPONENT, _QWEN_EXPONENT = 0.781, 0.0775

# Parameters whose gradient is widened to float32 at once, 16 MB of it, so that a step on narrow
# parameters needs no second gradient beside the first.
_PART = 1 << 22


class FlatAdamW:
    """AdamW (arXiv 1711.05101) on parameters that share one buffer.

    A parameter that a model has in two places (tied embeddings) is laid down once. Of one with
    `trained_rows` only those rows are: the others get no moments, no decay and no step.

    Args:
        parameters: those that need no gradient are left out.
        spec: the decay rates, and how moments are held.
        wide: parameters whose moments keep 32 bits, where others have 8.
        rates: which elements are trained, and which parameters at a rate of their own.

    Attributes:
        flat: (n,) all parameters; each `Parameter` of the model is a view of a part of it.
        grad: (n,) all gradients, likewise.
        master: (n,) what the optimizer moves: float32 beside a `flat` of 16 bits, else `flat`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        spec: TrainSpec,
        *,
        wide: Collection[nn.Parameter] = (),
        rates: Rates = EVERYTHING,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ConfigError("the model has no trainable parameter: attach an adapter first")
        kinds = {(p.dtype, p.device) for p in self.parameters}
        if len(kinds) > 1:
            formats = " and ".join(
                sorted({str(p.dtype).removeprefix("torch.") for p in self.parameters})
            )
            raise ConfigError(
                f"what is trained is held as {formats}, and one optimizer moves one format: modules, biases "
                "and rows that are trained beside pairs need a base in float32 (--dtype float32)"
            )
        rows = {p: rows_of(p) for p in self.parameters}
        self._rows = {p: chosen for p, chosen in rows.items() if chosen is not None}
        kept = set(self.parameters)
        if spec.moments == "8bit":  # those that keep 32 bits lie first
            small = {p for p in self.parameters if math.prod(self._shape(p)) < SMALL}
            kept = small | self._rows.keys() | (kept & set(wide))
            self.parameters.sort(key=lambda parameter: parameter not in kept)
        first = self.parameters[0]
        count = sum(math.prod(self._shape(p)) for p in self.parameters)
        self.flat = torch.empty(count, dtype=first.dtype, device=first.device)
        self.grad = torch.zeros_like(self.flat)
        self._spans: dict[nn.Parameter, slice] = {}
        start = 0
        for parameter in self.parameters:
            part = slice(start, start + math.prod(self._shape(parameter)))
            if parameter in self._rows:
                self.flat[part].copy_(parameter.detach()[self._rows[parameter]].reshape(-1))
                parameter.grad = None
            else:
                self.flat[part].copy_(parameter.detach().reshape(-1))
                parameter.data = self.flat[part].view(parameter.shape)
                parameter.grad = self.grad[part].view(parameter.shape)
            self._spans[parameter] = part
            start = part.stop
        self.master = self.flat.float() if self.flat.element_size() == 2 else self.flat
        sizes = [p.numel() for p in self.parameters if p not in kept]
        self._moments: FlatMoments = WideMoments(self.master)
        if sizes:
            self._moments = PackedMoments(sizes, count - sum(sizes), self.master)
        self._step = torch.zeros((), device=first.device)
        self._spec = spec
        self._rates = FlatRates(rates, self._spans, self.flat)

    @torch.no_grad()
    def step(self, learning_rate: float, *, divide_by: float, clip: float) -> float:
        """Divide the summed gradient, clip it, move the parameters, clear the gradient.

        Args:
            learning_rate: of this step.
            divide_by: the step's count of supervised tokens.
            clip: largest L2 norm; 0 for none.

        Returns:
            The gradient's norm after the division and before clipping. Where it is not finite
            nothing has moved.
        """
        for parameter, rows in self._rows.items():
            if parameter.grad is not None:  # autograd's own is of all rows
                self.grad[self._spans[parameter]].copy_(parameter.grad[rows].reshape(-1))
                parameter.grad = None
        if self._rates.trained is not None:
            self.grad.mul_(self._rates.trained)
        # Part by part: vector_norm would widen the whole gradient at once.
        norms = [float(torch.linalg.vector_norm(grad)) for _, grad in self._wide_gradients()]
        norm = math.hypot(*norms) / divide_by
        if math.isfinite(norm):
            scale = 1.0 / divide_by
            if clip and norm > clip:
                # The guard against division by zero is torch's clip_grad_norm_'s.
                scale *= clip / (norm + 1e-6)
            steps = self._step.clone()
            for part, grad in self._wide_gradients():
                steps.copy_(self._step)  # the functional form counts each call as a step
                self._move(part, grad.mul_(scale), steps, learning_rate)
            self._step.copy_(steps)
            if self.master is not self.flat:
                self.flat.copy_(self.master)
            self._write_rows()
        self.grad.zero_()
        return norm

    def _shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Of what is trained of a parameter."""
        if parameter not in self._rows:
            return tuple(parameter.shape)
        return (len(self._rows[parameter]), *parameter.shape[1:])

    @torch.no_grad()
    def _write_rows(self) -> None:
        for parameter, rows in self._rows.items():
            part = self.flat[self._spans[parameter]]
            parameter[rows] = part.view(self._shape(parameter))

    @torch.no_grad()
    def take(self, flat: Tensor) -> None:
        """Let the model have these parameters, in the order of `flat`."""
        self.flat.copy_(flat)
        self._write_rows()

    def _wide_gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """The gradient part by part, each in the master copy's format; one buffer for all."""
        if self.master is self.flat:
            for part in self._moments.parts(None):
                yield part, self.grad[part]
            return
        buffer = self.master.new_empty(min(_PART, len(self.master)))
        for part in self._moments.parts(_PART):
            yield part, buffer[: part.stop - part.start].copy_(self.grad[part])

    def _move(self, part: slice, grad: Tensor, steps: Tensor, learning_rate: float) -> None:
        first, second = self._moments.read(part)
        values, trained, before = self.master[part], self._rates.trained, None
        if trained is not None and self._spec.weight_decay:
            before = values.clone()  # weight decay moves an element without a gradient too
        counts = []
        for factor, pieces in self._rates.of(part):
            counts = [steps.clone() for _ in pieces]
            adamw(
                [values[piece] for piece in pieces],
                [grad[piece] for piece in pieces],
                [first[piece] for piece in pieces],
                [second[piece] for piece in pieces],
                [],
                counts,
                fused=self.master.device.type in ("cpu", "cuda", "mps"),
                amsgrad=False,
                beta1=self._spec.beta1,
                beta2=self._spec.beta2,
                lr=factor * learning_rate,
                weight_decay=self._spec.weight_decay,
                eps=1e-8,
                maximize=False,
            )
        steps.copy_(counts[0])
        if trained is not None and before is not None:
            values.copy_(torch.where(trained[part], values, before))
        self._moments.write(part, (first, second))

    def master_of(self, parameter: nn.Parameter) -> Tensor:
        """What the optimizer moves of one parameter, in its shape: itself or its master copy."""
        return self.master[self._spans[parameter]].view(self._shape(parameter))

    @property
    def steps(self) -> int:
        """Steps that the moments remember, those before this run included."""
        return int(self._step)

    @torch.no_grad()
    def take_moments(self, steps: int, of: Mapping[nn.Parameter, tuple[Tensor, Tensor]]) -> None:
        """Go on from the moments of another run; a parameter that is not named keeps zeros.

        Args:
            steps: that they were gathered in.
            of: both moments, in the parameter's shape.
        """
        self._step.fill_(steps)
        for parameter, (first, second) in of.items():
            moments = first.to(self.master).reshape(-1), second.to(self.master).reshape(-1)
            self._moments.write(self._spans[parameter], moments)

    def narrow_moments(self) -> State:
        """A copy of both moments as they are now, on the CPU in at most 16 bits."""
        return self._moments.narrow()

    def by_parameter(self, narrow: State) -> dict[nn.Parameter, tuple[Tensor, Tensor]]:
        """Such a copy, cut into the parameters' own moments in bfloat16."""
        found = {}
        for parameter, part in self._spans.items():
            (first, second), shape = self._moments.cut(part, narrow), self._shape(parameter)
            found[parameter] = first.view(shape), second.view(shape)
        return found

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on: parameters, both moments, the step count."""
        return {"flat": self.master, **self._moments.state(), "step": self._step}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state()` gave, to the bit."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        if self.master is not self.flat:
            self.flat.copy_(self.master)
        self._write_rows()

    @property
    def state_bytes(self) -> int:
        """Bytes of both moments, and of the master copy where there is one."""
        copy = 0 if self.master is self.flat else self.master.numel() * self.master.element_size()
        return copy + self._moments.bytes


def rows_of(parameter: nn.Parameter) -> Tensor | None:
    """Which rows of a parameter are trained; None where all of it is."""
    rows = getattr(parameter, "trained_rows", None)
    return rows.to(parameter.device) if isinstance(rows, Tensor) else None


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
