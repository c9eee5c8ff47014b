"""`lorakit export`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lorakit.cli.generate_command import Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import say
from lorakit.config import load_config
from lorakit.errors import ConfigError

OPTIONS = ("model", "revision", "device", "trust_remote_code", "store")


def export(
    adapter: Annotated[
        str, typer.Argument(help="An adapter folder, or a name in the store.", show_default=False)
    ],
    to: Annotated[
        Literal["peft", "vllm", "gguf", "gguf-merged"] | None,
        typer.Option(
            "--to",
            help="peft: the format as it is. vllm: one rank and one scale for all modules. gguf: "
            "an adapter file for llama.cpp. gguf-merged: base and adapter in one model file.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The new folder (peft, vllm) or file (gguf, gguf-merged)."),
    ] = None,
    kind: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(
            "--type",
            help="Number format of a GGUF file; an adapter has f32 and f16. [default: f32]",
        ),
    ] = None,
    lint: Annotated[
        bool,
        typer.Option(
            "--lint",
            help="Write nothing: say what each runtime would refuse or mis-scale, and why.",
        ),
    ] = False,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Write an adapter for another runtime, so that it computes the same there.

    Scales that a runtime cannot have are folded into B; what it has no place for is refused by
    name. `lorakit merge` writes the merged model that transformers loads.
    """
    from lorakit.run.commands.exporting import run_export, run_lint

    config = load_config(None, flatten(flags))
    if lint:
        if to or out or kind:
            raise ConfigError("--lint writes nothing: leave --to, --out and --type out")
        say(_lint(*run_lint(config, adapter=adapter, with_base="model" in flags)))
        return
    if to is None or out is None:
        raise ConfigError("say which runtime it is for and where to write: give --to and --out")
    with fetching() as progress:
        exported = run_export(
            config, adapter=adapter, form=to, out=out, kind=kind, force=force, progress=progress
        )
    say([*exported.sentences, f"{to}: {exported.path}"])


command = with_options(export, OPTIONS)


def _lint(name: str, findings: Any) -> list[str]:
    from lorakit.adapters.export.lint import RUNTIMES

    troubled = {finding.runtime for finding in findings}
    lines = [f"{runtime} takes {name} as it is" for runtime in RUNTIMES if runtime not in troubled]
    return [*map(str, findings), *lines]
