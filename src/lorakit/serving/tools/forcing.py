"""The grammar of an answer that has to call a tool, in llguidance's Lark syntax. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.execution.tools.form import ARGS, PYTHON_TAG, TOOL_CALLS, ToolForm
from lorakit.serving.grammar import WHITESPACE


def forced(
    form: ToolForm,
    tools: Sequence[Mapping[str, Any]],
    specials: Mapping[str, int],
    *,
    several: bool,
) -> str:
    """The grammar: one call or several, each of one of the tools, with arguments by its schema.

    Args:
        form: how calls are written.
        tools: OpenAI's definitions of the functions that may be called.
        specials: ids of the special tokens among the form's marks, by their text.
        several: whether more than one call may come.
    """
    functions = [tool["function"] for tool in tools]
    rules = [
        f"arguments_{i}: %json {_schema(function.get('parameters'))}"
        for i, function in enumerate(functions)
    ]
    if form.named:
        after = _text(form.after, specials) if form.after else '""'
        calls = [
            f"{_text(TOOL_CALLS, specials)} {json.dumps(function['name'])} {after} arguments_{i}"
            for i, function in enumerate(functions)
        ]
    else:
        calls = [
            f'{json.dumps(_head(form, function["name"]))} arguments_{i} "}}"'
            for i, function in enumerate(functions)
        ]
    rules.append("one: " + " | ".join(calls))
    start = {
        "hermes": (f"{_text(form.before, specials)} one {_text(form.after, specials)}", '"\\n"'),
        "llama3_json": ("one", '"; "'),
        "mistral": ("one", '""' if form.named else '", "'),
    }[form.name]
    rules.append(f"call: {start[0]}")
    repeated = f"call ({start[1]} call)*" if several else "call"
    if form.list:
        repeated = f'{_text(form.before, specials)} "[" {repeated} "]"'
    if form.name == "llama3_json" and form.before == PYTHON_TAG:
        repeated = f"{_text(PYTHON_TAG, specials)} {repeated}"
    return "\n".join([f"start: {repeated}", *rules])


def _head(form: ToolForm, name: str) -> str:
    """A call up to its arguments, as `tojson` writes it."""
    return f'{{"name": {json.dumps(name)}, {json.dumps(form.key)}: '


def _schema(parameters: Mapping[str, Any] | None) -> str:
    schema = {"type": "object", **(parameters or {})}
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}})


def _text(text: str, specials: Mapping[str, int]) -> str:
    """A text as terminals: special tokens are no text to the library, and go by their ids."""
    for mark in (ARGS, *specials):
        if mark in specials and mark in text:
            before, _, after = text.partition(mark)
            parts = [before, None, after]
            written = [
                f"<[{specials[mark]}]>" if part is None else json.dumps(part)
                for part in parts
                if part is None or part
            ]
            return " ".join(written)
    return json.dumps(text)
