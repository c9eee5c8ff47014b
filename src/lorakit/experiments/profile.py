"""The profile of an experiment: rows, base and FLOPs, found out by its first trial."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorakit.data import TokenTable
from lorakit.experiments.opening import TrialContext, base_hash
from lorakit.experiments.rates import RateRule
from lorakit.forecast import ModelShape, flops_per_token, reached_share, shape_of
from lorakit.lora import LoraSpec, plan
from lorakit.models.dimensions import hidden_width
from lorakit.run.estimating import estimate_run
from lorakit.run.machine import machine, versions
from lorakit.training import TrainSpec


@dataclass(frozen=True)
class Profile:
    """What there is before anything is trained.

    Attributes:
        data_sha256, base_sha256: hashes of rows and base.
        identity: the base's fingerprint.
        dtype: number format of its weights.
        rows: training rows.
        eval_rows: held-out rows.
        tokens_per_step: mean real tokens of an optimizer step.
        eval_tokens: real tokens of the held-out rows.
        mean_length, eval_mean_length: mean length of a sequence weighted by token, Σ s² / Σ s.
        supervised_share, eval_supervised_share: supervised tokens over real tokens.
        shape: of the base.
        rate_rule: the learning rates that the rule of `lorakit train` gives.
        template: how prompts are put to the model.
        notes: what was reported of the rows.
        versions, machine: software and hardware.
        reached: of the parameters of the configuration's pairs the share that a token reaches.
    """

    data_sha256: str
    base_sha256: str
    identity: Mapping[str, Any]
    dtype: str
    rows: int
    eval_rows: int
    tokens_per_step: float
    eval_tokens: int
    mean_length: float
    eval_mean_length: float
    supervised_share: float
    eval_supervised_share: float
    shape: ModelShape
    rate_rule: RateRule
    template: Mapping[str, Any]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    reached: float = 1.0

    def training_flops(self, trainable: int, tokens: float) -> float:
        """FLOPs of training on so many tokens with so many parameters of an adapter."""
        computing = round(trainable * self.reached)
        each = flops_per_token(self.shape, computing, self.mean_length, self.supervised_share)
        return tokens * each

    def evaluation_flops(self, trainable: int, tokens: float) -> float:
        """FLOPs of measuring so many held-out tokens: 2 N + 2 P r + 2 s d L + 2 H c each."""
        shape = self.shape
        attention = 2 * self.eval_mean_length * shape.width * shape.layers
        head = 2 * shape.head_parameters * self.eval_supervised_share
        pairs = 2 * round(trainable * self.reached)
        return tokens * (2 * shape.block_parameters + pairs + attention + head)


@dataclass(frozen=True)
class StepEstimate:
    """What a training step is expected to take.

    Attributes:
        trainable_parameters: that are trained.
        seconds_per_step, peak_memory_bytes: time and memory.
        recompute: activation checkpointing, 'auto' resolved.
        note: what the user should know of that; empty for nothing.
    """

    trainable_parameters: int
    seconds_per_step: float
    peak_memory_bytes: int
    recompute: bool
    note: str


def profile_of(context: TrialContext, train: TokenTable) -> Profile:
    """The profile of an opened trial.

    Args:
        context: base and rows.
        train: rows that are trained on.
    """
    session, held, config = context.session, context.data.eval, context.config.train
    text = session.model.config.get_text_config()
    return Profile(
        data_sha256=context.data.data_sha256,
        base_sha256=base_hash(session),
        identity=session.identity.to_dict(),
        dtype=str(session.model.dtype).removeprefix("torch."),
        rows=len(train),
        eval_rows=len(held),
        tokens_per_step=min(config.batch_size, len(train)) * float(train.lengths.mean()),
        eval_tokens=held.tokens,
        mean_length=_mean_length(train),
        eval_mean_length=_mean_length(held),
        supervised_share=train.loss_tokens / train.tokens,
        eval_supervised_share=held.loss_tokens / held.tokens,
        shape=shape_of(session.model),
        rate_rule=RateRule(hidden_width(session.model), text.model_type),
        template=session.template.to_dict(),
        notes=tuple(context.data.notes),
        versions=versions(),
        machine=machine(session.model.device, session.model),
        reached=reached_in(session.model, context.config.lora),
    )


def reached_in(model: Any, spec: LoraSpec) -> float:
    """See `reached_share`; the same at every rank that fits."""
    return reached_share(model, plan(model, replace(spec, rank=1, rank_pattern={})).targets)


def estimate_step(
    model: Any,
    train: TokenTable,
    config: TrainSpec,
    trainable: int,
    *,
    full: bool = False,
    concurrent: int = 1,
    reached: float = 1.0,
    frozen_bytes: int | None = None,
) -> StepEstimate:
    """Estimate a step of one job, or of several concurrent jobs on one base.

    Args:
        model: the base.
        train: rows that are trained on.
        config: the schedule.
        trainable: parameters that are trained, of all jobs.
        full: every parameter of the base is trained.
        concurrent: jobs that share a pass; the time is that of one of them, the memory of all.
        reached: as in `Profile`.
        frozen_bytes: of the base, where it will be held in another way than this one.
    """
    wide = replace(config, batch_size=config.batch_size * concurrent)
    estimate = estimate_run(
        *(model, train, wide),
        steps=1,
        trainable=trainable,
        full=full,
        reached=reached,
        frozen_bytes=frozen_bytes,
    )
    return StepEstimate(
        trainable,
        estimate.forecast.seconds / concurrent,
        estimate.forecast.peak_memory_bytes,
        estimate.recompute,
        estimate.note,
    )


def _mean_length(table: TokenTable) -> float:
    lengths = table.lengths.astype(float)
    return float((lengths**2).sum() / table.lengths.sum())
