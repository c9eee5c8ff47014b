"""`lorakit train --ranks …` and `--tasks …`: several adapters from one base at once.

RUN/
  config.yaml      every option of the whole
  NAME/            one folder a job, each like that of a run of its own
  result.json      the jobs side by side

A job's own config.yaml repeats it alone, with the same numbers but for rounding.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorakit.config import RunConfig, TogetherSpec
from lorakit.errors import ConfigError, DivergedError
from lorakit.files.whole import write_json
from lorakit.lora import LoraSpec
from lorakit.lora.jobs import Jobs
from lorakit.run import folder as folders
from lorakit.run.commands.training import (
    Asked,
    ask_before,
    check_needs,
    check_store,
    finish,
    metrics_of,
    prepare_on,
    run_hash,
)
from lorakit.run.estimating import RunEstimate, estimate_run
from lorakit.run.fitting import Report, Work, fit_models
from lorakit.run.machine import peak_memory
from lorakit.run.prepared import Prepared
from lorakit.run.session import open_base
from lorakit.training import Checkpoints, FitResult, Observers, Schedule


@dataclass(frozen=True)
class Job:
    """One of the runs: its name, which is its folder's, and the run that it is alone."""

    name: str
    task: str
    config: RunConfig


def jobs_of(config: RunConfig) -> tuple[Job, ...]:
    """Every task with every rank.

    Raises:
        ConfigError: the options contradict each other, or two tasks have one name.
    """
    asked, out = config.together, Path(config.output.out)
    if config.start.parent is not None:
        raise ConfigError("from: several adapters at once start anew; train one to go on from it")
    if asked.tasks and config.data.data:
        raise ConfigError("data and tasks both name rows: give --data, or --tasks NAME=SOURCE")
    if asked.tasks and config.data.eval_data:
        raise ConfigError(
            "eval_data holds one task's rows: leave it out, so that every task holds out a share "
            "of its own (--eval-share)"
        )
    # A config.yaml gives every option, the default rank among them.
    if asked.ranks and "rank" in config.given and config.lora.rank != LoraSpec().rank:
        raise ConfigError("rank and ranks are both given: leave --rank out")
    if asked.ranks and config.lora.rank_pattern:
        raise ConfigError("rank_pattern fixes what ranks would vary: leave one of them out")
    tasks = [_task(text) for text in asked.tasks] or [("", "")]
    names = [name for name, _ in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two tasks are called {twice!r}: write NAME=SOURCE with other names")
    made = []
    for name, source in tasks:
        for rank in asked.ranks or (config.lora.rank,):
            parts = [name] if name else []
            parts += [f"r{rank}"] if asked.ranks else []
            called = "-".join(parts)
            save_as = config.output.save_as
            own = replace(
                config,
                data=replace(config.data, data=(source,)) if source else config.data,
                lora=replace(config.lora, rank=rank),
                together=TogetherSpec(),
                output=replace(
                    config.output,
                    out=str(out / called),
                    save_as=f"{save_as}-{called}" if save_as else None,
                ),
            )
            made.append(Job(called, name, own))
    return tuple(made)


def _task(text: str) -> tuple[str, str]:
    """Name and source of 'NAME=SOURCE' or of a file."""
    name, equals, source = text.partition("=")
    if not equals:
        name, source = Path(text).name.split(".")[0], text
    if not source or not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(
            f"task {text!r}: write NAME=SOURCE, the name of letters, digits, '-' and '_'"
        )
    return name, source


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
    ready = [prepare_on(base, job.config) for job in jobs]
    expected = _estimate(ready)
    report({"kind": "jobs", "jobs": jobs, "prepared": ready, "estimate": expected})
    folders.make_folder(folder)
    if not config.output.resume:
        folders.write_yaml(folder / folders.CONFIG, config.to_flat())
    report({"kind": "stage", "name": "before"})
    before = _before(jobs, ready)
    pairs = Jobs(base.model, [r.plan for r in ready], [r.config.train.seed for r in ready])
    report({"kind": "stage", "name": "train"})
    with ExitStack() as stack:
        works = [
            _work(job, each, stack, report, should_stop)
            for job, each in zip(jobs, ready, strict=True)
        ]
        fitted = fit_models(
            pairs,
            works,
            batch_tokens=config.train.batch_tokens,
            recompute=expected.recompute,
        )
    report({"kind": "stage", "name": "after"})
    told = []
    for at, (job, each, how) in enumerate(zip(jobs, ready, fitted, strict=True)):
        described: dict[str, Any] = {"name": job.name, "task": job.task, "folder": job.name}
        if isinstance(how, FitResult):
            pairs.install(at)
            made = finish(each, how, before[at], command=command, started=started)
            told.append(described | {name: made[name] for name in _SHOWN} | {"diverged": ""})
        else:
            told.append(described | {"diverged": str(how)})
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
        "notes": [expected.note] if expected.note else [],
    }
    write_json(folder / folders.RESULT, result)
    return result


def _work(
    job: Job,
    ready: Prepared,
    stack: ExitStack,
    report: Report,
    should_stop: Callable[[], bool],
) -> Work:
    """What one job is given; its metrics file stays open as long as `stack`."""
    folder = Path(job.config.output.out)
    folders.make_folder(folder)
    folders.write_yaml(folder / folders.CONFIG, job.config.to_flat())
    reported = stack.enter_context(metrics_of(ready, partial(_named, report, job.name)))
    run = run_hash(ready.config, ready.session, ready.data)
    return Work(
        ready.data.train,
        ready.data.eval,
        Schedule(ready.steps, ready.learning_rate, ready.config.train),
        Observers(report=reported, should_stop=should_stop),
        Checkpoints(folder, run, job.config.output.resume),
    )


_SHOWN = (
    *("rank", "learning_rate", "rows", "eval_rows", "steps", "best_step", "train_loss"),
    *("eval_loss", "eval_loss_before", "scores_before", "scores_after", "trainable_parameters"),
    *("tokens", "saved_as", "adapter"),
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
        trainable=sum(each.plan.trainable for each in ready),
    )


def _before(jobs: tuple[Job, ...], ready: list[Prepared]) -> list[Asked]:
    """The base's answers, once a task."""
    found: dict[str, Asked] = {}
    for job, each in zip(jobs, ready, strict=True):
        if job.task not in found:
            found[job.task] = ask_before(each)
    return [found[job.task] for job in jobs]


def _named(report: Report, name: str, event: Mapping[str, Any]) -> None:
    report({**event, "job": name})
