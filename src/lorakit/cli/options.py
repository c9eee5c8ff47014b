"""Flags made from the fields of the specs, so that no option is declared twice."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from lorakit.config import options
from lorakit.option import Option, issubclass_mapping, options_of, read_mapping

PANELS = {
    "model": "Model",
    "data": "Data",
    "lora": "Low-rank adaptation",
    "start": "Low-rank adaptation",
    "train": "Training",
    "together": "Several adapters concurrently",
    "output": "Output",
    "answers": "Rows of a file",
    "compare": "Comparison",
    "search": "Search",
}


def with_options(
    command: Callable[..., None],
    names: Sequence[str] | None = None,
    also: tuple[str, type] | None = None,
    shown: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Callable[..., None]:
    """Give a command the flags of these options (all of them by default).

    The command keeps its own parameters; after them it receives `flags`, a mapping of the options
    that the user gave. A flag that is left out is not in it, so that the value in the run file
    holds.

    Args:
        command: a function whose last parameter is `flags`.
        names: of the options, in any order.
        also: section and spec of options that only this command has; they are listed first.
        shown: defaults that the help names and the command itself applies, after the run file.
        defaults: other defaults for some options, in this command.
    """
    chosen = list(options_of(also[1], also[0])) if also else []
    chosen += [option for option in options() if names is None or option.name in names]
    signature = inspect.signature(command)
    own = [p for name, p in signature.parameters.items() if name != "flags"]
    named = {**defaults, **(shown or {})}
    added = [parameter(option, named.get(option.name, option.default)) for option in chosen]

    def run(**values: Any) -> None:
        given = {o.name: _joined(o, values.pop(o.field)) for o in chosen}
        flags = defaults | {name: value for name, value in given.items() if value is not None}
        command(**values, flags=flags)

    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    positional = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*positional, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return run


def parameter(option: Option, default: Any) -> inspect.Parameter:
    """The flag of an option, as typer reads it from a signature."""
    shown = _shown(default)
    help_text = option.help + (f" [default: {shown}]" if shown else "")
    panel = PANELS.get(option.section, option.section)
    if option.is_flag:
        off = "--no-" + option.name.replace("_", "-")
        info = typer.Option(
            f"{option.flag}/{off}", help=help_text, rich_help_panel=panel, show_default=False
        )
        kind: Any = Annotated[bool | None, info]
    else:
        info = typer.Option(
            option.flag,
            help=help_text,
            metavar=_metavar(option.kind),
            rich_help_panel=panel,
            show_default=False,
        )
        many = get_origin(option.kind) is tuple or _is_mapping(option.kind)
        kind = Annotated[list[str] | None, info] if many else Annotated[str | None, info]
    return inspect.Parameter(
        option.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind
    )


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return origin is not None and issubclass_mapping(origin)


def _joined(option: Option, value: Any) -> Any:
    """The pairs of a repeated flag as one mapping; what is no such flag as it is."""
    if value is None or not _is_mapping(option.kind):
        return value
    pairs: dict[str, Any] = {}
    for text in value:
        pairs |= read_mapping(option, text)
    return pairs


def _shown(default: Any) -> str:
    if default is None or default == () or default == {}:
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _metavar(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return "|".join(_metavar(a) for a in arguments if a is not type(None))
    if origin is not None and isinstance(origin, type) and issubclass(origin, tuple):
        return "A,B,…"
    if _is_mapping(kind):
        return "NAME=VALUE"
    if arguments:
        return "|".join(str(a) for a in arguments)
    return {int: "INT", float: "NUMBER", str: "TEXT", bool: "on|off"}.get(kind, "VALUE")


def flatten(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Repeated flags joined: ['a', 'b,c'] is a, b and c, as one 'a,b,c' would be."""
    flat: dict[str, Any] = {}
    for name, value in flags.items():
        if isinstance(value, list):
            parts = [
                piece.strip()
                for item in value
                for piece in ([item] if item.startswith("re:") else item.split(","))
            ]
            flat[name] = tuple(part for part in parts if part)
        else:
            flat[name] = value
    return flat
