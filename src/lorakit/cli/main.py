"""`lorakit`: the list of commands, and how an error reaches a person."""

import errno
import importlib
import sys
from typing import Any

import typer
from rich.console import Console

from lorakit.errors import InputError, InterruptedRunError, LorakitError

# Command -> (module in this room, one line of help). A command's module is imported when that
# command runs: `lorakit --help` should not wait for torch.
COMMANDS = {
    "train": "Teach a model your task: a file of rows in, a trained adapter out.",
    "check": "Show what a run would do, before it: rows, loss-bearing tokens, plan, forecast.",
    "count": "Count trainable parameters, for one weight or for a whole model.",
    "eval": "Measure a model or an adapter on held-out rows.",
    "generate": "Answer prompts, with or without an adapter.",
    "chat": "Talk to a model or an adapter.",
    "merge": "Fold an adapter into its base: an ordinary model folder, with a certificate.",
    "demo": "Run the main job on the built-in model and see what happens.",
}

EXIT_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def main() -> None:
    """Entry point of the `lorakit` command."""
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
    asked = next((a for a in arguments if not a.startswith("-")), None)

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            from importlib.metadata import version as installed

            typer.echo(f"lorakit {installed('lorakit')}")
            raise typer.Exit

    for name, line in COMMANDS.items():
        if name == asked:
            module = importlib.import_module(f"lorakit.cli.{name}_command")
            app.command(name, help=None)(module.command)
        else:
            app.command(name, help=line)(_placeholder)
    return typer.main.get_command(app)


def _placeholder() -> None:
    """Stands for a command that is not asked for."""
