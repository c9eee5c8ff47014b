"""`lorakit train --ranks …` and `--tasks …`: several adapters from one base at once.

RUN/
  config.yaml      every option of the whole
  NAME/            one folder a job, each like that of a run of its own
  result.json      the jobs side by side
  report.html      one page for all of them

A job's own config.yaml repeats it alone, with the same numbers but for rounding.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lorakit.adapters.attached import attached_moments
from lorakit.adapters.moments import StoredMoments
from lorakit.config import RunConfig
from lorakit.errors import DivergedError
from lorakit.evaluation.scores import REACHED
from lorakit.files.whole import write_json
from lorakit.forecast import reached_share
from lorakit.lora import LoraLayer, detach, lora_layers
from lorakit.lora.jobs import Jobs
from lorakit.run import folder as folders
from lorakit.run.beginning import Begins, begin, checkpoints_of
from lorakit.run.commands.training import (
    Asked,
    ask_before,
    check_needs,
    check_store,
    finish,
    metrics_of,
    prepare_on,
)
from lorakit.run.continuing import attach_parent, find_parent
from lorakit.run.estimating import RunEstimate, estimate_run
from lorakit.run.fitting import Report, Work, fit_models
from lorakit.run.jobs import Job, jobs_of
from lorakit.run.machine import peak_memory
from lorakit.run.merge_aware import check_one_adapter
from lorakit.run.prepared import Prepared
from lorakit.run.remembering import for_layers
from lorakit.run.session import open_base
from lorakit.training import FitResult, Observers


def run_together(
    config: RunConfig,
    *,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    command: str = "",
) -> dict[str, Any]:
    """Train all jobs as the configuration says and return what RUN/result.json holds.

    Args:
        config: the whole, with `together` set.
        report: told of stages, and of each job's steps with its "job".
        should_stop: asked between steps of every job.
        command: how to repeat it.

    Raises:
        InputError: something given cannot be used; nothing was trained.
        DivergedError: every job diverged.
        InterruptedRunError: `should_stop` said so; every job has a checkpoint or none has begun.
    """
    started = time.perf_counter()
    check_one_adapter(config.train)
    folder, jobs = Path(config.output.out), jobs_of(config)
    folders.check_folder(folder, resume=config.output.resume)
    for job in jobs:
        check_store(job.config)
        check_needs(job.config)
    report({"kind": "stage", "name": "load"})
    first = jobs[0].config
    base = open_base(
        first.model, first.data, progress=lambda *at: report({"kind": "progress", "at": at})
    )
    ready = [prepare_on(base, job.config, find_parent(job.config)) for job in jobs]
    expected = _estimate(ready)
    report({"kind": "jobs", "jobs": jobs, "prepared": ready, "estimate": expected})
    if not config.output.resume:
        _record(config, ready)
    report({"kind": "stage", "name": "before"})
    starts = _starts(jobs, ready, report, should_stop)
    pairs = Jobs(base.model, [r.plan for r in ready], [r.config.train.seed for r in ready])
    for at, start in enumerate(starts):
        start.install(pairs.layers[at])
    report({"kind": "stage", "name": "train"})
    with ExitStack() as stack:
        works = [
            _work(job, each, start, pairs.layers[at], stack, report, should_stop)
            for at, (job, each, start) in enumerate(zip(jobs, ready, starts, strict=True))
        ]
        fitted = fit_models(
            pairs,
            works,
            batch_tokens=config.train.batch_tokens,
            recompute=expected.recompute,
        )
    report({"kind": "stage", "name": "after"})
    told = [
        _ended(job, each, start, how, partial(pairs.install, at), command, started)
        for at, (job, each, start, how) in enumerate(zip(jobs, ready, starts, fitted, strict=True))
    ]
    if all(one["diverged"] for one in told):
        raise DivergedError(f"every job diverged; {told[0]['name']}: {told[0]['diverged']}")
    seconds = sum(how.seconds for how in fitted if isinstance(how, FitResult))
    result = {
        "command": command,
        "model": base.identity.name,
        "jobs": told,
        "train_seconds": seconds,
        "peak_memory_bytes": peak_memory(base.model.device),
        "seconds": time.perf_counter() - started,
        "forecast": expected.forecast.to_dict(),
        "notes": [*([expected.note] if expected.note else []), *_cut(told)],
    }
    write_json(folder / folders.RESULT, result)
    return result


def _record(config: RunConfig, ready: list[Prepared]) -> None:
    """config.yaml of the whole, and of each job alone."""
    whole = Path(config.output.out)
    folders.make_folder(whole)
    folders.write_recorded(whole, config.to_repeat(), config.outside())
    for each in ready:
        folder = Path(each.config.output.out)
        folders.make_folder(folder)
        folders.write_recorded(folder, each.config.to_repeat(), {})


@dataclass(frozen=True)
class Start:
    """What one job begins with.

    Attributes:
        before: what is answered before training, by the base or by the parent.
        begins: schedule, and how a parent is gone on from.
        pairs: the parent's A and B by path; None for a fresh run.
        moments: AdamW's, of the parent.
    """

    before: Asked
    begins: Begins
    pairs: Mapping[str, Mapping[str, Tensor]] | None = None
    moments: StoredMoments | None = None

    def install(self, layers: Mapping[str, LoraLayer]) -> None:
        """Put the parent's A and B into a job's own layers."""
        if self.pairs is None:
            return
        for path, layer in layers.items():
            for name, tensor in layer.tensors.items():
                tensor.data.copy_(self.pairs[path][name])


def _work(
    job: Job,
    ready: Prepared,
    start: Start,
    layers: Mapping[str, LoraLayer],
    stack: ExitStack,
    report: Report,
    should_stop: Callable[[], bool],
) -> Work:
    """What one job is given; its metrics file stays open as long as `stack`."""
    folder = Path(job.config.output.out)
    folders.make_folder(folder)
    reported = stack.enter_context(metrics_of(ready, partial(_named, report, job.name)))
    return Work(
        ready.data.train,
        ready.data.eval,
        start.begins.schedule,
        Observers(report=reported, should_stop=should_stop),
        checkpoints_of(ready, folder, resume=job.config.output.resume),
        for_layers(start.moments, layers) if start.moments else None,
        start.begins.rehearsal,
    )


def _ended(
    job: Job,
    ready: Prepared,
    start: Start,
    how: FitResult | DivergedError,
    install: Callable[[], None],
    command: str,
    started: float,
) -> dict[str, Any]:
    """Measure, save and describe one job; `install` puts its pairs into the model."""
    described: dict[str, Any] = {"name": job.name, "task": job.task, "folder": job.name}
    if not isinstance(how, FitResult):
        return described | {"diverged": str(how)}
    install()
    made = finish(ready, start.begins, how, start.before, command=command, started=started)
    return described | {name: made[name] for name in _SHOWN} | {"diverged": ""}


def _cut(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each job what is to be said of answers that reached their limit."""
    return [
        f"{job['name']}: {note}"
        for job in jobs
        for note in job.get("notes") or ()
        if REACHED in note
    ]


