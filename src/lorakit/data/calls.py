"""Tools and their calls, as data sets write them -> OpenAI's form."""

import json
from collections.abc import Mapping
from typing import Any

from lorakit.data.columns import CONVERSATIONS, ROLE_KEYS, given
from lorakit.data.row import Row, WrittenObject
from lorakit.errors import DataError


def read_tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row in OpenAI's form, from `tools` or the older `functions`."""
    for name in ("tools", "functions"):
        value = row.fields.get(name)
        value = json_value(row, name, value) if given(value) else None
        if given(value):
            tools = [
                _without_nulls(t) if row.form == "arrow" else t for t in json_list(row, name, value)
            ]
            return tuple(
                {"type": "function", "function": t}
                if "name" in t and "function" not in t and t.get("type", "function") == "function"
                else t
                for t in tools
            )
    return ()


def spoken_call(clean: dict[str, Any], named: Any, where: str) -> dict[str, Any]:
    """A message whose text is a tool call as JSON: {"name": …, "arguments": …} or a list of them.

    The role `function` has both uses: LLaMA-Factory's documents call a tool call so, OpenAI a result.
    """
    text = clean.get("content", "")
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError):
        calls = None
    calls = [calls] if isinstance(calls, Mapping) else calls
    is_call = (
        isinstance(calls, list)
        and bool(calls)
        and all(isinstance(c, Mapping) and isinstance(c.get("name"), str) for c in calls)
        and all("arguments" in c or "parameters" in c for c in calls)
    )
    if named == "function" and (not is_call or "name" in clean):
        return clean
    if not is_call:
        raise DataError(
            f"{where} has the role {named!r}, and its text is no call as JSON, such as "
            f'{{"name": "f", "arguments": {{"a": 1}}}}: it is {text[:40]!r}'
        )
    return {**clean, "role": "assistant", "content": "", "tool_calls": calls}


def older_call(clean: dict[str, Any], where: str, row: Row) -> None:
    """OpenAI's older `function_call`, as the one tool call that it is."""
    call = clean.pop("function_call", None)
    call = _without_nulls(call) if row.form == "arrow" else call
    if not given(call):
        return
    if given(clean.get("tool_calls")):
        raise DataError(f"{where} has function_call and tool_calls; give tool_calls alone")
    if isinstance(call, str):
        (call, *more) = json_list(row, "function_call", call) or [None]
        if more:
            raise DataError(f"{where}: function_call holds {1 + len(more)} calls; give tool_calls")
    clean["tool_calls"] = [call]


def read_call(call: Any, where: str, row: Row) -> Mapping[str, Any]:
    """A tool call in OpenAI's form, its arguments as an object.

    Raises:
        DataError: it has no name, or its arguments are no object.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if function is None and isinstance(call, Mapping) and "name" in call:
        names = ("name", "arguments", "parameters")
        function = {k: call[k] for k in names if k in call}
        call = {k: v for k, v in call.items() if k not in names}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f"{where}: a tool call needs function.name and function.arguments, such as "
            '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}'
        )
    keys = [k for k in ("arguments", "parameters") if k in function]
    arguments = function[keys[0]] if keys else {}
    if isinstance(arguments, str):
        # OpenAI writes the arguments as JSON text. Chat templates apply tojson to them, and would
        # quote that text a second time. A call without arguments often has an empty text.
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{where}: the arguments of {function['name']!r} are not JSON ({reason})"
            ) from None
    elif row.form == "arrow":
        arguments = _without_nulls(arguments)
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"{where}: the arguments of {function['name']!r} must be an object; they are "
            f"{kind_of_value(arguments)}"
        )
    kept = {k: v for k, v in function.items() if k not in keys and v is not None}
    rest = {k: v for k, v in call.items() if v is not None}
    return {
        **rest,
        "type": rest.get("type", "function"),
        "function": {**kept, "arguments": arguments},
    }


def json_list(row: Row, name: str, value: Any) -> list[Any]:
    """A list of objects, as it is or as JSON text, which CSV and some Parquet files hold.

    Raises:
        DataError: it is neither.
    """
    value = json_value(row, name, value)
    if isinstance(value, Mapping):
        value = [value] if any(key in value for key in (*ROLE_KEYS, "name", "function")) else value
    if not isinstance(value, list | tuple) or not all(isinstance(m, Mapping) for m in value):
        raise DataError(
            f"{row.origin}: {name!r} must be a list of objects; it is {kind_of_value(value)}"
        )
    return list(value)


def json_value(row: Row, name: str, value: Any) -> Any:
    """A value as it is; of a text, the JSON in it.

    Raises:
        DataError: the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(
            f"{row.origin}: {name!r} is text but not JSON ({reason})"
            + (_python_text(name, value) or _plain_text(name, value))
        ) from None


def _python_text(name: str, text: str) -> str:
    if text.lstrip().startswith(("[{'", "{'", "[array", "array(")):
        return (
            ": it is Python's text of a list, as pandas' to_csv writes it. Write the rows with "
            "frame.to_json('rows.jsonl', orient='records', lines=True), or the column with "
            f"frame[{name!r}].map(json.dumps)"
        )
    return ""


def _plain_text(name: str, text: str) -> str:
    if name in CONVERSATIONS and not text.lstrip().startswith(("[", "{")):
        return (
            ': it must be a list such as [{"role": "user", "content": "…"}, {"role": "assistant", '
            '"content": "…"}]; or, to train on it as a whole text, name the column \'text\''
        )
    return ""


def kind_of_value(value: Any) -> str:
    """What a value is instead of a list of objects, for an error."""
    if isinstance(value, list | tuple):
        bad = next((v for v in value if not isinstance(v, Mapping)), None)
        return f"a list that holds {json.dumps(bad, ensure_ascii=False, default=str)[:40]}"
    return "null" if value is None else f"of type {type(value).__name__}"


def _without_nulls(value: Any) -> Any:
    """Without the keys that are null, at any depth; a null in a list stays.

    A column of Arrow has one type: an object gets a null for each key that the object of another row
    has. A null that somebody wrote cannot be told apart from those.
    """
    if isinstance(value, WrittenObject):
        return value
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(v) for v in value]
    return value
