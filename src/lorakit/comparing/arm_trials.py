"""Trials with training: a round of the probe, and a run of an arm with all that is measured of it."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from lorakit.comparing.base_trials import REFERENCE
from lorakit.comparing.methods import Method, prepare, save_trained
from lorakit.errors import DivergedError
from lorakit.evaluation.forgetting import BaseDistributions, Forgetting, forgetting, load_reference
from lorakit.evaluation.likelihood import per_token, row_losses
from lorakit.execution.packed import packed_attention
from lorakit.experiments import Report
from lorakit.experiments.opening import Opened, open_run
from lorakit.run import answers
from lorakit.run.fitting import fit_model
from lorakit.run.folder import METRICS, MetricsFile
from lorakit.run.limits import give_back_memory
from lorakit.run.machine import peak_memory
from lorakit.training import FitResult, fused_blocks

# Most tokens of a forward pass in an evaluation. More would be faster, and would set the peak of
# memory of an arm whose training needs little.
EVALUATION_TOKENS = 512


def probe(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """Train at one rate for the steps of one round, and give the loss on the tuning rows.

    Args:
        spec: "config" and hashes; "method", "rate", "steps", "recompute".
        where: places.
        folder: of the trial.
        report: told of the steps.
    """
    opened = open_run(spec, where)
    prepare(opened.session.model, Method.from_dict(spec["method"]), opened.config.train.seed)
    steps: list[Mapping[str, Any]] = []

    def tell(event: Mapping[str, Any]) -> None:
        if event["kind"] == "train":
            steps.append(event)
            report({**event, "steps": spec["steps"]})

    loss, diverged = None, ""
    try:
        _fit(opened, spec, tell, None)
    except DivergedError as error:
        diverged = str(error)
    else:
        model = opened.session.model
        with packed_attention(model), fused_blocks(model):
            found = per_token(*row_losses(model, opened.tuning, _evaluation_tokens(opened)))
        # Weights may have become infinite in the last step, whose loss was that before it.
        loss, diverged = (found, "") if math.isfinite(found) else (None, "not finite at the end")
    return {"loss": loss, "diverged": diverged, "measured": _pace(steps)}


def run(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """Train an arm with one seed, and measure all that the comparison reports.

    The peak of memory is that of the process from its start to the end of training, evaluations
    within it included; answers are generated and weights written after it is read. Leaves
    `metrics.jsonl`, and `adapter/` where an adapter was trained; a whole model is measured on disk
    and removed.

    Args:
        spec: as of `probe`, and "seed", "base_trial", "before" (the course's first point, which
            is the base's), "evaluations", "samples", "max_new_tokens".
        where: places.
        folder: of the trial; the base's trial lies beside it.
        report: told of the steps and stages.

    Raises:
        DivergedError: a loss stopped being finite at the rate that the probe chose.
    """
    opened = open_run(spec, where)
    opened = replace(
        opened,
        config=replace(opened.config, train=replace(opened.config.train, seed=spec["seed"])),
    )
    session, method = opened.session, Method.from_dict(spec["method"])
    trained = prepare(session.model, method, spec["seed"])
    base = load_reference(folder.parent / spec["base_trial"] / REFERENCE)
    course = _Course(opened, base, spec["before"])
    with MetricsFile(folder / METRICS, keep=False) as metrics:

        def tell(event: Mapping[str, Any]) -> None:
            metrics(event)
            course.see(event)
            if event["kind"] in ("train", "eval"):
                report({**event, "steps": spec["steps"]})

        fitted = _fit(opened, spec, tell, course.evaluate)
    peak = peak_memory(session.model.device)
    last = course.last
    assert last is not None
    # Gradients and what the allocator holds go before the answers come, which else would be what
    # sets the peak of an arm that trains little.
    session.model.zero_grad(set_to_none=True)
    give_back_memory()
    report({"kind": "stage", "name": "answer"})
    asked = answers.pick(opened.data.eval_examples, spec["samples"])
    made = answers.ask(session, asked, spec["max_new_tokens"])
    scores = answers.score_answers(asked, made, "auto") if made else None
    place, on_disk = save_trained(session, method, folder)
    if method.kind == "full":
        shutil.rmtree(place)
    return {
        "trainable_parameters": trained,
        "optimizer_state_bytes": fitted.state_bytes,
        "steps": fitted.steps,
        "tokens": fitted.tokens,
        "train_loss": fitted.train_loss,
        "loss": course.points[-1]["loss"],
        "rows": course.rows[0].tolist(),
        "row_tokens": course.rows[1].tolist(),
        "general": {
            "kl": last.kl_S.tolist(),
            "loss": last.loss_S.tolist(),
            "tokens": last.tokens_S.tolist(),
        },
        "course": course.points,
        "train_losses": course.train_losses,
        "answers": made,
        "scores": scores.to_dict() if scores else None,
        "bytes_on_disk": on_disk,
        "notes": list(fitted.notes),
        "measured": {
            "peak_memory_bytes": peak,
            "process_peak_bytes": peak_memory(session.model.device),
            "train_seconds": fitted.seconds,
            "course_seconds": course.seconds_at,
            **_pace(course.steps),
        },
    }


def _fit(
    opened: Opened,
    spec: Mapping[str, Any],
    tell: Report,
    evaluate: Callable[[], float] | None,
) -> FitResult:
    """The same call for every arm: what differs is which parameters need a gradient."""
    steps = spec["steps"]
    every = -(-steps // spec.get("evaluations", 1))
    train = replace(opened.config.train, keep="last", eval_every=every, learning_rate=spec["rate"])
    return fit_model(
        opened.session.model,
        opened.train,
        opened.tuning.take(()),
        train,
        steps=steps,
        learning_rate=spec["rate"],
        recompute=spec["recompute"],
        evaluate=evaluate,
        report=tell,
    )


def _evaluation_tokens(opened: Opened) -> int:
    return min(EVALUATION_TOKENS, opened.config.train.batch_tokens)


def _pace(steps: list[Mapping[str, Any]]) -> dict[str, float | None]:
    """Median seconds of a step, the first left out (it warms up), and real tokens a second."""
    timed = steps[1:] or steps
    if not timed:
        return {"seconds_per_step": None, "tokens_per_second": None}
    return {
        "seconds_per_step": median(step["seconds"] for step in timed),
        "tokens_per_second": sum(s["tokens"] for s in timed) / sum(s["seconds"] for s in timed),
    }


class _Course:
    """Learning and forgetting over a run: asked by the loop, told of its steps."""

    def __init__(self, opened: Opened, base: BaseDistributions, before: Mapping[str, Any]) -> None:
        self._opened, self._base, self._before = opened, base, before
        self._seconds = 0.0
        self.steps: list[Mapping[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        self.seconds_at: list[float] = []
        self.train_losses: list[float] = []
        self.rows: Any = None
        self.last: Forgetting | None = None

    def see(self, event: Mapping[str, Any]) -> None:
        """Take note of a step."""
        if event["kind"] == "train":
            self.steps.append(event)
            self.train_losses.append(event["loss"])
            self._seconds += event["seconds"]

    def evaluate(self) -> float:
        """Held-out loss in nats per token; the loop is inside packed attention."""
        if not self.steps:
            # Nothing has moved yet: every arm begins as the base, which was measured once.
            self.points.append({"step": 0, "tokens": 0, **self._before})
            self.seconds_at.append(0.0)
            return float(self._before["loss"])
        model, tokens = self._opened.session.model, _evaluation_tokens(self._opened)
        # What steps have freed in pieces an evaluation could not reuse; it would come on top.
        give_back_memory()
        self.rows = row_losses(model, self._opened.data.eval, tokens)
        self.last = forgetting(model, self._base, tokens)
        loss = per_token(*self.rows)
        self.points.append(
            {
                "step": len(self.steps),
                "tokens": sum(step["tokens"] for step in self.steps),
                "loss": loss,
                "kl": per_token(self.last.kl_S, self.last.tokens_S),
                "general_loss": per_token(self.last.loss_S, self.last.tokens_S),
            }
        )
        self.seconds_at.append(self._seconds)
        give_back_memory()
        return loss
