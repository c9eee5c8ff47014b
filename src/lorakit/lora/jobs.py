"""Several adapters trained beside one frozen base, each on rows of its own.

    y[rows of job j] = W x + b + s_j · B_j (A_j x)        x: the packed rows of all jobs

W x is one product for all rows; each job's pair works on its own. A job's layers are ordinary
`LoraLayer`s over the same base modules, so that one of them alone beside the base is the adapter
that it would be anywhere else:

    jobs = Jobs(model, plans, seeds)   # joint layers stand in the model, and stay
    jobs.assign([(0, 0, 40), (1, 40, 96)])
    ...                                # a pass over 96 rows of two jobs
    jobs.assign_all(0)
    ...                                # passes whose rows are all of the first job
    jobs.install(0)                    # the model has the first job's pairs, as after `attach`

Pairs on experts are for passes of one job: the model's own code routes the rows, and multiplies by one
weight (`apart`).

This is for training, where every job brings many rows. What serves many adapters at once, a row
each, is another thing.

Longer than 300 lines: the joint layers read whose rows a pass has from their jobs, and nothing else does.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import TargetError
from lorakit.kernels.block import linear
from lorakit.kernels.groups import Linear
from lorakit.lora.attaching import base_module, lora_layers, make_layer
from lorakit.lora.embedding import LoraEmbedding
from lorakit.lora.experts import LoraExperts, put_bare, put_experts
from lorakit.lora.initialising import begin
from lorakit.lora.layers import LoraLayer, LoraLinear
from lorakit.lora.planning import Plan
from lorakit.lora.variant import Capability, require_capability

Span = tuple[int, int, int]
"""A job, and first and one past the last of its rows in a pass."""


class Jobs:
    """The pairs of several jobs on one model, whose adapted modules become joint layers.

    Args:
        model: frozen from now on; nothing of it is copied.
        plans: of each job, made for this model.
        seeds: of each job's initialisation of A.

    Attributes:
        layers: of each job, by path.

    Raises:
        TargetError: the model has pairs already, a plan adapts a convolution, or its variant
            cannot be trained beside others.
    """

    def __init__(self, model: nn.Module, plans: Sequence[Plan], seeds: Sequence[int]) -> None:
        if lora_layers(model):
            raise TargetError("this model has an adapter attached already: detach it first")
        if whole := [each for plan in plans for each in plan.whole]:
            raise TargetError(
                f"{whole[0].names[0]} is to be trained beside the pairs, and several adapters on one base "
                "share every weight of it: train it alone"
            )
        model.requires_grad_(False)
        self.model = model
        self.spans: tuple[Span, ...] = ()
        self.only: int | None = None
        self.layers = tuple(_layers(model, p, s) for p, s in zip(plans, seeds, strict=True))
        self._draws: dict[int, Tensor] = {}
        order = {path: number for number, (path, _) in enumerate(model.named_modules())}
        used = {path for layers in self.layers for path in layers}
        by_order = sorted(used, key=lambda p: order[p if p in order else p.rpartition(".")[0]])
        self._joint: dict[str, Any] = {
            path: _joint(
                {job: layers[path] for job, layers in enumerate(self.layers) if path in layers},
                self,
            )
            for path in by_order
        }
        self.install_all()

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def apart(self) -> bool:
        """Whether the rows of each job must be a pass of their own."""
        return any(isinstance(joint, JointExperts) for joint in self._joint.values())

    def parameters(self, job: int) -> list[nn.Parameter]:
        """A, B and what else every layer of a job keeps."""
        return [p for layer in self.layers[job].values() for p in layer.tensors.values()]

    def install_all(self) -> None:
        """Put the joint layers into the model: every adapted module works for all jobs."""
        self._install(self._joint)

    def install(self, job: int) -> None:
        """Put this job's layers into the model and no other's, as `attach` leaves it."""
        self._install(self.layers[job])

    def remove(self) -> None:
        """Put the base modules back where they were; their bytes were never changed."""
        self._install({})

    def assign(self, spans: Sequence[Span]) -> None:
        """Say whose rows are whose in the passes to come; rows of nobody are the base's alone.

        Raises:
            ValueError: two spans overlap, or name one job.
        """
        ordered = sorted(spans, key=lambda span: span[1])
        ends = [0, *(last for _, _, last in ordered)]
        if any(first < end for (_, first, _), end in zip(ordered, ends, strict=False)):
            raise ValueError(f"rows belong to two jobs: {list(spans)}")
        if len({job for job, _, _ in spans}) < len(spans):
            raise ValueError(f"a job has two spans of rows: {list(spans)}")
        self.spans, self.only = tuple(spans), None

    def assign_all(self, job: int) -> None:
        """All rows of the passes to come are this job's, however many they are."""
        self.spans, self.only = (), job

    def seed(self, job: int, seed: int) -> None:
        """Begin a job's own stream of dropout: that of `torch.manual_seed(seed)`."""
        kept = _random_state(self.model)
        torch.manual_seed(seed)
        self._draws[job] = _random_state(self.model)
        _set_random_state(self.model, kept)

    @contextlib.contextmanager
    def drawing(self, job: int) -> Iterator[None]:
        """Within the block random numbers come from the job's own stream."""
        kept = _random_state(self.model)
        _set_random_state(self.model, self._draws.get(job, kept))
        yield
        self._draws[job] = _random_state(self.model)
        _set_random_state(self.model, kept)

    def _install(self, modules: Mapping[str, nn.Module]) -> None:
        for path, joint in self._joint.items():
            module = modules.get(path, joint.base)
            if not isinstance(joint, JointExperts):
                self.model.set_submodule(path, module.train(self.model.training))
            elif module is joint.base:
                put_bare(self.model, path, joint.base)
            else:
                put_experts(self.model, path, module)


