"""The learning rate of a run that goes on from trained pairs, found by a short probe from their state.

The rule for a fresh run is far too high for pairs that are good already: AdamW moves every element
by about the rate in each of its first steps, and an adapter of a loss of .03 is at .2 after three
of them. For pairs that have much to learn it can be too low, because the moments remember the large
gradients of their first steps. So the probe tries a rate below the rule's and the rule's, each from
the same pairs and the same moments, for a few steps of the run's own rows and by a whole schedule
of that length; then it walks on, up or down, for as long as the loss falls on rows that are not
trained on. `chosen` says which rate that makes.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorakit.data import Batch, TokenTable
from lorakit.data.rehearsal import Rehearsal
from lorakit.errors import DivergedError
from lorakit.run.fitting import Report, fit_model
from lorakit.tasks import Task
from lorakit.training import Moments, Observers, Schedule, TrainSpec, held_out_loss

FACTORS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""The rates that may be tried, as multiples of the rule's."""
FIRST = FACTORS.index(0.3)
UNMEASURED = 0.1
"""Where no row is left to judge by: a rate that ruined no adapter in benchmarks/go_on.py."""
MOST_JUDGED = 64
"""Rows of each table that a probe is judged by; more would cost more than its steps."""


@dataclass(frozen=True)
class ProbedRate:
    """What a probe found.

    Attributes:
        learning_rate: the peak rate to go on with.
        steps: of each try; 0 where there were no rows to judge by.
        before: loss on the judged rows before any step; None likewise.
        losses: on the same rows after the steps, by rate; None is a rate that diverged.
        rows: that judged.
    """

    learning_rate: float
    steps: int
    before: float | None
    losses: Mapping[float, float | None]
    rows: int

    @property
    def note(self) -> str:
        """A sentence for the user."""
        rate = f"{self.learning_rate:g}"
        if not self.steps:
            return (
                f"learning rate {rate}, a tenth of a fresh run's: no rows are held out that a probe "
                "could judge by (--eval-share, --eval-data)"
            )
        tried = ", ".join(
            f"{rate:g}: {'diverged' if loss is None else f'{loss:.4f}'}"
            for rate, loss in self.losses.items()
        )
        return (
            f"learning rate {rate} by a probe of {self.steps} steps from the adapter's state: "
            f"held-out loss {self.before:.4f} before, then {tried}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As result.json has it."""
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "loss_before": self.before,
            "losses": [[rate, loss] for rate, loss in self.losses.items()],
            "rows": self.rows,
        }


