"""`lorakit generate`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.config import load_config
from lorakit.errors import DataError

OPTIONS = (
    *("model", "revision", "device", "dtype", "trust_remote_code", "system", "template"),
    *("max_new_tokens", "force"),
)

Adapter = Annotated[
    Path | None, typer.Option("--adapter", help="An adapter folder, lorakit's or peft's.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", help="0 takes the likeliest token each time.")
]
TopP = Annotated[float, typer.Option("--top-p", help="Sample from the likeliest share only.")]
TopK = Annotated[int, typer.Option("--top-k", help="Sample from the k likeliest; 0 for all.")]
SampleSeed = Annotated[int | None, typer.Option("--seed", help="Of the sampling.")]


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="One or more prompts; '-' reads one from stdin.")
    ] = None,
    adapter: Adapter = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: SampleSeed = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Answer prompts, with or without an adapter, through the template it was trained with.

    `lorakit generate --adapter runs/first/adapter 'Where is my order?'`
    """
    from lorakit.data import Example, encode_prompt
    from lorakit.models.generate import stream
    from lorakit.run.session import open_adapted

    asked = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts or []]
    if not asked or not all(prompt.strip() for prompt in asked):
        raise DataError("no prompt: give one as an argument, or '-' to read it from stdin")
    config = load_config(None, flatten(flags))
    with fetching() as progress:
        session = open_adapted(
            config.model, adapter, config.data, force=config.output.force, progress=progress
        )
    for number, prompt in enumerate(asked, 1):
        if len(asked) > 1:
            typer.echo(f"[{number}] {prompt}")
        example = Example(origin=f"prompt {number}", prompt=prompt)
        for piece in stream(
            session.model,
            session.tokenizer,
            encode_prompt(example, session.tokenizer, session.template).tolist(),
            max_new_tokens=config.output.max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        ):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


command = with_options(generate, OPTIONS)
