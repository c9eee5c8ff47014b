"""Frozen dataclasses as plain JSON and back, in one place and strictly."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lorakit.errors import OutputError, did_you_mean

T = TypeVar("T")


class RecordError(OutputError):
    """JSON that does not have the fields of the dataclass it should be."""


def to_json(value: Any) -> Any:
    """A dataclass, and whatever lies in it, as plain JSON values.

    >>> from lorakit.experiments.rates import Round
    >>> to_json(Round(rates=5, steps=10))
    {'rates': 5, 'steps': 10}

    Raises:
        TypeError: a value has no JSON form.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def from_json(kind: type[T], plain: Any, where: str = "") -> T:
    """A dataclass from what `to_json` made of it.

    >>> from lorakit.experiments.rates import Round
    >>> from_json(Round, {"rates": 5, "steps": 10})
    Round(rates=5, steps=10)

    Args:
        kind: the dataclass.
        plain: JSON values.
        where: what the JSON belongs to, for the message of an error.

    Raises:
        RecordError: a key is unknown or missing, or a value is not of its type; the message names
            the key and `where`.
    """
    record: T = _parsed(kind, plain, where or kind.__name__)
    return record


def _parsed(kind: Any, plain: Any, where: str) -> Any:
    if kind is Any:
        return plain
    if is_dataclass(kind):
        return _dataclass(kind, plain, where)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), plain, where)
    if origin is Literal:
        _expect(plain in get_args(kind), f"one of {get_args(kind)}", plain, where)
        return plain
    if origin is tuple:
        return _tuple(get_args(kind), plain, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(isinstance(plain, Mapping), "an object", plain, where)
        key_kind, value_kind = get_args(kind)
        return {
            key_kind(key): _parsed(value_kind, each, f"{where}.{key}")
            for key, each in plain.items()
        }
    number = isinstance(plain, int | float) and not isinstance(plain, bool)
    if kind is float and number:
        return float(plain)
    right = isinstance(plain, kind) and (kind is not int or not isinstance(plain, bool))
    _expect(right, kind.__name__, plain, where)
    return plain


def _dataclass(kind: Any, plain: Any, where: str) -> Any:
    _expect(isinstance(plain, Mapping), "an object", plain, where)
    known, hints = {f.name: f for f in fields(kind)}, get_type_hints(kind)
    for name in plain:
        if name not in known:
            raise RecordError(f"{where}: unknown key {name!r}; {did_you_mean(str(name), known)}")
    for name, each in known.items():
        if name not in plain and each.default is MISSING and each.default_factory is MISSING:
            raise RecordError(f"{where}: the key {name!r} is missing")
    return kind(**{name: _parsed(hints[name], plain[name], f"{where}.{name}") for name in plain})


def _union(kinds: Sequence[Any], plain: Any, where: str) -> Any:
    """The first of the types that takes it, such as token ids or a text."""
    if plain is None and type(None) in kinds:
        return None
    *others, last = (each for each in kinds if each is not type(None))
    for kind in others:
        try:
            return _parsed(kind, plain, where)
        except RecordError:
            continue
    return _parsed(last, plain, where)


def _tuple(kinds: Sequence[Any], plain: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(plain, list | tuple), "a list", plain, where)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = [kinds[0]] * len(plain)
    _expect(len(kinds) == len(plain), f"a list of {len(kinds)}", plain, where)
    return tuple(
        _parsed(kind, each, f"{where}[{i}]")
        for i, (kind, each) in enumerate(zip(kinds, plain, strict=True))
    )


def _expect(right: bool, expected: str, plain: Any, where: str) -> None:
    if not right:
        raise RecordError(f"{where}: {expected} is expected, and not {plain!r:.60}")
