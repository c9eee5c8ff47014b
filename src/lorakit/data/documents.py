"""JSON text -> rows: one object a line, arrays, objects over many lines, tables turned on their side.

A file is read line by line as long as each line holds one object. Where the first value is a list, or
a value goes on over several lines, the rest of the file is read as one text. Where the file holds one
object only, it may wrap its rows, and `_unwrap` says how.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorakit.data.columns import are_messages, is_message, is_row
from lorakit.data.files import lines
from lorakit.data.formats import DataFile
from lorakit.data.json_text import JSON, SPACE, JsonText, why
from lorakit.data.row import Row
from lorakit.errors import DataError


def json_rows(file: DataFile) -> Iterator[Row]:
    """The rows of a file of JSON, each with the line it begins on.

    Raises:
        DataError: naming the line, where the text is not JSON or a value is no row.
    """
    line, part = 0, 1
    for row in _rows(file):
        part = part + 1 if row.line == line else 1
        line = row.line
        yield replace(row, part=part) if part > 1 else row


def _rows(file: DataFile) -> Iterator[Row]:
    source = lines(file)
    only: tuple[int, Any, str] | None = None  # the first row, until there is another
    seen = False
    for number, text in enumerate(source, 1):
        bare = text.strip(SPACE)
        if not bare:
            continue
        if not seen and bare.startswith("["):
            yield from _whole(file, text.lstrip("\ufeff") + "".join(source), number)
            return
        try:
            value = JSON.decode(bare)
        except json.JSONDecodeError as error:
            if error.pos < len(bare):
                raise DataError(f"{file.name}:{number}: {why(error, text)}") from None
            if only is not None:
                yield _row(file, *only)
            yield from _whole(file, text.lstrip("\ufeff") + "".join(source), number, first=not seen)
            return
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file.name}:{number}: {why(error)}") from None
        if only is not None:
            yield _row(file, *only)
            only = None
        if seen:
            yield _row(file, number, value, bare)
        else:
            only, seen = (number, value, bare), True
    if only is not None:
        yield from _unwrap(file, *only)


def _row(file: DataFile, line: int, value: Any, text: str, reading: str = "") -> Row:
    where = f"{file.name}:{line}"
    if isinstance(value, list) and are_messages(value):
        reading = reading or "holds one conversation, a list of messages, a line"
        value = {"messages": value}
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: a row must be a JSON object such as {{"prompt": …, "completion": …}}; this '
            f"is {text.strip()[:40]!r}{_about(value)}"
        )
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: broken JSON: half of a surrogate pair (\\ud800 to \\udfff alone)"
            ) from None
    return Row(file.name, line, value, reading=reading)


def _about(value: Any) -> str:
    if isinstance(value, str):
        return '. To train on plain text, write {"text": …}'
    if isinstance(value, list):
        return ". Write a list of values as an object that names them"
    return ""


def _whole(file: DataFile, content: str, line: int, *, first: bool = True) -> Iterator[Row]:
    text = JsonText(file.name, content, line)
    at = text.skip(0)
    if content.startswith("[", at) and first:
        yield from _list(file, text, at)
        return
    only: tuple[int, int, Any] | None = None
    while at < len(content):
        value, end = text.value(at)
        if first and not only and text.skip(end) == len(content):
            yield from _unwrap(file, text.line(at), value, content[at:end])
            return
        only = (at, end, value)
        yield _row(file, text.line(at), value, content[at:end])
        at = text.skip(end)
        if content.startswith(",", at):
            raise text.broken(
                at,
                "a comma after a row. Remove it, or write all rows between [ and ] in a .json file",
            )


def _list(file: DataFile, text: JsonText, at: int) -> Iterator[Row]:
    """The rows of a list; a list of messages is one row."""
    content = text.text
    opened = text.skip(at + 1)
    head = text.value(opened)[0] if content[opened : opened + 1] in ("{", "[") else None
    if is_message(head) and not is_row(head):
        while at < len(content):
            value, end = text.value(at)
            yield _row(file, text.line(at), value, content[at:end])
            at = text.skip(end)
        return
    reading = "holds a list of conversations, each a list of messages" if are_messages(head) else ""
    end = at
    for begin, end, value in text.items(at):
        if begin < end:
            yield _row(file, text.line(begin), value, content[begin:end], reading)
    if rest := content[end:].strip(SPACE):
        advice = ""
        if rest.startswith("["):
            advice = ": write the rows of all lists into one, or each list to a file of its own"
        raise text.broken(text.skip(end), f"{rest[:20]!r} after the closing ']'{advice}")


def _unwrap(file: DataFile, line: int, value: Any, content: str) -> Iterator[Row]:
    """The rows of a file that holds one value only: that value, or what it wraps."""
    if not isinstance(value, dict):
        yield _row(file, line, value, content)
        return
    columns = _columns(file, line, value)
    if columns is not None:
        yield from columns
        return
    lists = [k for k, v in value.items() if _objects(v) and not are_messages(v)]
    lists = [k for k in lists if not _part_of_row(value, k)]
    rows = [k for k in lists if all(map(is_row, value[k]))]
    if len(lists) > 1 and (len(rows) > 1 or not is_row(value)):
        names = ", ".join(map(repr, lists[:6]))
        raise DataError(
            f"{file.name}:{line}: one object with several lists of rows ({names}), and it is not "
            "clear which to train on: write each list to a file of its own"
        )
    if len(lists) == 1 and (rows or not is_row(value)):
        reading = f"holds its rows in the list under {lists[0]!r}"
        others = [k for k in value if k != lists[0]]
        if others:
            reading += f" ({', '.join(map(repr, others[:6]))} beside it not used)"
        text = JsonText(file.name, content, line)
        for begin, end, item in text.items(_place(text, lists[0])):
            if begin < end:
                yield _row(file, text.line(begin), item, content[begin:end], reading)
        return
    if _by_key(value):
        text = JsonText(file.name, content, line)
        for _, begin, end, item in _members(text):
            yield _row(
                file,
                text.line(begin),
                item,
                content[begin:end],
                "holds one object whose values are the rows (its keys are not used)",
            )
        return
    if len(value) == 1 and not is_row(value):
        ((key, begin, end, inside),) = _members(JsonText(file.name, content, line))
        if isinstance(inside, dict) and _wraps(inside):
            begins = line + content.count("\n", 0, begin)
            for row in _unwrap(file, begins, inside, content[begin:end]):
                yield replace(row, reading=f"wraps everything in {key!r} and {row.reading}")
            return
    yield _row(file, line, value, content)


def _part_of_row(value: Mapping[str, Any], name: str) -> bool:
    """Whether an object is a row by its other columns, and the list beside them a part of it.

    A list of {"text": …} beside a text may be anything that was found in it.
    """
    others = {k: v for k, v in value.items() if k != name}
    if not is_row(others):
        return False
    return is_row({k: v for k, v in others.items() if k != "text"}) or not all(
        is_row({k: v for k, v in item.items() if k != "text"}) for item in value[name]
    )


def _wraps(value: Mapping[str, Any]) -> bool:
    """Whether an object holds rows, at some depth of objects with one key."""
    inner = next(iter(value.values())) if len(value) == 1 else None
    if any(_objects(v) and not are_messages(v) for v in value.values()):
        return not is_row(value)
    return _by_key(value) or (isinstance(inner, dict) and _wraps(inner))


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _by_key(value: Mapping[str, Any]) -> bool:
    """{"0": row, "1": row} as pandas writes orient="index", or rows by an id of their own."""
    items = list(value.values())
    if not items or is_row(value) or not all(isinstance(v, dict) and v for v in items):
        return False
    return all(k.isdecimal() for k in value) or all(is_row(v) and set(v) != {"text"} for v in items)


def _columns(file: DataFile, line: int, value: Mapping[str, Any]) -> Iterator[Row] | None:
    """The rows of a table that was written column by column, None where it is none."""
    if set(value) in ({"columns", "data"}, {"columns", "index", "data"}):
        names, table = value["columns"], value["data"]
        if isinstance(names, list) and _lists(table) and all(len(r) == len(names) for r in table):
            rows = [dict(zip(map(str, names), r, strict=True)) for r in table]
            return _turned(file, rows, "is a table in one object (pandas' orient='split')")
    items = list(value.values())
    if not items:
        return None
    if all(isinstance(v, dict) for v in items):
        keys = list(items[0])
        named = (
            len(items) > 1 and is_row(value) and not any(map(is_message, items))
        )  # an index of names
        numbered = all(k.isdecimal() for k in keys)
        if keys and (numbered or named) and all(list(v) == keys for v in items):
            rows = [{name: column[k] for name, column in value.items()} for k in keys]
            return _turned(file, rows, "is a table written column by column (pandas' to_json)")
        return None
    lists = {name: v for name, v in value.items() if isinstance(v, list)}
    if not any(lists.values()) or not (len(lists) == len(value) or is_row(lists)):
        return None
    if any(isinstance(v[0], dict) for v in lists.values() if v):
        return None  # messages, or a list of rows
    others = [name for name in value if name not in lists]
    lengths = {name: len(column) for name, column in lists.items()}
    if len(set(lengths.values())) > 1:
        if not is_row(lists):
            return None
        shown = ", ".join(f"{name!r} {n:,}" for name, n in lengths.items())
        raise DataError(
            f"{file.name}:{line}: one object whose columns are lists of different lengths ({shown}): "
            "a table written column by column needs as many values in each"
        )
    if len(lists) == 1 and not is_row(lists):
        return None
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    beside = f" ({', '.join(map(repr, others[:6]))} beside them not used)" if others else ""
    return _turned(file, rows, f"is a table written column by column, a list for each{beside}")


def _lists(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, list) for v in value)


def _turned(file: DataFile, rows: Sequence[dict[str, Any]], reading: str) -> Iterator[Row]:
    """Rows of a table on its side: they have no lines of their own and are numbered."""
    for number, row in enumerate(rows, 1):
        yield _row(file, number, row, json.dumps(row), f"{reading}; its rows are numbered from 1")


def _members(text: JsonText) -> Iterator[tuple[str, int, int, Any]]:
    """(key, begin, end, value) of an object that opens the text."""
    at = text.skip(text.skip(0) + 1)
    while not text.text.startswith("}", at):
        key, end = text.value(at)
        at = text.skip(text.skip(end) + 1)
        value, end = text.value(at)
        yield key, at, end, value
        at = text.skip(end)
        if text.text.startswith(",", at):
            at = text.skip(at + 1)


def _place(text: JsonText, key: str) -> int:
    return next(begin for name, begin, _, _ in _members(text) if name == key)
