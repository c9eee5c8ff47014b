"""`lorakit chat`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorakit.cli.generate_command import (
    ASKING_HINT,
    OPTIONS,
    Force,
    PromptTemplate,
    SampleSeed,
    Temperature,
    TopK,
    TopP,
    asked_as,
    without_effect,
    write_completion,
)
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, say, styled, warn
from lorakit.config import RECORDED_BASE, RunConfig, load_config
from lorakit.errors import DataError
from lorakit.run.present import require_present

BASE = "base"
# New tokens of an answer in a conversation, where the user gives no other number.
MOST = 512
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
    prompt_template: PromptTemplate = True,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Chat with a model, with an adapter, or with several side by side. Examples:

    `lorakit chat`

    `lorakit chat --adapter runs/first/adapter`

    `lorakit chat --adapter invoices --adapter base`

    What you type is put through the prompt template that the adapter was trained with, each message
    alike; where that has several columns, a message is a JSON object with them.

    `/new` begins a new conversation; an empty line or Ctrl-D ends the chat.
    """
    config = load_config(None, flatten(flags))
    named = [name for name in adapter or () if name != BASE]
    require_present(config, *named)
    from lorakit.run.recorded import with_recorded

    config = with_recorded(config, named, packing=True)
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    if unused := without_effect(sampling):
        warn(unused)
    if adapter is not None and len(adapter) > 1:
        _several(adapter, config, sampling, prompt_template, force=force)
    else:
        only = adapter[0] if adapter and adapter != [BASE] else None
        _one(only, config, sampling, prompt_template, force=force)


def _one(
    adapter: str | None,
    config: RunConfig,
    sampling: Mapping[str, Any],
    prompt_template: bool,
    *,
    force: bool,
) -> None:
    from lorakit.data import Example, PromptForm
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
    form = PromptForm.of(config.data) if prompt_template else PromptForm()
    say(asked_as(form))

    def asked(message: str) -> Example:
        # A template without turns (raw) sees the last message only.
        if session.template.kind == "raw":
            return form.typed(message, "your message", ASKING_HINT)
        written = form.turns([*turns, {"role": "user", "content": message}], "chat", ASKING_HINT)
        # The prompt is what stands before the last assistant message: here one that is still empty.
        return Example(origin="chat", messages=(*written, {"role": "assistant", "content": ""}))

    def reply(message: str) -> None:
        most = config.output.answer_limit or MOST
        # The default is what the model has room for; a number that was given is kept to.
        completion = write_completion(
            session, asked(message), most, dict(sampling), fit="max_new_tokens" not in config.given
        )
        turns.append({"role": "user", "content": message})
        turns.append({"role": "assistant", "content": completion.strip()})

    _converse(reply, turns.clear)


def _several(
    adapters: Sequence[str],
    config: RunConfig,
    sampling: Mapping[str, Any],
    prompt_template: bool,
    *,
    force: bool,
) -> None:
    from lorakit.serving.sampling import Sampling
    from lorakit.serving.talk import Talk

    with fetching() as progress:
        talk = Talk(
            config.model,
            adapters,
            config.data,
            store=config.output.store,
            most=config.output.answer_limit or MOST,
            force=force,
            progress=progress,
            prompt_template=prompt_template,
        )
    for name, form in zip(adapters, talk.forms, strict=True):
        say(f"{name}: {line}" for line in asked_as(form))

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
            try:
                reply(message)
            except DataError as error:  # of this message: the conversation goes on
                say([str(error)])


command = with_options(chat, OPTIONS, shown={**RECORDED_BASE, "max_new_tokens": MOST})
