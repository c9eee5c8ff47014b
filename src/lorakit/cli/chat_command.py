"""`lorakit chat`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorakit.cli.generate_command import (
    OPTIONS,
    Force,
    SampleSeed,
    Temperature,
    TopK,
    TopP,
    write_answer,
)
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import console
from lorakit.config import RunConfig, load_config

Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="An adapter folder, lorakit's or peft's, or a name in the store (invoices@3). Given "
        "more than once, all answer side by side; `base` is the base alone.",
    ),
]


def chat(
    adapter: Adapters = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: SampleSeed = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Talk to a model, to an adapter, or to several side by side.

    `lorakit chat --adapter runs/first/adapter`

    `lorakit chat --adapter invoices --adapter base`

    `/new` starts over, an empty line or Ctrl-D ends.
    """
    config = load_config(None, flatten(flags))
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    if adapter is not None and len(adapter) > 1:
        _several(adapter, config, sampling, force=force)
    else:
        _one(adapter[0] if adapter else None, config, sampling, force=force)


def _one(
    adapter: str | None, config: RunConfig, sampling: Mapping[str, Any], *, force: bool
) -> None:
    from lorakit.data import Example
    from lorakit.run.session import open_adapted

    with fetching() as progress:
        session = open_adapted(
            config.model,
            adapter,
            config.data,
            store=config.output.store,
            force=force,
            progress=progress,
        )
    turns: list[dict[str, str]] = []

    def answer(said: str) -> None:
        turns.append({"role": "user", "content": said})
        # A template without turns of its own (raw) sees the last message only.
        one = session.template.kind == "raw"
        # What stands before the last assistant message is asked: here an empty one, yet to come.
        empty = {"role": "assistant", "content": ""}
        example = (
            Example(origin="chat", prompt=said)
            if one
            else Example(origin="chat", messages=(*turns, empty))
        )
        written = write_answer(session, example, config.output.max_new_tokens, dict(sampling))
        turns.append({"role": "assistant", "content": written.strip()})

    _converse(answer, turns.clear)


def _several(
    adapters: Sequence[str], config: RunConfig, sampling: Mapping[str, Any], *, force: bool
) -> None:
    from lorakit.serving.sampling import Sampling
    from lorakit.serving.talk import Talk

    with fetching() as progress:
        talk = Talk(
            config.model,
            adapters,
            config.data,
            store=config.output.store,
            most=config.output.max_new_tokens,
            force=force,
            progress=progress,
        )

    def answer(said: str) -> None:
        texts = ["" for _ in adapters]
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            for number, piece in talk.ask(said, Sampling(**sampling)):
                texts[number] += piece
                live.update(_side_by_side(adapters, texts), refresh=console.is_terminal)
            live.update(_side_by_side(adapters, texts), refresh=True)

    try:
        _converse(answer, talk.forget)
    finally:
        talk.close()


def _side_by_side(names: Sequence[str], texts: Sequence[str]) -> Table:
    table = Table(expand=True)
    for name in names:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(text.strip()) for text in texts))
    return table


def _converse(answer: Callable[[str], None], forget: Callable[[], None]) -> None:
    """Read lines and have each answered, until one is empty."""
    console.print("[dim]/new starts over; an empty line or Ctrl-D ends[/]")
    while True:
        try:
            said = console.input("[bold cyan]you>[/] ").strip()
        except EOFError:
            console.print()
            return
        if not said:
            return
        if said == "/new":
            forget()
        else:
            answer(said)


command = with_options(chat, OPTIONS, max_new_tokens=512)
