"""The form in which a model writes a tool call: the one in which its chat template writes one.

A conversation with a call in it is rendered and looked at. Models are trained on what their template
writes, whatever they are called. Known forms, by the names of vLLM's parsers:

    hermes       <tool_call>\\n{"name": "f", "arguments": {…}}\\n</tool_call>     Hermes, Qwen
    llama3_json  {"name": "f", "parameters": {…}}, maybe after <|python_tag|>    Llama 3
    mistral      [TOOL_CALLS] [{"name": "f", "arguments": {…}}]                  Mistral, until 2024
                 [TOOL_CALLS]f[ARGS]{…}, maybe with [CALL_ID] before             Mistral, since
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lorakit.data import Example, Template, encode_prompt
from lorakit.errors import LorakitError

_CALLED, _DEFINED, _QUESTION = "lorakit_called", "lorakit_defined", "lorakit asks for a call"
_TOOL = {
    "type": "function",
    "function": {
        "name": _DEFINED,
        "description": "A tool.",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "description": "A text."}},
            "required": ["key"],
        },
    },
}
_CALL = {
    "id": "a1B2c3D4e",  # nine letters and digits: Mistral's templates take no other
    "type": "function",
    "function": {"name": _CALLED, "arguments": {"key": "value"}},
}
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolForm:
    """How calls are written.

    Attributes:
        name: of vLLM's parser for them.
        key: what the arguments are called beside the name.
        before: what stands before a call's JSON, as the template writes it.
        after: what stands after it.
        list: whether the calls of an answer are one JSON array.
        named: whether the name stands before the JSON, which is the arguments alone.
        specials: special tokens among the marks, which are to be shown in the text.
    """

    name: Literal["hermes", "llama3_json", "mistral"]
    key: str
    before: str
    after: str = ""
    list: bool = False
    named: bool = False
    specials: frozenset[int] = frozenset()


def find_form(tokenizer: Any, template: Template) -> ToolForm | None:
    """The form in which a template writes calls; None where it writes none, or in no known form."""
    if template.kind == "raw":
        return None
    user = {"role": "user", "content": _QUESTION}
    called = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    result = {"role": "tool", "content": "42", "tool_call_id": _CALL["id"], "name": _CALLED}
    empty = {"role": "assistant", "content": ""}

    def written(*messages: Any) -> str:
        example = Example(origin="tools", messages=(*messages, empty), tools=(_TOOL,))
        ids = encode_prompt(example, tokenizer, template)
        text = str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
        return text.rpartition(_QUESTION)[2] if text.count(_QUESTION) == 1 else ""

    plain, text = (
        _first(written, (user,)),
        _first(written, (user, called, result), (user, called, user)),
    )
    form = _read(text, plain)
    if form is None:
        return None
    return _with_specials(form, tokenizer)


def _first(written: Callable[..., str], *conversations: tuple[Any, ...]) -> str:
    """The first of some conversations that the template takes."""
    for messages in conversations:
        try:
            return written(*messages)
        except LorakitError:
            continue
    return ""


def _with_specials(form: ToolForm, tokenizer: Any) -> ToolForm:
    marks = {PYTHON_TAG, TOOL_CALLS, CALL_ID, ARGS, OPEN, CLOSE}
    shown = {
        int(id)
        for id, token in tokenizer.added_tokens_decoder.items()
        if token.special and str(token) in marks
    }
    return ToolForm(**{**form.__dict__, "specials": frozenset(shown)})


def _read(text: str, plain: str) -> ToolForm | None:
    """The form of the call in `text`; `plain` is what stands before an answer without one."""
    at = text.find(_CALLED)
    if at < 0:
        return None
    head, tail = text[:at], text[at:]
    if mark := re.search(r"\[TOOL_CALLS\]\s*$", head):
        between = re.match(_CALLED + r"(\[CALL_ID\][^\[{]*)?(\[ARGS\])?\s*\{", tail)
        if between is None:
            return None
        return ToolForm("mistral", "arguments", mark[0], ARGS if between[2] else "", named=True)
    if mark := re.search(r"\[TOOL_CALLS\]\s*\[\s*\{[^{}\[\]]*$", head):
        return ToolForm("mistral", "arguments", mark[0].partition("[{")[0], list=True)
    start = head.rfind("{")
    try:
        call, length = json.JSONDecoder().raw_decode(text[start:] if start >= 0 else "")
    except ValueError:
        return None
    key = next((k for k in ("arguments", "parameters") if k in call), None)
    if call.get("name") != _CALLED or key is None:
        return None
    rest = text[start + length :]
    if (mark := re.search(re.escape(OPEN) + r"\s*$", head[:start])) and (
        end := re.match(r"\s*" + re.escape(CLOSE), rest)
    ):
        return ToolForm("hermes", key, mark[0], end[0])
    own = head[:start].removeprefix(plain.rstrip()).strip() if plain.strip() else None
    if own in ("", PYTHON_TAG) and head.startswith(plain.rstrip()):
        return ToolForm("llama3_json", key, own)
    return None
