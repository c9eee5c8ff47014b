"""Flags of specs that do not belong to a run file, made from their fields as in options.py."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lorakit.cli.options import flatten, parameter
from lorakit.option import options_of, parse

Spec = TypeVar("Spec")


def with_specs(
    command: Callable[..., None], panels: Mapping[str, type[Any]]
) -> Callable[..., None]:
    """Give a command the flags of whole specs; it receives them as `specs`, those given by name.

    Args:
        command: a function whose last parameter is `specs`.
        panels: a heading in the help for each spec.
    """
    signature = inspect.signature(command)
    own = [p for name, p in signature.parameters.items() if name != "specs"]
    chosen = [option for panel, spec in panels.items() for option in options_of(spec, panel)]
    added = [parameter(option, option.default) for option in chosen]

    def run(**values: Any) -> None:
        given = {option.name: values.pop(option.field) for option in chosen}
        command(**values, specs={k: v for k, v in given.items() if v is not None})

    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return run


def read_spec(spec: type[Spec], given: Mapping[str, Any]) -> Spec:
    """A spec with the values from the command line; values of other specs are ignored here.

    Raises:
        ConfigError: a value is not of its kind, or the spec refuses it.
    """
    known = {option.name: option for option in options_of(spec, "")}
    values = flatten({name: value for name, value in given.items() if name in known})
    return spec(**parse(known, values, "the command line"))
