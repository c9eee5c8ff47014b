"""What stands around a prompt and its answer in a row: a system text, earlier turns, a worse answer."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from lorakit.data.calls import json_list, json_value
from lorakit.data.columns import ROLE_KEYS, are_messages, given, is_row, listed
from lorakit.data.conversations import Message, read_messages
from lorakit.data.mapping import write_value
from lorakit.data.row import Row
from lorakit.errors import DataError

SYSTEMS = ("system", "system_prompt")
"""Columns with the system message of a row."""
LABELS = ("label", "kto_tag", "desirable")
"""Columns that mark an answer as good (true) or bad (false)."""
_LEAST_WEIGHT = 1e-30


def column(row: Row, name: str) -> Any:
    """A column that the rows before it have.

    Raises:
        DataError: the row has not, with the nearest names.
    """
    if name in row.fields:
        return row.fields[name]
    if is_row(row.fields):
        raise DataError(
            f"{row.origin}: no column {name!r}, which the rows before it have: this row has the "
            f"columns {listed(list(row.fields))}, which are read in another way. All rows of a run are "
            "of one form: write them with the same columns"
        )
    near = difflib.get_close_matches(name, map(str, row.fields), n=1)
    instead = f"{near[0]!r}: rename it" if near else f"the columns {listed(list(row.fields))}"
    raise DataError(
        f"{row.origin}: no column {name!r}, which the rows before it have; this row has {instead}"
    )


def weight_of(row: Row, name: str) -> float:
    """How much a row's loss counts, by a column of numbers.

    Raises:
        DataError: the column is missing, or holds no finite number above 0.
    """
    value = column(row, name)
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    # As float32 holds it: a table of rows does.
    if not _LEAST_WEIGHT <= weight <= 1 / _LEAST_WEIGHT:
        shown = "null" if value is None else write_value(value, row.origin)
        raise DataError(
            f"{row.origin}: {name!r} is {shown}, and a row's weight is a "
            "number above 0 (between 1e-30 and 1e30): leave out rows that are not to count"
        )
    return weight


def text_of(row: Row, name: str) -> str:
    """A column as text."""
    return write_value(column(row, name), f"{row.origin}: {name!r}")


def optional(row: Row, name: str) -> str:
    """A column as text, empty where the row does not have it or it holds nothing."""
    return text_of(row, name) if given(row.fields.get(name)) else ""


def full(row: Row, name: str) -> str:
    """A column as text that is not empty."""
    return not_empty(text_of(row, name), row, repr(name))


def not_empty(text: str, row: Row, what: str) -> str:
    """The text, where there is one.

    Raises:
        DataError: it is empty.
    """
    if not text.strip():
        raise DataError(f"{row.origin}: {what} is empty, so there is nothing to learn from the row")
    return text


def system_message(row: Row) -> list[Message]:
    """The row's own system message, from its column."""
    name = next((n for n in SYSTEMS if given(row.fields.get(n))), None)
    return [{"role": "system", "content": text_of(row, name)}] if name else []


def instruction(row: Row) -> str:
    """`instruction` and `input`, an empty line between; either may be empty."""
    column(row, "instruction")
    parts = [text for name in ("instruction", "input") if (text := optional(row, name))]
    return not_empty("\n\n".join(parts), row, "'instruction' (and 'input')")


def history(row: Row) -> list[Message]:
    """Earlier turns: `history` is a list of [question, answer], as LLaMA-Factory writes it.

    Its answers are supervised, as they are there.
    """
    value = row.fields.get("history")
    value = json_value(row, "history", value) if given(value) else None
    if not given(value):
        return []
    if like_messages(value):
        return read_messages(row, value, "history")
    turns: list[Message] = []
    pairs = value if isinstance(value, list | tuple) else [value]
    for i, pair in enumerate(pairs, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or any(p is None for p in pair):
            raise DataError(
                f"{row.origin}: 'history' must be a list of [question, answer]; its item {i} is "
                f"{str(pair)[:40]!r}"
            )
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": write_value(text, f"{row.origin}: 'history'")})
    return turns


def like_messages(value: Any) -> bool:
    """Whether a value is meant as messages: one or a list, some of which say who speaks."""
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple) or not items:
        return False
    if not all(isinstance(m, Mapping) for m in items):
        return False
    return any(key in m for m in items for key in ROLE_KEYS)


def messages_in(row: Row, value: Any, name: str) -> list[Message] | None:
    """The messages of a column that may also hold text, None where it does.

    In a table of text (CSV), messages are JSON text.

    Raises:
        DataError: an empty list, or messages that cannot be read.
    """
    if row.form == "table" and isinstance(value, str) and value.lstrip().startswith(("[{", "{")):
        try:
            found = json_list(row, name, value)
        except DataError:
            return None
        value = found if are_messages(found) else value
    if value == [] and not isinstance(value, str):
        raise DataError(f"{row.origin}: {name!r} is an empty list of messages")
    return read_messages(row, value, name) if like_messages(value) else None


def joined(row: Row, asked: list[Message], answered: list[Message], name: str) -> list[Message]:
    """A prompt's messages and those of its answer, from column `name`.

    Some sets of preferences repeat the prompt at the beginning of the answer's messages, with a system
    message before it or without.

    Raises:
        DataError: the answer's messages begin with another question, so it is not clear what is asked.
    """
    if not asked or not answered or answered[0]["role"] in ("assistant", "tool"):
        return [*asked, *answered]
    if answered[: len(asked)] == asked:
        return answered
    texts = [m["content"].strip() for m in answered if m["role"] == "user"]
    if len(asked) == 1 and asked[0]["content"].strip() in ("", *texts):
        return answered
    if asked[-1]["role"] in ("assistant", "tool") and answered[0]["role"] == "user":
        return [*asked, *answered]
    raise DataError(
        f"{row.origin}: {name!r} begins with a message of the role {answered[0]['role']!r} that the "
        "prompt does not hold, so it is not clear what is asked: let it hold the answer alone, or the "
        "whole conversation and no prompt"
    )


def refuse_bad(row: Row, *, numbers: bool) -> None:
    """Refuse a row that is marked as a bad answer: training would teach it.

    numbers: 0 means false in `label` too; beside a conversation it may be a class of its own.

    Raises:
        DataError: `label`, `kto_tag` or `desirable` is false.
    """
    for name in LABELS:
        value = row.fields.get(name)
        said = value.strip().lower() if row.form == "table" and isinstance(value, str) else value
        zero = (numbers or name != "label") and said in (0, "0")
        if said is False or said == "false" or zero:
            raise DataError(
                f"{row.origin}: {name!r} is {'0' if zero and said is not False else 'false'}, which marks a bad answer in preference rows (KTO), "
                "and training would teach it: leave such rows out. If it means something else, map "
                "the columns, for example --prompt '{prompt}' --completion '{completion}'"
            )
