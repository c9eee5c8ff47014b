"""`lorakit`: the list of commands, and how an error is shown to the user."""

import errno
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import typer

from lorakit.cli.mistakes import check_command, mended
from lorakit.cli.show import errors, show_error
from lorakit.cli.usage import UsageError, refusal
from lorakit.errors import InputError, InterruptedRunError, LorakitError
from lorakit.models.light import import_light
from lorakit.run.limits import limit_caches

# Command -> one line of help. A command's module is imported when that command runs:
# `lorakit --help` should not wait for torch.
COMMANDS = {
    "train": "Train an adapter for your task: a file of rows in, an adapter out.",
    "check": "Show what a run would do: rows, supervised tokens, plan, forecast. Trains nothing.",
    "compare": "Compare LoRA with full fine-tuning on your rows, by one protocol, with a verdict.",
    "rank": "Find the smallest rank that suffices for your task, and train the adapter.",
    "count": "Count the trainable parameters of one weight or of a whole model.",
    "eval": "Measure a model or an adapter on rows: loss, perplexity, scores.",
    "generate": "Generate completions of prompts, with or without an adapter.",
    "chat": "Chat with a model, an adapter, or several side by side.",
    "serve": "Serve a base and its adapters over HTTP, with OpenAI's API.",
    "merge": "Merge an adapter into its base: an ordinary model folder, with a certificate.",
    "export": "Write an adapter for peft, vLLM or llama.cpp, or list what they would refuse.",
    "import": "Convert an adapter that loralib or mlx-lm wrote.",
    "push": "Upload an adapter to the Hugging Face hub; private by default.",
    "pull": "Download an adapter from the Hugging Face hub and check every file's hash.",
    "demo": "Train the built-in model on a small task in minutes and see what changes.",
}
# Group -> its one line of help and its commands. `lorakit GROUP NAME` is `command` in
# cli/GROUP/NAME_command.py, imported like the others only when it runs.
GROUPS: dict[str, tuple[str, dict[str, str]]] = {
    "adapters": (
        "Keep adapters in a store: names, versions, history, comparison.",
        {
            "list": "List the names in the store: base, rank, size, scores.",
            "show": "Show where an adapter comes from, and which layers it changes most.",
            "add": "Copy an adapter into the store, as the newest version of a name.",
            "remove": "Remove names with their history, or single versions.",
            "rename": "Rename an adapter; its history stays with it.",
            "rollback": "Make an earlier version of a name current, or restore a removed name.",
            "log": "Show the history of a name.",
            "diff": "Compare two adapters: configuration, data, figures, weights.",
            "verify": "Check every stored file against its hash, every tensor, and the bases.",
            "gc": "Delete versions that no name needs, and leftovers of killed processes.",
            "combine": "Combine several adapters into one: weighted sum, TIES, DARE.",
            "extract": "Extract an adapter from a fine-tuned model and its base.",
            "shrink": "Lower an adapter's ranks, and measure what that does to its loss.",
        },
    ),
}

EXIT_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def main() -> None:
    """Entry point of the `lorakit` command."""
    limit_caches()
    import_light()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code: 0, 2 for bad input, 130 for Ctrl-C, else 1."""
    try:
        app = build(arguments)
        words = _checked(arguments, app)
        code = app(args=words, prog_name="lorakit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UsageError as error:
        if (message := refusal(error, *_command(arguments, app), arguments)) is not None:
            show_error(message)  # else a group alone: typer has shown its commands
        return EXIT_INPUT
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED
    except LorakitError as error:
        show_error(str(error))
        if isinstance(error, InterruptedRunError):
            return EXIT_INTERRUPTED
        return EXIT_INPUT if isinstance(error, InputError) else EXIT_FAILED
    except KeyboardInterrupt:
        errors.print("interrupted")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_FAILED
        if error.errno != errno.ENOSPC:
            raise
        show_error(
            f"no space left on the disk ({error.filename or 'while writing'}); files that were "
            "complete before are still there"
        )
        return EXIT_INPUT


def _checked(arguments: list[str], app: Any) -> list[str]:
    """The words, once every name in them is known.

    Raises:
        ConfigError: one is not; the message has the line that works.
    """
    names = {**dict.fromkeys(COMMANDS), **{group: inner for group, (_, inner) in GROUPS.items()}}
    check_command(arguments, names)
    path, inner = _command(arguments, app)
    if not path or hasattr(inner, "commands"):
        return arguments
    return [*path, *mended(path, arguments[len(path) :], inner.params)]


def _command(arguments: list[str], app: Any) -> tuple[list[str], Any]:
    """The words that name a command, and the command."""
    path: list[str] = []
    while len(path) < len(arguments) and arguments[len(path)] in getattr(app, "commands", {}):
        path.append(arguments[len(path)])
        app = app.commands[path[-1]]
    return path, app


def build(arguments: list[str]) -> Any:
    """The typer application; only the module of the command in `arguments` is imported."""
    app = typer.Typer(
        name="lorakit",
        help="Fine-tune language models by low-rank adaptation (LoRA): train, evaluate, merge and "
        "serve adapters on the machine you have. `lorakit demo` shows it in a few minutes; "
        "`lorakit COMMAND --help` explains a command.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="markdown",
    )
    words = [a for a in arguments if not a.startswith("-")]
    command, inner = (*words, None, None)[:2]

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            from importlib.metadata import version as installed

            typer.echo(f"lorakit {installed('lorakit')}")
            raise typer.Exit

    _fill(app, COMMANDS, command, "lorakit.cli")
    for name, (line, commands) in GROUPS.items():
        group = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
        _fill(group, commands, inner if name == command else None, f"lorakit.cli.{name}")
        app.add_typer(group, name=name, help=line)
    return typer.main.get_command(app)


def _fill(app: typer.Typer, commands: Mapping[str, str], command: str | None, room: str) -> None:
    """Register the commands of a table; only the module of `command` is imported."""
    for name, line in commands.items():
        if name == command:
            module = importlib.import_module(f"{room}.{name}_command")
            app.command(name, help=None)(module.command)
        else:
            app.command(name, help=line)(_placeholder)


def _placeholder() -> None:
    """Stands for a command that does not run."""
