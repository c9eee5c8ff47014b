"""Several runs at once on one frozen base: one pass for the rows of all of them.

    jobs = Jobs(model, plans, seeds)
    loss = JointLoss(jobs)
    courses = [Course(jobs.parameters(j), …, guard=guard_of(jobs, j)) for j in …]
    results = fit_jobs(jobs, courses, loss=loss, batch_tokens=4096)

A step of every job that is not over is taken in one round. The micro-batches of a job are those
that it would have alone; batches of different jobs are packed into one pass while they fit. Gradients
of a job come from its own rows and are divided by its own count, so that concurrent jobs change
nothing but the rounding of products with more rows. A job that is over, has diverged or was stopped
early leaves, and the others go on.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.batches import Batch, join
from lorakit.errors import ConfigError, DivergedError, InterruptedRunError, ModelError
from lorakit.execution.family import linear_of
from lorakit.execution.modes import dropping
from lorakit.execution.runnable import Runnable
from lorakit.execution.trial import random_ids
from lorakit.kernels.groups import Linear
from lorakit.kernels.token_loss import PLAIN, TokenLoss
from lorakit.lora.jobs import Jobs, JointLinear
from lorakit.training.course import Course, MakeGuard
from lorakit.training.guard import FirstStepGuard
from lorakit.training.loss import CausalLoss, head_loss, logits_loss
from lorakit.training.schedule import FitResult


def check_can_share(model: Any) -> None:
    """See that runs on this base can share a pass.

    Raises:
        ModelError: its sequences cannot be packed, or it draws random numbers by itself in training
            (dropout, a router that samples): then one of several jobs would not be the job alone.
    """
    name = type(model).__name__
    runnable = Runnable(model)
    if not runnable.packs or runnable.by_sequence:
        raise ModelError(
            f"the sequences of {name} cannot be packed, so jobs cannot share a pass: "
            "train them one by one"
        )
    dropping = [path for path, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if dropping:
        raise ModelError(
            f"{name} drops activations of its own in training ({dropping[0]}), and jobs that share "
            "a pass would share what is dropped: train them one by one"
        )
    if _draws(model):
        raise ModelError(
            f"{name} draws random numbers of its own in training (a router that samples or jitters), "
            "and jobs that share a pass would share them: train them one by one"
        )


@torch.no_grad()
def _draws(model: Any) -> bool:
    """Whether a forward pass in training mode uses the random generator."""
    device = model.device
    cuda = device.type == "cuda"
    before = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
    with dropping(model):
        model(input_ids=random_ids(model, 1, 5), use_cache=False)
    after = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
    if torch.equal(before, after):
        return False
    torch.cuda.set_rng_state(before, device) if cuda else torch.set_rng_state(before)
    return True


class JointLoss:
    """The summed nats of batches of several jobs, from one pass.

    Args:
        jobs: whose joint layers stand in the model.
        recompute: activation checkpointing while they train.
        kinds: of each job the form of a token's loss in training; plain nats without.

    Raises:
        ModelError: see `check_can_share`.
    """

    def __init__(
        self, jobs: Jobs, *, recompute: bool = False, kinds: Sequence[TokenLoss] = ()
    ) -> None:
        check_can_share(jobs.model)
        self.jobs, self.recompute = jobs, recompute
        self.kinds = tuple(kinds) or (PLAIN,) * len(jobs)
        self.runnable = Runnable(jobs.model)
        self._alone = CausalLoss(self.runnable, recompute=recompute)

    def __call__(self, part: Sequence[tuple[int, Batch]]) -> tuple[Tensor, ...]:
        """Of each batch its nats; part: the jobs and their batches, at most one of each job."""
        self.jobs.assign(spans(part))
        batches = [batch for _, batch in part]
        whole = join(batches)
        self.runnable.prepare(max(whole.lengths_S))
        if self.runnable.head is None:
            logits_LV = self.runnable.logits(
                whole, whole.predict_L, training=True, recompute=self.recompute
            )
            parts = logits_LV.split([batch.token_count for batch in batches])
            return tuple(
                logits_loss(logits, batch, self.kinds[job], training=True)
                for logits, (job, batch) in zip(parts, part, strict=True)
            )
        hidden_TD = self.runnable.hidden(whole, training=True, recompute=self.recompute)
        nlls, start = [], 0
        for job, batch in part:
            hidden_LD = hidden_TD.index_select(0, batch.predict_L + start)
            nlls.append(
                head_loss(
                    self._head(job), hidden_LD, batch.labels_L, self.kinds[job], batch.factor_L
                )
            )
            start += batch.tokens
        return tuple(nlls)

    def _head(self, job: int) -> Linear:
        """The head as a job has it, with its own pair."""
        head = self.runnable.model.get_output_embeddings()
        return head.linear_of(job) if isinstance(head, JointLinear) else linear_of(head)

    def of_job(self, job: int) -> Callable[..., tuple[Tensor, float]]:
        """The loss of batches whose rows are all of one job, as `CausalLoss` gives it."""

        def alone(batch: Batch, *, training: bool = False) -> tuple[Tensor, float]:
            self.jobs.assign_all(job)
            return self._alone(batch, training=training)

        return alone


def guard_of(jobs: Jobs, job: int) -> MakeGuard:
    """What looks at a job's pairs and the base around its first step."""
    return partial(FirstStepGuard, jobs.model, layers=jobs.layers[job])


