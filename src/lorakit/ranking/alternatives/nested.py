"""One run in which every prefix of a pair is trained.

The pair of the highest rank is A (R, in), B (out, R); its prefix of rank k is A[:k] and B[:, :k],
scaled by alpha/k, as a pair of rank k is. The rows of every step are dealt out among the prefixes,
so that a step costs what a step of one run does, and every prefix has its share of every step:
DyLoRA (arXiv 2210.07558) draws one prefix a step, Matryoshka learning (arXiv 2205.13147) sums the
losses of all prefixes on all rows. Prefixes are jobs that share the highest rank's parameters.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from lorakit.data import Batch, TokenTable, micro_batches
from lorakit.lora.jobs import Jobs
from lorakit.run.fitting import Report, batch_rows
from lorakit.training import Course, FitResult, JointLoss, Observers, Schedule, TrainSpec, guard_of
from lorakit.training.joint import passes
from lorakit.training.loss import token_loss
from lorakit.training.moments import of_embeddings
from lorakit.training.rates import rates_of


def dealt(rows: Sequence[int], step: int, prefixes: int) -> dict[int, list[int]]:
    """The rows of a step by prefix: in turn, beginning with another prefix each step.

    >>> dealt([7, 8, 9], 1, 2)
    {1: [7, 9], 0: [8]}
    """
    dealt_rows: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        dealt_rows.setdefault((i + step) % prefixes, []).append(row)
    return dealt_rows


@torch.no_grad()
def tie(jobs: Jobs) -> None:
    """Let every job but the last have its A, and its gradient, in the last one's; B by copies.

    The last has the highest rank, and its optimizer is there already. The first columns of a matrix
    do not lie together, and autograd wants to add to what does.
    """
    whole = jobs.layers[-1]
    for layers in jobs.layers[:-1]:
        for path, layer in layers.items():
            top = whole[path]
            assert top.A.grad is not None
            layer.A.data, layer.A.grad = top.A.data[: layer.rank], top.A.grad[: layer.rank]
    spread(jobs)


@torch.no_grad()
def spread(jobs: Jobs) -> None:
    """Copy the last job's B to the prefixes."""
    for layers in jobs.layers[:-1]:
        for path, layer in layers.items():
            layer.B.copy_(jobs.layers[-1][path].B[:, : layer.rank])


@torch.no_grad()
def gather(jobs: Jobs) -> None:
    """Add the prefixes' gradients of B to the last job's, and clear them."""
    for layers in jobs.layers[:-1]:
        for path, layer in layers.items():
            if layer.B.grad is not None:
                whole = jobs.layers[-1][path].B.grad
                assert whole is not None
                whole[:, : layer.rank] += layer.B.grad
                layer.B.grad = None


def fit_nested(
    jobs: Jobs,
    train: TokenTable,
    spec: TrainSpec,
    *,
    steps: int,
    learning_rate: float,
    recompute: bool = False,
    report: Report = lambda event: None,
) -> FitResult:
    """Train all prefixes in one run.

    Args:
        jobs: one a rank, rising, all of one shape but for the rank.
        train: rows.
        spec: the schedule; what it says of held-out rows is not read.
        steps: of the run.
        learning_rate: the peak.
        recompute: activation checkpointing.
        report: told of the steps.
    """
    model: Any = jobs.model
    jobs.install_all()
    kinds = [token_loss(spec)] * len(jobs)
    loss, top = JointLoss(jobs, recompute=recompute, kinds=kinds), len(jobs) - 1
    rows_of = batch_rows(len(train), spec.batch_size, steps, spec.seed)
    course = Course(
        jobs.parameters(top),
        lambda step: [],
        Schedule(steps, learning_rate, spec),
        Observers(report=report),
        guard=guard_of(jobs, top),
        wide=of_embeddings(jobs.layers[top].values()),
        rates=rates_of(jobs.layers[top].values(), spec),
    )
    try:
        course.begin()
        tie(jobs)
        while not course.over:
            started = time.perf_counter()
            for job in range(len(jobs)):
                jobs.seed(job, course.seed)
            batches = _batches(train, rows_of(course.step), course.step, len(jobs), spec, model)
            nll = 0.0
            for part in passes(batches, spec.batch_tokens):
                nlls = loss(part)
                sum(nlls[1:], nlls[0]).backward()
                nll += sum(float(each.detach()) for each in nlls)
            seen = [batch for each in batches.values() for batch in each]
            count = sum(batch.divisor for batch in seen)
            gather(jobs)
            course.advance(nll, count, seen, time.perf_counter() - started)
            spread(jobs)
        result = course.finish()
        spread(jobs)
        return result
    finally:
        loss.runnable.rest()


def _batches(
    train: TokenTable, rows: Sequence[int], step: int, prefixes: int, spec: TrainSpec, model: Any
) -> dict[int, Sequence[Batch]]:
    return {
        prefix: [b.to(model.device) for b in micro_batches(train, own, spec.batch_tokens)]
        for prefix, own in dealt(rows, step, prefixes).items()
    }