class JointLinear(nn.Module):
    """One frozen linear layer, and a pair for the rows of each job.

    Attributes:
        base: the module that was there before.
        layers: the jobs' own layers over the same base, by job.
    """

    def __init__(self, base: nn.Module, layers: Mapping[int, LoraLinear], jobs: Jobs) -> None:
        super().__init__()
        self.base = base
        # Not modules of this one: A and B belong to a job, not to the model.
        self.__dict__["layers"] = dict(layers)
        self.__dict__["jobs"] = jobs
        self.geometry = next(iter(layers.values())).geometry
        self.dropout = max(layer.dropout for layer in layers.values())

    layers: dict[int, LoraLinear]
    jobs: Jobs

    def train(self, mode: bool = True) -> "JointLinear":
        """The jobs' layers follow."""
        super().train(mode)
        for layer in self.layers.values():
            layer.train(mode)
        return self

    @property
    def weight(self) -> Tensor:
        """The base's own frozen weight."""
        return self.geometry.weight(self.base)

    @property
    def bias(self) -> Tensor | None:
        """The base's own frozen bias, or None."""
        return self.geometry.bias(self.base)

    @property
    def fits(self) -> bool:
        """Whether the fused blocks may compute it; see `LoraLinear.fits`."""
        return self.geometry.plain and not self.geometry.transposed and not self.dropout

    def linear(self) -> Linear:
        """The tensors of this layer with the pairs of the jobs that have rows."""
        if self.jobs.only is not None:
            return self.linear_of(self.jobs.only)
        weight = self.geometry.frozen(self.base)
        pairs = tuple(
            self.layers[job].pair((first, last))
            for job, first, last in self.jobs.spans
            if job in self.layers and last > first
        )
        return Linear(weight, self.bias, pairs)

    def linear_of(self, job: int) -> Linear:
        """The tensors of this layer with the pair of one job, for rows that are all its own."""
        weight = self.geometry.frozen(self.base)
        alone = self.layers.get(job)
        return Linear(weight, self.bias, () if alone is None else (alone.pair(),))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        if self.geometry.plain and not (self.training and self.dropout > 0.0):
            return linear(x, self.linear())
        rows = x.reshape(-1, x.shape[-1])
        y = _added(self.base(rows), rows, self.layers, self.jobs)
        return y.view(*x.shape[:-1], y.shape[-1])


