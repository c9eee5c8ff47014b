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
    write_completion,
)
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, styled
from lorakit.config import RunConfig, load_config
from lorakit.run.present import require_present

BASE = "base"
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="An adapter folder (lorakit's or peft's) or a name in the store (invoices@3). Given "
        "several times, all of them answer side by side; `base` is the base without an adapter.",
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
    """Chat with a model, with an adapter, or with several side by side. Examples:

    `lorakit chat`

    `lorakit chat --adapter runs/first/adapter`

    `lorakit chat --adapter invoices --adapter base`

    `/new` begins a new conversation; an empty line or Ctrl-D ends the chat.
    """
    config = load_config(None, flatten(flags))
    require_present(config, *(name for name in adapter or () if name != BASE))
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

    def reply(message: str) -> None:
        turns.append({"role": "user", "content": message})
        # A template without turns (raw) sees the last message only.
        raw = session.template.kind == "raw"
        # The prompt is what stands before the last assistant message: here one that is still empty.
        empty = {"role": "assistant", "content": ""}
        example = (
            Example(origin="chat", prompt=message)
            if raw
            else Example(origin="chat", messages=(*turns, empty))
        )
        completion = write_completion(
            session, example, config.output.max_new_tokens, dict(sampling)
        )
        turns.append({"role": "assistant", "content": completion.strip()})

    _converse(reply, turns.clear)


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

    def reply(message: str) -> None:
        texts = ["" for _ in adapters]
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            for number, text in talk.ask(message, Sampling(**sampling)):
                texts[number] += text
                live.update(_side_by_side(adapters, texts), refresh=console.is_terminal)
            live.update(_side_by_side(adapters, texts), refresh=True)

    try:
        _converse(reply, talk.forget)
    finally:
        talk.close()


def _side_by_side(names: Sequence[str], texts: Sequence[str]) -> Table:
    table = Table(expand=True)
    for name in names:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(text.strip()) for text in texts))
    return table


def _converse(reply: Callable[[str], None], forget: Callable[[], None]) -> None:
    """Read messages and reply to each, until one is empty."""
    console.print(
        "/new begins a new conversation; an empty line or Ctrl-D ends the chat", style="dim"
    )
    while True:
        try:
            message = console.input(styled("[bold cyan]you>[/] ")).strip()
        except EOFError:
            console.print()
            return
        if not message:
            return
        if message == "/new":
            forget()
        else:
            reply(message)


command = with_options(chat, OPTIONS, max_new_tokens=512)