_SHOWN = (
    *("rank", "learning_rate", "rows", "eval_rows", "steps", "best_step", "train_loss"),
    *("eval_loss", "eval_loss_before", "scores_before", "scores_after", "trainable_parameters"),
    *("tokens", "saved_as", "current", "adapter", "notes"),
)


def _estimate(ready: list[Prepared]) -> RunEstimate:
    """Of all jobs at once: passes are filled, and every pair is there."""
    longest = max(ready, key=lambda each: float(each.data.train.lengths.max()))
    spec = longest.config.train
    return estimate_run(
        longest.session.model,
        longest.data.train,
        replace(spec, batch_size=spec.batch_size * len(ready)),
        steps=max(each.steps for each in ready),
        trainable=sum(each.plan.held for each in ready),
        reached=reached_share(
            longest.session.model, [target for each in ready for target in each.plan.targets]
        ),
    )


def _starts(
    jobs: tuple[Job, ...],
    ready: list[Prepared],
    report: Report,
    should_stop: Callable[[], bool],
) -> list[Start]:
    """Each job's start; what the base answers is asked once a task."""
    of_base: dict[str, Asked] = {}
    starts = []
    for job, each in zip(jobs, ready, strict=True):
        named = partial(_named, report, job.name)
        if each.parent is not None:
            model = each.session.model
            lost = attach_parent(each.session, each.parent, each.plan)
            before = ask_before(each)
            begins = begin(each, named, should_stop, lost)
            moments, _ = attached_moments(model)
            pairs = {
                path: {name: tensor.detach().clone() for name, tensor in layer.tensors.items()}
                for path, layer in lora_layers(model).items()
            }
            detach(model)
            starts.append(Start(before, begins, pairs, moments))
            continue
        if job.task not in of_base:
            of_base[job.task] = ask_before(each)
        starts.append(Start(of_base[job.task], begin(each, named, should_stop)))
    return starts


def _named(report: Report, name: str, event: Mapping[str, Any]) -> None:
    report({**event, "job": name})