@dataclass
class _Step:
    """What a job's step has come to so far."""

    batches: Sequence[Batch]
    nll: float = 0.0
    seconds: float = 0.0


def fit_jobs(
    jobs: Jobs,
    courses: Sequence[Course],
    *,
    loss: JointLoss,
    batch_tokens: int,
    ended: Callable[[int, FitResult | DivergedError], None] = lambda job, how: None,
) -> tuple[FitResult | DivergedError, ...]:
    """Train all jobs and leave in each the parameters that its spec keeps.

    Args:
        jobs: the pairs.
        courses: of each job, in their order, on its own parameters.
        loss: of these jobs.
        batch_tokens: most tokens of a pass; a micro-batch above it has a pass of its own, and so has
            every one where jobs have pairs on experts.
        ended: told of each job as it leaves.

    Returns:
        Of each job its result, or why it diverged.

    Raises:
        InterruptedRunError: `should_stop` of a course said so; each that was asked has saved.
        ConfigError: not as many courses as jobs.
    """
    batch_tokens = 0 if jobs.apart else batch_tokens
    if len(courses) != len(jobs):
        raise ConfigError(f"{len(jobs)} jobs need as many courses, not {len(courses)}")
    done: dict[int, FitResult | DivergedError] = {}

    def leave(job: int, how: FitResult | DivergedError) -> None:
        done[job] = how
        ended(job, how)

    for course in courses:
        course.begin()
    while len(done) < len(courses):
        for job, course in enumerate(courses):
            if job not in done and course.over:
                leave(job, course.finish())
        steps = {j: _Step(c.batches()) for j, c in enumerate(courses) if j not in done}
        for job in steps:
            jobs.seed(job, courses[job].seed)
        for part in passes({j: s.batches for j, s in steps.items()}, batch_tokens):
            started = time.perf_counter()
            nlls = loss(part)
            sum(nlls[1:], nlls[0]).backward()
            seconds = time.perf_counter() - started
            tokens = sum(batch.tokens for _, batch in part)
            for (job, batch), nll in zip(part, nlls, strict=True):
                steps[job].nll += float(nll.detach())
                steps[job].seconds += seconds * batch.tokens / tokens
        interrupted = None
        for job, step in steps.items():
            count = sum(batch.divisor for batch in step.batches)
            try:
                courses[job].advance(step.nll, count, step.batches, step.seconds)
            except DivergedError as error:
                leave(job, error)
            except InterruptedRunError as error:
                interrupted = interrupted or error  # once every job has its checkpoint
        if interrupted:
            raise interrupted
    return tuple(done[job] for job in range(len(courses)))


def passes(batches: dict[int, Sequence[Batch]], batch_tokens: int) -> list[list[tuple[int, Batch]]]:
    """The passes of one round: every batch once, in each pass at most one of a job.

    Args:
        batches: of each job, in the order in which it would take them alone.
        batch_tokens: most tokens of a pass that holds more than one batch.
    """
    found: list[list[tuple[int, Batch]]] = []
    waiting = {job: list(each) for job, each in batches.items() if each}
    while waiting:
        current: list[tuple[int, Batch]] = []
        used = 0
        for job in list(waiting):
            batch = waiting[job][0]
            if current and used + batch.tokens > batch_tokens:
                continue
            current.append((job, batch))
            used += batch.tokens
            waiting[job].pop(0)
            if not waiting[job]:
                del waiting[job]
        found.append(current)
    return found


def spans(part: Sequence[tuple[int, Batch]]) -> list[tuple[int, int, int]]:
    """Whose rows are whose in a pass that holds these batches one after the other."""
    found, start = [], 0
    for job, batch in part:
        found.append((job, start, start + batch.tokens))
        start += batch.tokens
    return found