def read_probe(file: Path, run: str) -> ProbedRate | None:
    """What the probe of an interrupted run found; None where it was another run, or none ended."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["run"] != run:
            return None
        losses = {float(rate): loss for rate, loss in content["losses"]}
        return ProbedRate(
            content["learning_rate"],
            content["steps"],
            content["loss_before"],
            losses,
            content["rows"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def probe_steps(steps: int) -> tuple[int, int]:
    """Steps of each try, and of each where no shorter one was better than what was there before.

    >>> [probe_steps(steps) for steps in (2, 14, 40, 640)]
    [(2, 2), (4, 14), (4, 16), (40, 160)]
    """
    return max(min(steps, 4), -(-steps // 16)), max(min(steps, 16), -(-steps // 4))


def walk(tried: Callable[[int], float], before: float) -> float:
    """The lowest loss of a walk over `FACTORS`: from the first two, on as long as it falls.

    Downwards it ends early where no try is better than what was there before: ever lower rates
    come ever nearer to it, and tell nothing.

    >>> tries = []
    >>> walk(lambda at: tries.append(FACTORS[at]) or abs(FACTORS[at] - 3), before=9.0)
    0.0
    >>> tries
    [0.3, 1.0, 3.0, 10.0]
    """
    best, above = tried(FIRST), tried(FIRST - 1)
    way = range(FIRST - 2, -1, -1) if above < best else range(FIRST + 1, len(FACTORS))
    best = min(best, above)
    for at in way:
        found = tried(at)
        if found >= best:
            break
        best = found
        if at > FIRST and best >= before:
            break
    return best


def chosen(losses: Mapping[float, float], before: float, *, whole: bool) -> float:
    """The rate to take, by the losses of the tries.

    Tries that are shorter than the run flatter low rates (arXiv 1803.02021): of them the highest
    rate is taken that has at least half of the largest gain. Between two tries that is a rate that
    was not tried, on a line through their losses over the logarithm of the rate.

    Args:
        losses: by rate.
        before: on the same rows before any step.
        whole: the tries are as long as the run, so that the lowest loss decides.

    >>> losses = {6e-4: 0.35, 2e-3: 0.33, 6e-3: 0.65, 2e-4: 0.41}
    >>> chosen(losses, 0.46, whole=False), chosen(losses, 0.46, whole=True)
    (0.0025, 0.002)
    """
    best = min(losses, key=lambda rate: (losses[rate], rate))
    gain = before - losses[best]
    if whole or gain <= 0:
        return best
    bar = before - gain / 2
    rate = max(rate for rate, loss in losses.items() if loss <= bar)
    above = min((other for other in losses if other > rate), default=None)
    if above is None:
        return rate
    part = (bar - losses[rate]) / (losses[above] - losses[rate])
    return float(f"{rate * (above / rate) ** part:.2g}")


def probe_rate(
    model: Any,
    train: TokenTable,
    judged: Sequence[TokenTable],
    rule: float,
    steps: int,
    spec: TrainSpec,
    *,
    task: Task,
    recompute: bool = False,
    moments: Moments | None = None,
    rehearsal: Rehearsal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    report: Report = lambda event: None,
) -> ProbedRate:
    """Try rates from the state that a model's pairs are in, and put them back.

    Args:
        model: with what is trained attached, in the state to go on from.
        train: the run's rows; the tries take its own first steps.
        judged: tables of held-out rows; none gives a tenth of the rule's rate.
        rule: the peak rate of a fresh run.
        steps: of the run.
        spec: its schedule; its warm-up is that of the tries too.
        task: what is trained for.
        recompute: activation checkpointing.
        moments: AdamW's, that every try begins with.
        rehearsal: how the run takes its rows; the tries take them in the same way.
        should_stop: asked between steps.
        report: told of each try.

    Raises:
        DivergedError: every rate diverged.
        InterruptedRunError: `should_stop` said so.
    """
    rows = sum(min(len(table), MOST_JUDGED) for table in judged)
    loss, batches = task.loss(model), _judging(task, model, judged, spec)
    if not batches:
        return ProbedRate(float(f"{rule * UNMEASURED:.3g}"), 0, None, {}, 0)
    before, losses = held_out_loss(batches, loss), dict[float, float | None]()

    def tried(at: int) -> float:
        """The loss after a try; infinite where it diverged."""
        rate = float(f"{rule * FACTORS[at]:.3g}")
        with _put_back(model), contextlib.suppress(DivergedError):
            losses[rate] = None
            fit_model(
                model,
                train,
                train,
                Schedule(short, rate, replace(spec, keep="last", patience=None)),
                recompute=recompute,
                task=task,
                observers=Observers(should_stop=should_stop),
                moments=moments,
                evaluated=False,
                rehearsal=rehearsal,
            )
            after = held_out_loss(batches, loss)
            losses[rate] = after if math.isfinite(after) else None
        found = losses[rate]
        report({"kind": "probe", "learning_rate": rate, "steps": short, "loss": found})
        return math.inf if found is None else found

    short, longer = probe_steps(steps)
    if walk(tried, before) >= before and longer > short:
        # The first steps on new rows may harm whatever they lead to: only more of them can tell.
        short = longer
        losses.clear()
        walk(tried, before)
    finite = {rate: found for rate, found in losses.items() if found is not None}
    if not finite:
        raise DivergedError(
            f"every learning rate of the probe diverged ({', '.join(map(str, losses))}): give a "
            "lower --learning-rate, or look at the rows"
        )
    rate = chosen(finite, before, whole=short >= steps)
    return ProbedRate(rate, short, before, losses, rows)


def _judging(task: Task, model: Any, judged: Sequence[TokenTable], spec: TrainSpec) -> list[Batch]:
    """The batches that a try is judged by: the first rows of each table."""
    return [
        batch
        for table in judged
        for batch in task.batches(
            table, range(min(len(table), MOST_JUDGED)), spec.batch_tokens, model.device
        )
    ]


@contextlib.contextmanager
def _put_back(model: Any) -> Iterator[None]:
    """What is trained within the block is afterwards what it was before."""
    trained = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, tensor in zip(trained, kept, strict=True):
                parameter.copy_(tensor)
