"""The jobs of `lorakit train --ranks` and `--tasks`: the run that each of them is alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.config import ROW_OPTIONS, RunConfig, TogetherSpec, changed
from lorakit.errors import ConfigError, did_you_mean
from lorakit.lora import LoraSpec
from lorakit.run.rehearsing import check_new_row_weight


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
    if asked.tasks and config.data.data:
        raise ConfigError("data and tasks both name rows: give --data, or --tasks NAME=SOURCE")
    if asked.tasks and config.data.eval_data:
        raise ConfigError(
            "eval_data holds one task's rows: leave it out, so that every task holds out a share "
            "of its own (--eval-share), or name the task: --task-option NAME.eval_data=FILE"
        )
    if asked.task_options and not asked.tasks:
        raise ConfigError("task_option: there are no tasks; give --tasks NAME=SOURCE")
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
    by_task = task_options(asked.task_options, names)
    made = []
    for name, source in tasks:
        if source:
            own = replace(config, data=replace(config.data, data=(source,)))
            own = changed(own, by_task[name], f"task {name}")
        else:
            own = config
        if asked.ranks and own.start.parent is not None:
            raise ConfigError(
                f"ranks: an adapter that is gone on from ({own.start.parent}) has its rank already; "
                "leave --ranks out, or train anew without --from"
            )
        for rank in asked.ranks or (config.lora.rank,):
            parts = [name] if name else []
            parts += [f"r{rank}"] if asked.ranks else []
            called = "-".join(parts)
            check_new_row_weight(own.train, going_on=own.start.parent is not None)
            save_as = config.output.save_as
            alone = replace(
                own,
                lora=replace(own.lora, rank=rank),
                together=TogetherSpec(),
                output=replace(
                    own.output,
                    out=str(out / called),
                    save_as=f"{save_as}-{called}" if save_as else None,
                ),
            )
            made.append(Job(called, name, alone))
    return tuple(made)


OF_A_TASK = (
    *("eval_data", *ROW_OPTIONS, "max_eval_rows", "eval_share", "from"),
    *("epochs", "max_steps", "learning_rate", "new_row_weight"),
)
"""Names of the options that a task may have of its own."""


def task_options(given: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each task its own options, from {'mails.prompt': …} or {'mails': {'prompt': …}}.

    Raises:
        ConfigError: a task or an option is unknown; the nearest is named.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    for key, value in given.items():
        task, dot, option = str(key).partition(".")
        if task not in found:
            raise ConfigError(f"task_option {key}: no such task; {did_you_mean(task, tasks)}")
        if not dot and not isinstance(value, Mapping):
            raise ConfigError(f"task_option {key}: write NAME.OPTION=VALUE, or NAME: {{OPTION: …}}")
        for name, each in {option: value}.items() if dot else value.items():
            if name not in OF_A_TASK:
                raise ConfigError(
                    f"task_option {task}.{name}: a task has no such option of its own; "
                    + did_you_mean(str(name), OF_A_TASK)
                )
            found[task][str(name)] = each
    return found


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
