"""One option: a field of a room's spec, and how its value is read from a run file or a flag."""

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from lorakit.errors import ConfigError
from lorakit.other_names import unknown_keys


@dataclass(frozen=True)
class Option:
    """One option of the run file, and the flag of the same name.

    `field` is its name in its spec; the two differ where the name is a reserved word of Python.
    """

    name: str
    field: str
    section: str
    kind: Any
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """--batch-size for batch_size."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_flag(self) -> bool:
        """Whether it is a switch without a value."""
        return self.kind is bool


def options_of(spec: type, section: str) -> tuple[Option, ...]:
    """One option for each field of a frozen spec.

    A field whose metadata has a "kind" takes more in Python than a file or a flag can hold.
    """
    hints = get_type_hints(spec)
    default = spec()
    return tuple(
        Option(
            f.metadata.get("name", f.name),
            f.name,
            section,
            f.metadata.get("kind", hints[f.name]),
            getattr(default, f.name),
            f.metadata["help"],
        )
        for f in fields(spec)
    )


def parse(known: Mapping[str, Option], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values by option name, each of its option's kind.

    Raises:
        ConfigError: a name is unknown (the nearest is named), or a value is not of its kind.
    """
    if unknown := {name: value for name, value in values.items() if str(name) not in known}:
        raise ConfigError(unknown_keys(unknown, known, source))
    return {str(name): _parsed(known[str(name)], value, source) for name, value in values.items()}


def _parsed(option: Option, value: Any, source: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    origin = get_origin(option.kind)
    if origin is tuple and isinstance(value, str):
        value = _split(value)
    elif origin is not None and issubclass_mapping(origin) and isinstance(value, str):
        value = read_mapping(option, value, source)
    try:
        parsed = TypeAdapter(option.kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise ConfigError(
            f"{source}: {option.name} is {value!r}; it must be {describe(option.kind)} ({problem})"
        ) from None
    return dict(parsed) if isinstance(parsed, Mapping) else parsed


def read_mapping(option: Option, text: str, source: str = "the command line") -> Mapping[str, Any]:
    """NAME=VALUE, or a mapping such as {NAME: VALUE}; a value is read as YAML reads it.

    Raises:
        ConfigError: it is neither.
    """
    import yaml

    name, equals, value = text.partition("=")
    try:
        if equals and option.name == "task_option" and "{" not in name:
            # A value of another option, read as its own flag would read it.
            return {name.strip(): value}
        if equals and name.strip().isidentifier():
            return {name.strip(): yaml.safe_load(value)}
        pairs = yaml.safe_load(text)
    except yaml.YAMLError:
        pairs = None
    if not isinstance(pairs, Mapping):
        raise ConfigError(
            f"{source}: {option.flag} {text!r}: write NAME=VALUE, for example "
            f"{option.flag} {_EXAMPLES.get(option.name, 'q_proj=4')}"
        )
    return pairs


_EXAMPLES = {
    "template_option": "enable_thinking=false",
    "task_option": "mails.eval_data=held.jsonl",
}


def _split(text: str) -> tuple[str, ...]:
    # A regular expression may hold commas of its own.
    if text.startswith("re:"):
        return (text,)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def issubclass_mapping(origin: Any) -> bool:
    """Whether a type's origin is a mapping."""
    return isinstance(origin, type) and issubclass(origin, Mapping)


def describe(kind: Any) -> str:
    """A type in words: 'a whole number', 'auto or a number', 'error, drop or cut'."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "on or off"}
    if kind in names:
        return names[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments if a is not type(None))
    if origin is tuple:
        return "a list, or texts with commas between"
    if origin is not None and issubclass_mapping(origin):
        return "a mapping such as {q_proj: 4}"
    return " or ".join(repr(a) for a in arguments)
