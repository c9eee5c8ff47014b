"""Flags of specs that are no part of a run file, made from their fields as options.py does."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from lorakit.cli.options import parameter
from lorakit.config import Option, describe
from lorakit.errors import ConfigError

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
    chosen = [option for panel, spec in panels.items() for option in _options(panel, spec)]
    added = [parameter(option, option.default) for option in chosen]

    def run(**values: Any) -> None:
        given = {option.name: values.pop(option.name) for option in chosen}
        command(**values, specs={k: v for k, v in given.items() if v is not None})

    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return run


def read_spec(spec: type[Spec], given: Mapping[str, Any]) -> Spec:
    """A spec with the values that the command line gave.

    Raises:
        ConfigError: a value is not of its kind, or the spec refuses it.
    """
    values = {}
    for option in _options("", spec):
        if option.name not in given:
            continue
        value = given[option.name]
        if get_origin(option.kind) is tuple:
            value = tuple(part for item in value for part in item.split(",") if part)
        try:
            values[option.name] = TypeAdapter(option.kind).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ConfigError(
                f"{option.flag} is {value!r}; it must be {describe(option.kind)} ({problem})"
            ) from None
    return spec(**values)


def _options(panel: str, spec: type[Any]) -> list[Option]:
    hints, default = get_type_hints(spec), spec()
    return [
        Option(f.name, f.name, panel, hints[f.name], getattr(default, f.name), f.metadata["help"])
        for f in fields(spec)
    ]
