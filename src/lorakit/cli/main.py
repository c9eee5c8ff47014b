"""`lorakit`: the list of commands, and how an error reaches a person."""

import errno
import importlib
import sys
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console

from lorakit.errors import InputError, InterruptedRunError, LorakitError
from lorakit.run.limits import limit_caches

# Command -> (module in this room, one line of help). A command's module is imported when that
# command runs: `lorakit --help` should not wait for torch.
COMMANDS = {
    "train": "Teach a model your task: a file of rows in, a trained adapter out.",
    "check": "Show what a run would do, before it: rows, loss-bearing tokens, plan, forecast.",
    "compare": "Measure LoRA against full fine-tuning on your rows, fairly, and judge.",
    "rank": "Find the smallest rank that your task needs, with evidence, and train it.",
    "count": "Count trainable parameters, for one weight or for a whole model.",
    "eval": "Measure a model or an adapter on held-out rows.",
    "generate": "Answer prompts, with or without an adapter.",
    "chat": "Talk to a model or an adapter.",
    "serve": "Serve a base and its adapters over HTTP, as OpenAI's API does.",
    "merge": "Fold an adapter into its base: an ordinary model folder, with a certificate.",
    "export": "Write an adapter for peft, vLLM or llama.cpp, or say what they would refuse.",
    "import": "Make an adapter of one that loralib or mlx-lm wrote.",
    "push": "Upload an adapter to the Hugging Face hub; private unless said otherwise.",
    "pull": "Fetch an adapter from the Hugging Face hub, every file held against its hash.",
    "demo": "Run the main job on the built-in model and see what happens.",
}
# Group -> its one line of help and its commands. `lorakit GROUP NAME` is `command` in
# cli/GROUP/NAME_command.py, imported like the others only when it is asked for.
GROUPS: dict[str, tuple[str, dict[str, str]]] = {
    "adapters": (
        "Keep the adapters of many tasks: versions, history, comparison.",
        {
            "list": "Show what each name points at: base, rank, size, scores.",
            "show": "Show where an adapter came from, and which layers it changes most.",
            "add": "Keep a copy of an adapter, as the newest version of a name.",
            "remove": "Remove names with their history, or single versions.",
            "rename": "Give an adapter another name.",
            "rollback": "Let a name point at an earlier version, or bring it back.",
            "log": "Show what happened to a name.",
            "diff": "Compare two adapters: configuration, data, figures, weights.",
            "verify": "Hash every stored file again, check every tensor and the bases.",
            "gc": "Remove what no name's history needs, and what killed processes left.",
            "combine": "Make one adapter of several: sums, cuts, TIES, DARE.",
            "extract": "Make an adapter out of two full models.",
            "shrink": "Cut an adapter's ranks, and measure what that does to its loss.",
        },
    ),
}

EXIT_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def main() -> None:
    """Entry point of the `lorakit` command."""
    limit_caches()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code: 0, 2 for bad input, 130 for Ctrl-C, else 1."""
    console = Console(stderr=True)
    try:
        build(arguments)(args=arguments, prog_name="lorakit", standalone_mode=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED
    except LorakitError as error:
        console.print("[bold red]error:[/] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        if isinstance(error, InterruptedRunError):
            return EXIT_INTERRUPTED
        return EXIT_INPUT if isinstance(error, InputError) else EXIT_FAILED
    except KeyboardInterrupt:
        console.print("interrupted")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        console.print(
            f"[bold red]error:[/] no space left on the disk ({error.filename or 'while writing'}); "
            "what was written before is still there"
        )
        return EXIT_INPUT
    return 0


def build(arguments: list[str]) -> Any:
    """The typer application, with the module of the asked-for command imported and no other."""
    app = typer.Typer(
        name="lorakit",
        help="Low-rank adaptation of frozen models: train, count, evaluate, merge, and use "
        "adapters, on the machine you have.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="markdown",
    )
    words = [a for a in arguments if not a.startswith("-")]
    asked, inner = (*words, None, None)[:2]

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            from importlib.metadata import version as installed

            typer.echo(f"lorakit {installed('lorakit')}")
            raise typer.Exit

    _fill(app, COMMANDS, asked, "lorakit.cli")
    for name, (line, commands) in GROUPS.items():
        group = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
        _fill(group, commands, inner if name == asked else None, f"lorakit.cli.{name}")
        app.add_typer(group, name=name, help=line)
    return typer.main.get_command(app)


def _fill(app: typer.Typer, commands: Mapping[str, str], asked: str | None, room: str) -> None:
    """Register the commands of a table, importing only the one that is asked for."""
    for name, line in commands.items():
        if name == asked:
            module = importlib.import_module(f"{room}.{name}_command")
            app.command(name, help=None)(module.command)
        else:
            app.command(name, help=line)(_placeholder)


def _placeholder() -> None:
    """Stands for a command that is not asked for."""
