"""`lorakit check`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import show_prepared
from lorakit.cli.show import console, duration, left_out, plan_table, say, styled
from lorakit.config import RunConfig, load_config
from lorakit.errors import ConfigError
from lorakit.files.wording import count, size
from lorakit.models.sources import has_weights
from lorakit.models.spec import FULL, PACKED
from lorakit.run.present import require_present


def check(
    config: Annotated[
        Path | None, typer.Argument(help="A run file (YAML); a flag overrides its line.")
    ] = None,
    shown: Annotated[int, typer.Option("--show", help="Number of training rows to show.")] = 3,
    rows: Annotated[
        int | None,
        typer.Option("--rows", help="Without --data: the number of training rows. [default: 1000]"),
    ] = None,
    row_tokens: Annotated[
        int | None,
        typer.Option("--row-tokens", help="Without --data: the tokens of a row. [default: 512]"),
    ] = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Show what `lorakit train` would do with the same options. Nothing is trained or written.

    `lorakit check --data rows.jsonl`

    `lorakit check --model base-folder --rank 16 --rows 5000 --row-tokens 300`

    It prints how the rows are read, their lengths, a few rows with the supervised tokens coloured
    and what serving sends before each answer, the modules that would be adapted, and a forecast of
    memory and time. Without `--data`, or where the weights of the model are not here, the forecast
    is made from the model's configuration: would it fit, and how long would it take?
    """
    settings = load_config(config, flatten(flags))
    require_present(settings)
    if not settings.together and (not settings.data.data or not has_weights(settings.model)):
        _outline(settings, rows, row_tokens)
        return
    if rows is not None or row_tokens is not None:
        raise ConfigError("--rows and --row-tokens stand for rows that --data names: give one")
    from lorakit.run.commands.training import prepare

    if not settings.together:
        _show(prepare(settings), shown)
        return
    from lorakit.run.jobs import jobs_of

    for job in jobs_of(settings):
        console.rule(job.name)
        _show(prepare(job.config), shown)


def _outline(settings: RunConfig, rows: int | None, row_tokens: int | None) -> None:
    """A run on a model of which only the configuration is read."""
    from lorakit.run.commands.outlining import outline

    found = outline(settings, rows=rows, row_tokens=row_tokens)
    expected, dtype = found.estimate.forecast, str(found.dtype).removeprefix("torch.")
    say([f"from the configuration of {settings.model.model}; no weight was read", *found.notes])
    console.print(plan_table(found.plan))
    fits = "it fits" if found.fits else "it does not fit"
    say(
        [
            *left_out(found.plan),
            f"base: {count(found.plan.total_parameters)} parameters, {size(found.weights_bytes)} "
            f"in {_held(found.base_dtype, dtype)} on {found.device}",
            *_unpacked(found, dtype),
            f"trainable: {count(found.plan.trainable)} parameters "
            f"({found.plan.trainable / found.plan.total_parameters:.2%})",
            f"{found.steps} steps at learning rate {found.learning_rate:g}; {count(found.rows)} "
            f"rows, {count(found.tokens)} tokens a pass",
            f"forecast: {size(expected.peak_memory_bytes)} of memory, {duration(expected.seconds)} "
            f"of training, {expected.flops_per_token / 1e6:,.0f} MFLOP a token at "
            f"{expected.matmul_flops / 1e9:,.0f} GFLOP/s, measured here",
            *([found.estimate.busy] if found.estimate.busy else []),
            *([found.estimate.note] if found.estimate.note else []),
            f"memory here: {size(found.available)}; {fits}",
            *_formats(found),
        ]
    )


def _held(base_dtype: str, dtype: str) -> str:
    return dtype if base_dtype == FULL else f"{base_dtype}, the rest in {dtype},"


def _unpacked(found: Any, dtype: str) -> list[str]:
    """What of a packed base stays in full precision."""
    each = ", ".join(f"{what} {size(amount)}" for what, amount in found.unpacked.items())
    return [f"in {dtype} stay: {each}"] if each else []


def _formats(found: Any) -> list[str]:
    """What each --base-dtype would need, and which of them fit."""
    needs = found.by_base_dtype
    if set(needs) == {PACKED}:
        return ["the weights stay as the folder packs them; --base-dtype is for others"]
    if len(needs) < 2:
        return ["--base-dtype has nothing to pack in this model"]
    fitting = [name for name, needed in needs.items() if needed <= found.available]
    each = ", ".join(f"{name} {size(needed)}" for name, needed in needs.items())
    words = ", ".join(fitting) if fitting else "none"
    return [
        f"memory by --base-dtype: {each}; that fit: {words} (docs/quantized.md says what they cost)"
    ]


def _show(ready: Any, rows: int) -> None:
    """One run: plan and forecast, lengths, and some rows with their supervised tokens."""
    from lorakit.data import preview

    data = ready.data
    show_prepared(ready)
    console.print("\nlengths in tokens", style="bold")
    lengths = preview.lengths(data.train)
    most = max(lengths.counts)
    edges = zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False)
    say(
        f"  {low:>6,}-{high - 1:<6,} {'█' * round(32 * rows_here / most):<32} {count(rows_here)}"
        for low, high, rows_here in edges
    )
    spread = ", ".join(f"{p} % up to {n:,}" for p, n in lengths.percentiles.items())
    say([f"  {spread}, longest {lengths.longest:,}"])
    console.print(styled("\n[bold]rows[/] (the supervised tokens are [black on green]coloured[/])"))
    _show_rows(ready, rows)


def _show_rows(ready: Any, most: int) -> None:
    """The first training rows: what training reads, and for each answer what serving sends."""
    from lorakit.data.load import examples_at
    from lorakit.data.served import served_turns

    data, session = ready.data, ready.session
    sequences: dict[str, list[Any]] = {}
    for row in data.train:
        if row.origin not in sequences and len(sequences) == most:
            break
        sequences.setdefault(row.origin, []).append(row)
    examples = examples_at(ready.config.data, data.shape, sequences)
    for origin, own in sequences.items():
        turns = served_turns(examples[origin], own, session.tokenizer, data.template)
        for k, row in enumerate(own):
            part = f", sequence {k + 1} of {len(own)}" if len(own) > 1 else ""
            console.print(f"{origin}{part}, {count(len(row))} tokens", style="dim")
            console.print(_coloured(row, session.tokenizer))
            for turn in turns:
                if turn.sequence == k:
                    _show_turn(turn)


def _coloured(row: Any, tokenizer: Any) -> Text:
    from lorakit.data import preview

    line = Text()
    for token in preview.fragments(row, tokenizer):
        line.append(token.text, style="black on green" if token.supervised else "")
    return line


def _show_turn(turn: Any) -> None:
    """One line on an answer: the prompt that serving sends against the one that is trained."""
    what = f"the answer in message {turn.number}" if turn.number else "the answer"
    sent = f"{count(turn.prompt_tokens)} tokens"
    if turn.parts_at is None:
        line = Text(f"  {what}: serving sends the same {sent} before it", style="dim")
    else:
        line = Text(
            f"  {what}: serving sends {sent}, other ones from token {turn.parts_at + 1} on",
            style="bold red",
        )
    for piece in turn.later:
        line.append(f"; later prompts leave out {piece!r}", style="yellow")
    console.print(line)


command = with_options(check)
