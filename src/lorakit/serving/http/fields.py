"""How the fields of a request are read: unknown ones are errors, nulls are as if left out."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lorakit.errors import did_you_mean

Text = Annotated[str, Field(max_length=1 << 20)]
MOST_TOKENS = 1 << 24


class Strict(BaseModel):
    """Unknown fields are errors that name the nearest; a null stands for the field's default."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_and_given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        for name in values:
            if name not in fields:
                raise ValueError(f"there is no field {name!r}; {did_you_mean(str(name), fields)}")
        return {k: v for k, v in values.items() if v is not None or fields[k].is_required()}


def same(value: Any, other: Any) -> bool:
    """Whether two values of JSON are the same; true is not 1.

    >>> same(1, 1.0), same(True, 1)
    (True, False)
    """
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def resting(*values: Any, instead: str = "") -> Any:
    """The type of a field that this server does not do: null and these values change nothing.

    Args:
        values: accepted besides null.
        instead: what to do in its place, for the message.
    """
    return Annotated[
        Any,
        BeforeValidator(_only(values, instead)),
        Field(default=None, description="Accepted where it changes nothing: " + _listed(values)),
    ]


def _only(values: tuple[Any, ...], instead: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value is None or any(same(value, one) for one in values):
            return value
        hint = instead or f"leave it out, or give {_listed(values)}"
        raise ValueError(f"this is not supported; {hint}")

    return check


def _listed(values: tuple[Any, ...]) -> str:
    import json

    return " or ".join(["null", *(json.dumps(value) for value in values)])
