"""`lorakit chat`."""

from collections.abc import Mapping
from typing import Any

from lorakit.cli.generate_command import (
    OPTIONS,
    Adapter,
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
from lorakit.config import load_config


def chat(
    adapter: Adapter = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: SampleSeed = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Talk to a model or an adapter. `/new` starts over, an empty line or Ctrl-D ends.

    `lorakit chat --adapter runs/first/adapter`
    """
    from lorakit.data import Example
    from lorakit.run.session import open_adapted

    config = load_config(None, flatten(flags))
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    with fetching() as progress:
        session = open_adapted(
            config.model,
            adapter,
            config.data,
            store=config.output.store,
            force=force,
            progress=progress,
        )
    console.print("[dim]/new starts over; an empty line or Ctrl-D ends[/]")
    turns: list[dict[str, str]] = []
    while True:
        try:
            said = console.input("[bold cyan]you>[/] ").strip()
        except EOFError:
            console.print()
            return
        if not said:
            return
        if said == "/new":
            turns = []
            continue
        turns.append({"role": "user", "content": said})
        # A template without turns of its own (raw) sees the last message only.
        one = session.template.kind == "raw"
        example = (
            Example(origin="chat", prompt=said)
            if one
            else Example(origin="chat", messages=tuple(turns))
        )
        answer = write_answer(session, example, config.output.max_new_tokens, sampling)
        turns.append({"role": "assistant", "content": answer.strip()})


command = with_options(chat, OPTIONS, max_new_tokens=512)
