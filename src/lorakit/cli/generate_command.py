"""`lorakit generate`."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.config import load_config
from lorakit.errors import DataError

if TYPE_CHECKING:
    from lorakit.data import Example
    from lorakit.run.session import Session

OPTIONS = (
    *("model", "revision", "device", "dtype", "trust_remote_code", "system", "template"),
    *("max_new_tokens", "store"),
)

Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="An adapter folder, lorakit's or peft's, or a name in the store (invoices@3).",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Use the adapter although it was trained on another base.")
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
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Answer prompts, with or without an adapter, through the template it was trained with.

    `lorakit generate --adapter runs/first/adapter 'Where is my order?'`
    """
    from lorakit.data import Example
    from lorakit.run.session import open_adapted

    asked = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts or []]
    if not asked or not all(prompt.strip() for prompt in asked):
        raise DataError("no prompt: give one as an argument, or '-' to read it from stdin")
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
    for number, prompt in enumerate(asked, 1):
        if len(asked) > 1:
            typer.echo(f"[{number}] {prompt}")
        example = Example(origin=f"prompt {number}", prompt=prompt)
        write_answer(session, example, config.output.max_new_tokens, sampling)


command = with_options(generate, OPTIONS)


def write_answer(
    session: "Session", example: "Example", max_new_tokens: int, sampling: Mapping[str, Any]
) -> str:
    """Write an answer to standard output as it comes, and return it."""
    from lorakit.data import encode_prompt
    from lorakit.execution.streaming import stream

    answer = ""
    ids = encode_prompt(example, session.tokenizer, session.template).tolist()
    for piece in stream(
        session.model, session.tokenizer, ids, max_new_tokens=max_new_tokens, **sampling
    ):
        answer += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return answer
