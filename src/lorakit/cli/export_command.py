"""`lorakit export`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lorakit.cli.generate_command import Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import say
from lorakit.config import RECORDED_BASE, load_config
from lorakit.errors import ConfigError
from lorakit.files.wording import command_line
from lorakit.run.present import require_present

Kind = Annotated[
    Literal["f32", "f16", "bf16", "q8_0"] | None,
    typer.Option(
        "--type",
        help="Number format of a GGUF file; an adapter may be f32 or f16. [default: f32; ollama: f16]",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="TYPE",
        help="A merged model in fewer bits, by llama.cpp's own quantizer: Q8_0, Q6_K, Q5_K_M, "
        "Q4_K_M, Q4_0 and others without an importance matrix.",
    ),
]
OPTIONS = ("model", "revision", "device", "trust_remote_code", "ignore_adapter", "store")


def export(
    adapter: Annotated[
        str,
        typer.Argument(
            help="An adapter folder, or a name in the store (invoices@3).", show_default=False
        ),
    ],
    to: Annotated[
        Literal["peft", "vllm", "gguf", "gguf-merged", "ollama"] | None,
        typer.Option(
            "--to",
            help="peft: an adapter folder as peft writes it. vllm: an adapter folder with one rank "
            "and one scale, as vLLM needs it. gguf: an adapter file for llama.cpp. gguf-merged: "
            "base and adapter merged in one model file. ollama: a folder with such a file and a "
            "Modelfile.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The new folder (peft, vllm, ollama) or file (gguf, gguf-merged)."
        ),
    ] = None,
    kind: Kind = None,
    quantize: Quantize = None,
    lint: Annotated[
        bool,
        typer.Option(
            "--lint",
            help="Write nothing; list what each runtime would refuse or scale wrongly, and why.",
        ),
    ] = False,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Write an adapter for another runtime, so that it computes the same there. Examples:

    `lorakit export runs/first/adapter --lint`

    `lorakit export runs/first/adapter --to gguf --out first.gguf`

    `lorakit export runs/first/adapter --to ollama --quantize Q4_K_M --out first-ollama`

    A scale that a runtime cannot express is multiplied into B. What the runtime does not support is
    an error that names it. A merged model holds the adapter's chat template and end tokens. `lorakit merge` writes a merged model for transformers.
    """
    config = load_config(None, flatten(flags))
    if lint:
        if to or out or kind or quantize:
            raise ConfigError("--lint writes nothing: leave --to, --out, --type and --quantize out")
        require_present(config, adapter)
        from lorakit.run.commands.exporting import run_lint

        lines = _lint(
            *run_lint(config, adapter=adapter, with_base="model" in flags), adapter, flags
        )
        say(lines)
        return
    if to is None or out is None:
        raise ConfigError("give --to (the runtime) and --out (where to write)")
    require_present(config, adapter)
    from lorakit.run.commands.exporting import run_export

    with fetching() as progress:
        exported = run_export(
            config,
            adapter=adapter,
            form=to,
            out=out,
            kind=kind,
            quantize=quantize,
            force=force,
            progress=progress,
        )
    say([*exported.sentences, f"{to}: {exported.path}"])


command = with_options(export, OPTIONS, shown=RECORDED_BASE)


def _lint(name: str, findings: Any, adapter: str, flags: Mapping[str, Any]) -> list[str]:
    from lorakit.adapters.export.lint import RUNTIMES

    affected = {finding.runtime for finding in findings}
    # What peft makes of names depends on the base.
    known = [runtime for runtime in RUNTIMES if runtime != "peft" or "model" in flags]
    lines = [f"{runtime} takes {name} as it is" for runtime in known if runtime not in affected]
    store = ["--store", flags["store"]] if "store" in flags else []
    short = re.sub(r"\W+", "-", Path(name).name)
    for runtime, form in (("vllm", "vllm"), ("llama.cpp", "gguf")):
        if any(f.runtime == runtime and "folds it" in f.why for f in findings):
            line = command_line("export", adapter, *store, "--to", form, "--out", f"{short}-{form}")
            lines.append(f"for {runtime}: {line}")
    return [*map(str, findings), *lines]