class JointEmbedding(nn.Module):
    """One frozen embedding, and a pair for the rows of each job.

    Attributes:
        base: the embedding that was there before.
        layers: the jobs' own layers over it, by job.
    """

    def __init__(self, base: nn.Module, layers: Mapping[int, LoraEmbedding], jobs: Jobs) -> None:
        super().__init__()
        self.base = base
        self.__dict__["layers"] = dict(layers)
        self.__dict__["jobs"] = jobs

    layers: dict[int, LoraEmbedding]
    jobs: Jobs

    @property
    def weight(self) -> Any:
        """The base's own frozen weight."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(…) ids -> (…, dim)."""
        rows = ids.reshape(-1)
        y = _added(self.base(rows), rows, self.layers, self.jobs)
        return y.view(*ids.shape, y.shape[-1])


class JointExperts(nn.Module):
    """A frozen parameter of experts, with the pairs of the job whose rows a pass has.

    Attributes:
        base: the parameter, as a module.
        layers: the jobs' own pairs, by job.
    """

    def __init__(self, layers: Mapping[int, LoraExperts], jobs: Jobs) -> None:
        super().__init__()
        self.base = next(iter(layers.values())).base
        self.__dict__["layers"] = dict(layers)
        self.__dict__["jobs"] = jobs

    layers: dict[int, LoraExperts]
    jobs: Jobs

    def forward(self) -> Tensor:
        """The weight with the pairs of the one job that has rows; the weight alone where none has.

        Raises:
            ValueError: a pass has rows of several jobs.
        """
        job = self.jobs.only
        if job is None:
            having = [job for job, first, last in self.jobs.spans if last > first]
            if len(having) > 1:
                raise ValueError(f"rows of the jobs {having} come to one weight of experts")
            job = having[0] if having else None
        layer = None if job is None else self.layers.get(job)
        return self.base.weight if layer is None else layer()


def _added(y_TO: Tensor, rows: Tensor, layers: Mapping[int, Any], jobs: Jobs) -> Tensor:
    """y and, on each job's rows, its own low-rank path."""
    low_TO = torch.zeros_like(y_TO)
    spans = jobs.spans if jobs.only is None else ((jobs.only, 0, len(rows)),)
    for job, first, last in spans:
        if job in layers:
            with jobs.drawing(job):
                low_TO[first:last] = layers[job].low_rank(rows[first:last])
    return y_TO + low_TO


def _layers(model: nn.Module, plan: Plan, seed: int) -> dict[str, LoraLayer]:
    """What `attach` would put into the model, from the same seed."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, LoraLayer] = {}
    if plan.spec.initialisation.rows:
        raise TargetError(
            f"init {plan.spec.init} begins from the training rows of one run: train the jobs one by one, or "
            "take another init"
        )
    for target in plan.targets:
        for capability in (Capability.JOBS, Capability.KERNELS):
            instead = "train the jobs one by one"
            require_capability(target.variant, capability, target.path, instead, error=TargetError)
        base = base_module(model, target)
        layer = make_layer(base, target, plan.spec.held).train(base.training)
        if not isinstance(layer, LoraLinear | LoraEmbedding | LoraExperts):
            raise TargetError(
                f"{target.path} is a convolution, which cannot be trained for several jobs at "
                "once: exclude it, or train the jobs one by one"
            )
        begin(layer, plan.spec, generator)
        made[target.path] = layer
    return made


def _joint(layers: Mapping[int, Any], jobs: Jobs) -> Any:
    first = next(iter(layers.values()))
    if isinstance(first, LoraExperts):
        return JointExperts(layers, jobs)
    kind = JointEmbedding if isinstance(first, LoraEmbedding) else JointLinear
    return kind(first.base, layers, jobs)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _random_state(model: nn.Module) -> Tensor:
    device = _device(model)
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(model: nn.Module, state: Tensor) -> None:
    device = _device(model)
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
