"""The columns of a file's first row -> the shape of its rows: prompt, answer, conversation or text."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote

from lorakit.data.around import SYSTEMS, like_messages, weight_of
from lorakit.data.columns import CONVERSATIONS, ROLE_KEYS, given, is_message, listed, suggest, worse
from lorakit.data.conversations import other_roles
from lorakit.data.mapping import Mapper
from lorakit.data.row import Row, WrittenObject
from lorakit.data.shapes import Shape
from lorakit.data.spec import DataSpec
from lorakit.errors import DataError, did_you_mean


def recognise(row: Row, spec: DataSpec) -> Shape:
    """The shape of a file's rows, from its first row and the mapping in `spec`.

    Raises:
        DataError: the columns fit no shape and no mapping is given.
    """
    if spec.row_weight is not None:
        return _weighed(row, spec, spec.row_weight)
    names = list(row.fields)
    if spec.prompt is not None and spec.completion is not None:
        prompt, completion = Mapper("prompt", spec.prompt), Mapper("completion", spec.completion)
        mapped = f"rows are mapped: prompt {prompt.written!r}, completion {completion.written!r}"
        paths = (*prompt.columns, *completion.columns)
        used = {path.split(".")[0] for path in paths} | set(paths)
        return Shape("mapped", mapped + _unused(names, used), prompt, completion)
    if spec.text is not None:
        text = Mapper("text", spec.text)
        used = {path.split(".")[0] for path in text.columns} | set(text.columns)
        said = f"rows are text, mapped: {text.written!r}; every token is supervised"
        return Shape("text", said + _unused(names, used), text=text)
    for shape in (_preference, _conversation, _prompt, _instruction):
        if found := shape(row):
            return found
    if is_message(row.fields):
        role = next(k for k in ROLE_KEYS if k in row.fields)
        raise DataError(
            f"{row.origin}: each row is one message ({role!r} says who speaks), and it is not clear "
            'which belong together: write each conversation as one row, {"messages": [{"role": …, '
            '"content": …}, …]}; or, to train on a column of text alone, leave out '
            f"{role!r} and name that column 'text'"
        )
    if "text" in names:
        return Shape("text", "rows are text: every token is supervised" + _unused(names, {"text"}))
    raise DataError(
        f"{row.origin}: the columns ({listed(names)}) are none of: prompt + completion; messages; "
        f"instruction + output; text. Say how to read them, for example {suggest(row.fields)}"
        + (_no_header(row) if row.form == "table" else "")
    )


def _weighed(row: Row, spec: DataSpec, name: str) -> Shape:
    """The shape that the other columns have, and a column of weights beside it."""
    if name not in row.fields:
        known = [str(field) for field in row.fields]
        raise DataError(f"{row.origin}: row_weight is {name!r}; {did_you_mean(name, known)}")
    weight_of(row, name)
    others = replace(row, fields={k: v for k, v in row.fields.items() if k != name})
    shape = recognise(others, replace(spec, row_weight=None))
    said = f"{shape.description}; each row's loss weighs as {name!r} says"
    return replace(shape, description=said, weight=name)


def _no_header(row: Row) -> str:
    names, file = ",".join(_NAMES[: len(row.fields)]), Path(row.file)
    named = file.with_name(f"{file.stem}-named{file.suffix}")
    line = f"(echo {names}; cat {quote(str(file))}) > {quote(str(named))}"
    return (
        ". The names come from the first line of the file: if that is a row already, put a line with "
        f"{len(row.fields)} names before it, such as {names}: {line}"
    )


_NAMES = ("prompt", "completion", *(f"column{i}" for i in range(3, 13)))


def _preference(row: Row) -> Shape | None:
    """Rows with a better and a worse answer: the better one is trained."""
    names = set(row.fields)
    better, bad = next(
        (
            pair
            for pair in (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
            if names >= set(pair)
        ),
        ("", ""),
    )
    if not better:
        return None
    said = f"rows are preferences: {better!r} is trained as the answer{{}}, {bad!r} is not used"
    around = {better, bad, *_AROUND}
    asked = next((c for c in CONVERSATIONS if c in names), None)
    if asked or (better == "preferred_output" and "input" in names):
        asked = asked or "input"
        shape = Shape("messages", said.format(f" to {asked!r}"), messages=asked, answer=better)
    elif "prompt" in names:
        shape = Shape("prompt", said.format(" to 'prompt'"), answer=better)
    elif "instruction" in names:
        around |= {"input", "history"}
        shape = Shape("instruction", said.format(" to 'instruction' (+ 'input')"), answer=better)
    elif like_messages(row.fields[better]):
        shape = Shape("messages", said.format(" at the end of its messages"), messages=better)
    else:
        advice = suggest({k: v for k, v in row.fields.items() if not worse(k)})
        raise DataError(
            f"{row.origin}: preference rows ({better!r} and {bad!r}) without a column that is known "
            f"to hold the prompt; the columns are {listed(list(row.fields))}. Say how to read them, "
            f"for example {advice}; or, to train on {better!r} as a whole text, name the column 'text'"
        )
    asked = shape.messages or shape.kind
    return _described(row, shape, {asked, *around})


def _conversation(row: Row) -> Shape | None:
    name = next((c for c in CONVERSATIONS if c in row.fields), None)
    if name is None:
        return None
    how = [f"column {name!r}"] if name != "messages" else []
    value = row.fields[name]
    how += other_roles(value) if isinstance(value, list | tuple) else []
    around = f" ({'; '.join(how)})" if how else ""
    said = f"rows are conversations{around}: every assistant message is supervised"
    return _described(row, Shape("messages", said, messages=name), {name, *_AROUND})


def _prompt(row: Row) -> Shape | None:
    if not {"prompt", "completion"} <= set(row.fields):
        return None
    lists = [c for c in ("prompt", "completion") if like_messages(row.fields[c])]
    said = {
        (): "rows are prompt + completion: completions are supervised",
        (
            "prompt",
            "completion",
        ): "rows are lists of messages, prompt + completion: every assistant message is supervised",
    }.get(tuple(lists))
    if said is None:
        kinds = ("prompt (messages) + completion", "prompt + completion (messages)")
        said = f"rows are {kinds[lists == ['completion']]}: every assistant message is supervised"
    used = {"prompt", "completion", *_AROUND}
    return _described(row, Shape("prompt", said, answer="completion"), used)


def _instruction(row: Row) -> Shape | None:
    if not {"instruction", "output"} <= set(row.fields):
        return None
    earlier = given(row.fields.get("history"))
    said = "rows are instruction (+ input) + output: outputs are supervised"
    said += ", and so are the answers in 'history'" if earlier else ""
    used = {"instruction", "output", "input", "history", *_AROUND}
    return _described(row, Shape("instruction", said, answer="output"), used)


# What may stand beside each of these shapes, and is used.
_AROUND = (*SYSTEMS, "tools", "functions", "kto_tag", "desirable")


def _described(row: Row, shape: Shape, used: set[str]) -> Shape:
    """The shape, with what else its description must say."""
    names, said = list(row.fields), shape.description
    if shape.kind == "prompt" and isinstance(row.fields.get("label"), bool):
        used = used | {"label"}
        said += "; 'label' must be true (an answer marked as good)"
    if any(given(row.fields.get(name)) for name in SYSTEMS):
        name = next(n for n in SYSTEMS if given(row.fields.get(n)))
        said += f"; {name!r} is the system message"
    nested = [
        n for n in (_TEXTS & used) - {shape.messages} if n in row.fields and _nested(row.fields[n])
    ]
    if nested:
        said += f"; {' and '.join(map(repr, sorted(nested)))}: lists and objects as JSON text"
    if row.form == "arrow" and _calls(row):
        said += "; keys that are null in tools and calls are left out, as Arrow writes absent ones"
    return Shape(
        shape.kind,
        said + _unused(names, used),
        messages=shape.messages,
        answer=shape.answer,
    )


_TEXTS = frozenset(
    ("prompt", "completion", "instruction", "input", "output", "chosen", "preferred_output")
)


def _nested(value: object) -> bool:
    return isinstance(value, list | Mapping) and bool(value) and not like_messages(value)


def _calls(row: Row) -> bool:
    if given(row.fields.get("tools")):
        return True
    columns = (row.fields.get(name) for name in (*CONVERSATIONS, "prompt", "completion", "chosen"))
    lists = (value for value in columns if isinstance(value, list))
    return any(
        isinstance(m, Mapping) and "tool_calls" in m and not isinstance(m, WrittenObject)
        for value in lists
        for m in value
    )


def _unused(names: list[str], used: set[str]) -> str:
    left = [repr(n) for n in names if n not in used]
    return f"; not used: {', '.join(left)}" if left else ""
