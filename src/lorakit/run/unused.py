"""Options that were given and do nothing in this run, each with the reason. Pure."""

from collections.abc import Iterator

from lorakit.config import RunConfig, options

_OF_HELD_OUT = ("max_eval_rows", "samples", "eval_every", "keep", "patience")
"""Options that count for held-out rows alone."""


def unused_options(config: RunConfig, held_out: int) -> list[str]:
    """A sentence for each option that was set to another value than its default, and has no effect.

    Args:
        config: of the run.
        held_out: how many rows are held out.
    """
    return [f"{name} has no effect: {why}." for name, why in _unused(config, held_out)]


def _unused(config: RunConfig, held_out: int) -> Iterator[tuple[str, str]]:
    changed = {
        option.name
        for option in options()
        if option.name in config.given
        and getattr(getattr(config, option.section), option.field)
        != getattr(getattr(RunConfig(), option.section), option.field)
    }
    if "eval_share" in changed and config.data.eval_data:
        yield "eval_share", "eval_data names the rows that are held out"
    if "epochs" in changed and config.train.max_steps is not None:
        yield "epochs", f"max_steps {config.train.max_steps} says how long the run is"
    if not held_out:
        yield from ((name, "no rows are held out") for name in _OF_HELD_OUT if name in changed)
    elif "max_new_tokens" in changed and config.output.samples == 0:
        yield "max_new_tokens", "samples is 0, so that no answer is generated"
    if "task_option" in changed and not config.together.tasks:
        yield "task_option", "it is for the tasks of --tasks, and there are none"
