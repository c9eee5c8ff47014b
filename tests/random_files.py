"""Small files of rows as people bring them for one task each, drawn from a seed.

Each says beside its rows how a person would ask the trained adapter the same: the text that is typed, the
columns that a prompt template names, or the messages of a request. Nothing of that is asked of lorakit.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import pyarrow.parquet

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """How a person asks for one row's answer.

    content: of the user's message (a text, or columns as a JSON object). messages: the whole
    conversation up to the answer, where there is one. tools: of the request.
    """

    content: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def conversation(self) -> list[Mapping[str, Any]]:
        """What a client of the chat API sends."""
        return list(self.messages) or [{"role": "user", "content": self.content}]


@dataclass(frozen=True)
class SmallFile:
    """A file for one task.

    name: of the file, its suffix the format. options: flags of `train`, as typed. asked: for each row.
    """

    kind: str
    name: str
    content: bytes
    rows: tuple[Row, ...]
    asked: tuple[Asked, ...]
    options: tuple[str, ...] = field(default=())


_NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay")
_GOODS = ("lamp", "desk", "chair", "clock", "kettle", "shelf")
_TOWNS = ("Oslo", "Lima", "Bonn", "Nice", "Cork", "Bari")
_LABELS = ("refund", "delivery", "complaint")


def _sentence(draw: random.Random) -> str:
    text = f"{draw.choice(_NAMES)} wants a {draw.choice(_GOODS)} in {draw.choice(_TOWNS)}"
    return text + draw.choice((".", ", please!", "?", " today"))


def _table(draw: random.Random, rows: Sequence[Row]) -> tuple[str, bytes]:
    """CSV or TSV."""
    suffix, sign = draw.choice(((".csv", ","), (".tsv", "\t")))
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=sign)
    writer.writeheader()
    writer.writerows(rows)
    return suffix, file.getvalue().encode()


def _lines(draw: random.Random, rows: Sequence[Row]) -> tuple[str, bytes]:
    """JSON lines, or one JSON array."""
    if draw.random() < 0.3:
        return ".json", json.dumps(list(rows), ensure_ascii=False, indent=1).encode()
    return ".jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(draw: random.Random, rows: Sequence[Row]) -> tuple[str, bytes]:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), file)
    return ".parquet", file.getvalue()


def _any(draw: random.Random, rows: Sequence[Row]) -> tuple[str, bytes]:
    return draw.choice((_table, _lines, _parquet))(draw, rows)


Made = tuple[Row, Asked]
Kind = tuple[
    Callable[[random.Random, int], Made], Callable[..., tuple[str, bytes]], tuple[str, ...]
]


def _labels(draw: random.Random, i: int) -> Made:
    text = _sentence(draw)
    return {"text": text, "label": _LABELS[i % 3]}, Asked(text)


def _intents(draw: random.Random, i: int) -> Made:
    text = _sentence(draw)
    return {"prompt": text, "completion": _LABELS[i % 3].upper()}, Asked(text)


def _one_word(draw: random.Random, i: int) -> Made:
    text = _sentence(draw)
    return {"question": text, "answer": text.split()[3]}, Asked(text)


def _extraction(draw: random.Random, i: int) -> Made:
    name, goods, count = draw.choice(_NAMES), draw.choice(_GOODS), draw.randint(1, 9)
    text = f"{count} x {goods} for {name}"
    return {
        "prompt": text,
        "completion": json.dumps({"name": name, "goods": goods, "count": count}),
    }, Asked(text)


def _objects(draw: random.Random, i: int) -> Made:
    row, asked = _extraction(draw, i)
    return {"note": row["prompt"], "fields": json.loads(row["completion"])}, asked


def _chat(draw: random.Random, i: int) -> Made:
    text = _sentence(draw)
    turns = [{"role": "user", "content": text}]
    answer = {"role": "assistant", "content": f"Yes, {text.split()[0]}."}
    return {"messages": [*turns, answer]}, Asked(messages=tuple(turns))


def _long_chat(draw: random.Random, i: int) -> Made:
    row, _ = _chat(draw, i)
    more = [*row["messages"], {"role": "user", "content": _sentence(draw)}]
    answer = {"role": "assistant", "content": f"Done, number {i}."}
    return {"messages": [*more, answer]}, Asked(messages=tuple(more))


def _system_chat(draw: random.Random, i: int) -> Made:
    row, asked = _chat(draw, i)
    lead = {"role": "system", "content": "You sell furniture."}
    return {"messages": [lead, *row["messages"]]}, Asked(messages=(lead, *asked.messages))


def _sharegpt(draw: random.Random, i: int) -> Made:
    text = _sentence(draw)
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": f"Noted: {i}"}]
    return {"conversations": turns}, Asked(text)


def _tool(name: str, key: str) -> Mapping[str, Any]:
    parameters = {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}
    return {
        "type": "function",
        "function": {"name": name, "description": f"To {name}.", "parameters": parameters},
    }


_TOOLS = (_tool("find", "town"), _tool("order", "goods"))


def _call(draw: random.Random) -> Mapping[str, Any]:
    name, key, value = draw.choice(
        (("find", "town", draw.choice(_TOWNS)), ("order", "goods", draw.choice(_GOODS)))
    )
    return {"type": "function", "function": {"name": name, "arguments": {key: value}}}


def _tool_calls(draw: random.Random, i: int) -> Made:
    turns = ({"role": "user", "content": _sentence(draw)},)
    answer = {"role": "assistant", "content": "", "tool_calls": [_call(draw)]}
    return {"messages": [*turns, answer], "tools": list(_TOOLS)}, Asked(
        messages=turns, tools=_TOOLS
    )


def _two_calls(draw: random.Random, i: int) -> Made:
    turns = ({"role": "user", "content": _sentence(draw)},)
    answer = {"role": "assistant", "content": "", "tool_calls": [_call(draw), _call(draw)]}
    return {"messages": [*turns, answer], "tools": list(_TOOLS)}, Asked(
        messages=turns, tools=_TOOLS
    )


def _sums(draw: random.Random, i: int) -> Made:
    a, b = draw.randint(2, 60), draw.randint(2, 60)
    return {"question": f"{a} + {b}?", "answer": f"{a} and {b} make {a + b}.\n#### {a + b}"}, Asked(
        f"{a} + {b}?"
    )


def _numbers(draw: random.Random, i: int) -> Made:
    a, b = draw.randint(2, 60), draw.randint(2, 60)
    return {"sum": f"{a} + {b}", "result": a + b}, Asked(f"{a} + {b}")


def _long_answers(draw: random.Random, i: int) -> Made:
    text = _sentence(draw)
    answer = " ".join(_sentence(draw).replace("?", ".") for _ in range(draw.randint(3, 6)))
    return {"prompt": text, "completion": answer + "\nBye."}, Asked(text)


def _alpaca(draw: random.Random, i: int) -> Made:
    text = _sentence(draw)
    return {"instruction": text, "input": "", "output": f"Answer {i}: {text[::-1]}"}, Asked(text)


def _one_column(draw: random.Random, i: int) -> Made:
    text = _sentence(draw)
    return {"body": text, "team": _LABELS[i % 3]}, Asked(text)


def _two_columns(draw: random.Random, i: int) -> Made:
    columns = {"title": draw.choice(_GOODS), "body": _sentence(draw)}
    return {**columns, "team": _LABELS[i % 3]}, Asked(json.dumps(columns))


KINDS: Mapping[str, Kind] = {
    "labels": (_labels, _any, ("--prompt", "{text}", "--completion", "{label}")),
    "labels, a line of its own": (
        *(_labels, _table),
        ("--prompt", r"{text}\nLabel: ", "--completion", "{label}"),
    ),
    "intents": (_intents, _any, ()),
    "intents without a chat template": (_intents, _lines, ("--template", "raw")),
    "one word": (_one_word, _any, ("--prompt", "{question}", "--completion", "{answer}")),
    "JSON in text": (_extraction, _any, ()),
    "JSON as a value": (_objects, _lines, ("--prompt", "{note}", "--completion", "{fields}")),
    "chat": (_chat, _lines, ()),
    "chat of several turns": (_long_chat, _lines, ()),
    "chat with system texts": (_system_chat, _lines, ()),
    "chat under one system text": (_chat, _parquet, ("--system", "Be brief.")),
    "ShareGPT": (_sharegpt, _lines, ()),
    "tool calls": (_tool_calls, _lines, ()),
    "two tool calls": (_two_calls, _lines, ()),
    "sums": (_sums, _any, ("--prompt", "{question}", "--completion", "{answer}")),
    "numbers": (_numbers, _any, ("--prompt", "{sum} =", "--completion", "{result}")),
    "long answers": (_long_answers, _any, ()),
    "alpaca": (_alpaca, _lines, ()),
    "one column in a template": (
        *(_one_column, _any),
        ("--prompt", "Mail: {body}", "--completion", "{team}", "--system", "Sort mail."),
    ),
    "two columns in a raw template": (
        *(_two_columns, _any),
        ("--prompt", r"{title}\n{body}\n=>", "--completion", "{team}", "--template", "raw"),
    ),
}


def small_file(kind: str, seed: int, rows: int = 12) -> SmallFile:
    """A file of this kind, of rows with different questions."""
    make, write, options = KINDS[kind]
    draw = random.Random(f"{kind}/{seed}")
    made: dict[str, Made] = {}
    while len(made) < rows:
        row, asked = make(draw, len(made))
        made.setdefault(str(asked), (row, asked))
    values = tuple(row for row, _ in made.values())
    suffix, content = write(draw, values)
    return SmallFile(
        kind, f"rows{suffix}", content, values, tuple(a for _, a in made.values()), options
    )
