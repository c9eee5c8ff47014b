"""Files of rows as people bring them: valid ones with their reading stated by hand, and broken ones.

Everything is drawn from a seed, so that a failure can be repeated. What is expected is written beside
the file that is made, from the same words, and never asked of lorakit. Forms of other tools are read as
their documents say: LLaMA-Factory's data/README.md (alpaca with `system` and `history`, ShareGPT with
`function_call` and `observation`, preferences, KTO), TRL's dataset_formats.md (prompt-completion,
preferences), OpenAI's fine-tuning guide (messages, older function calls, preferences), pandas' to_json
and to_csv, and the folder rules of Hugging Face `datasets`. Longer than most: it is a list.
"""

import bz2
import csv
import gzip
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}

Turn = tuple[str, str]


@dataclass(frozen=True)
class Reading:
    """What a row must be read as: a prompt and its answer, a conversation, or plain text.

    turns: (role, content). calls: (message, name, arguments). tools: names and parameters.
    """

    prompt: str | None = None
    completion: str | None = None
    turns: tuple[Turn, ...] | None = None
    calls: tuple[tuple[int, str, dict[str, Any]], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    text: str | None = None


@dataclass(frozen=True)
class Files:
    """Files to write, and what is asked of them.

    source: what --data names. rows: the readings of the training rows; held_out: of the rows that
    a folder holds out. says: parts of what must be said (a note, or the error). line: where the error
    is. mend: the files as the advice of the error would have them; they must then be readable.
    """

    name: str
    files: Mapping[str, bytes]
    source: str
    rows: tuple[Reading, ...] = ()
    held_out: tuple[Reading, ...] = ()
    says: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    line: int | None = None
    mend: Mapping[str, bytes] | None = None
    mended_source: str | None = None


class Words:
    """Sentences with what breaks naive readers: quotes, delimiters, newlines, braces, other scripts."""

    PLAIN = ("lamp", "river", "stone", "paper", "window", "garden", "copper", "violet", "harbour")
    ODD = (
        '"quoted"',
        "a, b; c",
        "tab\there",
        "two\nlines",
        "{braces}",
        "naïve café",
        "日本語",
        "—",
        "🙂",
    )

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def say(self, odd: bool = True) -> str:
        words = [self.random.choice(self.PLAIN) for _ in range(self.random.randint(2, 5))]
        if odd and self.random.random() < 0.5:
            words.insert(self.random.randint(1, len(words)), self.random.choice(self.ODD))
        return " ".join([*words, str(self.random.randint(100, 999))])

    def pairs(self, count: int = 3, odd: bool = True) -> list[tuple[str, str]]:
        return [(self.say(odd), self.say(odd)) for _ in range(count)]


def lines_of(rows: Sequence[Any], end: str = "\n", **options: Any) -> bytes:
    options.setdefault("ensure_ascii", False)
    return "".join(json.dumps(row, **options) + end for row in rows).encode()


def array_of(rows: Any, indent: int | None = None) -> bytes:
    return json.dumps(rows, indent=indent, ensure_ascii=False).encode()


def table_of(
    rows: Sequence[Mapping[str, str]], delimiter: str = ",", end: str = "\n", **how: Any
) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator=end, **how)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet_of(rows: Sequence[Mapping[str, Any]] | pyarrow.Table) -> bytes:
    out = io.BytesIO()
    table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(list(rows))
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def arrow_of(rows: Sequence[Mapping[str, Any]], stream: bool) -> bytes:
    table, out = pyarrow.Table.from_pylist(list(rows)), io.BytesIO()
    make = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with make(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def one(name: str, content: bytes, rows: Sequence[Reading], *says: str, **more: Any) -> Files:
    """A single file, its rows and what must be said of it."""
    return Files(name, {name: content}, name, tuple(rows), says=says, **more)


def asked(pairs: Sequence[tuple[str, str]]) -> list[Reading]:
    return [Reading(q, a) for q, a in pairs]


def prompts(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": q, "completion": a} for q, a in pairs]


def chat(*turns: Turn, **more: Any) -> Reading:
    return Reading(turns=turns, **more)


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def spoken(who: str, value: Any) -> dict[str, Any]:
    return {"from": who, "value": value}


def valid_files(seed: int = 0) -> list[Files]:
    """Files that must be read, each with its reading."""
    made: list[Files] = []
    for make in (_prompt_files, _table_files, _alpaca_files, _chat_files, _tool_files):
        made += make(Words(seed + len(made)))
    for make in (_preference_files, _wrapped_files, _text_files, _folder_files):
        made += make(Words(seed + len(made)))
    return made


def _prompt_files(w: Words) -> list[Files]:
    made = []
    for ending in ("jsonl", "ndjson"):
        p = w.pairs()
        made.append(one(f"plain.{ending}", lines_of(prompts(p)), asked(p), "prompt + completion"))
    for pack in (".gz", ".bz2", ".zst"):
        p = w.pairs(5)
        made.append(one(f"packed.jsonl{pack}", PACK[pack](lines_of(prompts(p))), asked(p)))
        p = w.pairs(4)
        made.append(one(f"packed.json{pack}", PACK[pack](array_of(prompts(p), 2)), asked(p)))
    p = w.pairs()
    made.append(one("windows.jsonl", b"\xef\xbb\xbf" + lines_of(prompts(p), "\r\n"), asked(p)))
    p = w.pairs()
    made.append(one("gaps.jsonl", lines_of(prompts(p), "\n\n \n"), asked(p)))
    p = w.pairs()
    made.append(one("escaped.jsonl", lines_of(prompts(p), ensure_ascii=True).rstrip(), asked(p)))
    p = w.pairs()
    joined = b"\xef\xbb\xbf" + lines_of(prompts(p[:1])) + b"\xef\xbb\xbf" + lines_of(prompts(p[1:]))
    made.append(one("joined-marks.jsonl", joined, asked(p)))
    p = w.pairs(1)
    made.append(one("single.jsonl", lines_of(prompts(p)), asked(p)))
    p = w.pairs()
    made.append(one("array.json", array_of(prompts(p)), asked(p)))
    p = w.pairs()
    made.append(one("indented.json", array_of(prompts(p), 4), asked(p)))
    p = w.pairs()
    made.append(one("lines.json", lines_of(prompts(p)), asked(p)))
    p = w.pairs()
    made.append(one("array.jsonl", array_of(prompts(p)), asked(p)))
    p = w.pairs()
    made.append(one("array-indented.jsonl", array_of(prompts(p), 2), asked(p)))
    p = w.pairs()
    made.append(one("pretty.jsonl", lines_of(prompts(p), indent=2), asked(p)))
    p = w.pairs()
    made.append(one("pretty.json", lines_of(prompts(p), indent=2), asked(p)))
    p = w.pairs()
    mixed = lines_of(prompts(p[:1])) + lines_of(prompts(p[1:]), indent=2)
    made.append(one("later-pretty.jsonl", mixed, asked(p)))
    p = w.pairs(1)
    made.append(one("one-object.json", array_of(prompts(p)[0], 2), asked(p)))
    for name, content in (
        ("columns.parquet", parquet_of),
        ("stream.arrow", lambda rows: arrow_of(rows, stream=True)),
        ("file.arrow", lambda rows: arrow_of(rows, stream=False)),
    ):
        p = w.pairs()
        made.append(one(name, content(prompts(p)), asked(p)))
    p = w.pairs()
    rows = [{"question": q, "answer": a, "id": i} for i, (q, a) in enumerate(p)]
    mapped = {"prompt": "Q: {question}", "completion": "{answer}"}
    expected = [Reading(f"Q: {q}", a) for q, a in p]
    made.append(one("mapped.jsonl", lines_of(rows), expected, "not used: 'id'", options=mapped))
    rows = [{"prompt": q, "completion": {"n": 0, "none": None, "x": [a]}} for q, a in p]
    written = [
        f'{{"n": 0, "none": null, "x": [{json.dumps(a, ensure_ascii=False)}]}}' for _, a in p
    ]
    expected = [Reading(q, text) for (q, _), text in zip(p, written, strict=True)]
    made.append(one("json-answers.jsonl", lines_of(rows), expected))
    return made


def _table_files(w: Words) -> list[Files]:
    made = []
    p = w.pairs()
    made.append(one("table.csv", table_of(prompts(p)), asked(p)))
    p = w.pairs()
    made.append(one("table.tsv", table_of(prompts(p), "\t"), asked(p)))
    p = w.pairs()
    excel = b"\xef\xbb\xbf" + table_of(prompts(p), ",", "\r\n", quoting=csv.QUOTE_ALL)
    made.append(one("excel.csv", excel, asked(p)))
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        p = w.pairs()
        made.append(
            one(f"{name}.csv", table_of(prompts(p), delimiter), asked(p), f"separated by {name}")
        )
    p = w.pairs()
    made.append(one("commas.tsv", table_of(prompts(p)), asked(p), "separated by commas"))
    p = w.pairs()
    made.append(
        one("sep.csv", b"sep=;\r\n" + table_of(prompts(p), ";", "\r\n"), asked(p), "semicolons")
    )
    p = w.pairs()
    indexed = [{"": str(i), **row} for i, row in enumerate(prompts(p))]
    made.append(one("index.csv", table_of(indexed), asked(p), "a first column without a name"))
    p = w.pairs()
    padded = table_of([{**row, "": ""} for row in prompts(p)])
    made.append(one("padded.csv", padded, asked(p)))
    p = w.pairs()
    made.append(one("packed.csv.gz", gzip.compress(table_of(prompts(p))), asked(p)))
    p = w.pairs()
    made.append(one("json-lines.csv", lines_of(prompts(p)), asked(p), "holds JSON"))
    rows = [{"messages": json.dumps([said("user", q), said("assistant", a)])} for q, a in p]
    made.append(
        one("messages.csv", table_of(rows), [chat(("user", q), ("assistant", a)) for q, a in p])
    )
    rows = [{"prompt": json.dumps([said("user", q)]), "completion": a} for q, a in p]
    made.append(
        one(
            "prompt-messages.csv",
            table_of(rows),
            [chat(("user", q), ("assistant", a)) for q, a in p],
        )
    )
    return made


def _alpaca_files(w: Words) -> list[Files]:
    made = []
    p = w.pairs()
    rows = [{"instruction": q, "input": "", "output": a} for q, a in p]
    made.append(one("alpaca.json", array_of(rows, 2), asked(p), "instruction (+ input)"))
    p = w.pairs(4)
    inputs = [0, False, w.say(), None]
    rows = [
        {"instruction": q, "input": x, "output": a} for (q, a), x in zip(p, inputs, strict=True)
    ]
    texts = [f"{p[0][0]}\n\n0", f"{p[1][0]}\n\nfalse", f"{p[2][0]}\n\n{inputs[2]}", p[3][0]]
    made.append(
        one(
            "falsy.jsonl",
            lines_of(rows),
            [Reading(t, a) for t, (_, a) in zip(texts, p, strict=True)],
        )
    )
    p = w.pairs()
    rows = [{"instruction": "", "input": q, "output": a} for q, a in p]
    made.append(one("question-in-input.json", array_of(rows), asked(p)))
    p = w.pairs()
    rows = [{"instruction": q, "output": a, "system": f"S {i}"} for i, (q, a) in enumerate(p)]
    expected = [
        chat(("system", f"S {i}"), ("user", q), ("assistant", a)) for i, (q, a) in enumerate(p)
    ]
    made.append(
        one("alpaca-system.json", array_of(rows), expected, "'system' is the system message")
    )
    before = [w.pairs(2) for _ in p]
    rows = [
        {"instruction": q, "input": "", "output": a, "system": "", "history": [list(h) for h in hs]}
        for (q, a), hs in zip(p, before, strict=True)
    ]
    expected = [
        chat(
            *(t for x, y in hs for t in (("user", x), ("assistant", y))),
            ("user", q),
            ("assistant", a),
        )
        for (q, a), hs in zip(p, before, strict=True)
    ]
    made.append(one("history.json", array_of(rows), expected, "history"))
    made.append(one("history.parquet", parquet_of(rows), expected))
    table = [{**row, "history": json.dumps(row["history"])} for row in rows]
    made.append(one("history.csv", table_of(table), expected))
    p = w.pairs()
    rows = [{"instruction": q, "output": a, "system": "", "history": []} for q, a in p]
    made.append(one("empty-history.json", array_of(rows), asked(p)))
    table = pyarrow.table(
        {"instruction": ["a", "b"], "input": [float("nan"), 0.0], "output": ["c", "d"]}
    )
    expected = [Reading("a", "c"), Reading("b\n\n0.0", "d")]
    made.append(one("missing-inputs.parquet", parquet_of(table), expected))
    return made


def _chat_files(w: Words) -> list[Files]:
    made = []
    p = w.pairs()
    two = [chat(("user", q), ("assistant", a)) for q, a in p]
    rows: list[Any] = [{"messages": [said("user", q), said("assistant", a)]} for q, a in p]
    made.append(one("messages.jsonl", lines_of(rows), two, "conversations"))
    made.append(one("messages.parquet", parquet_of(rows), two))
    sharegpt = [
        {"id": f"x{i}", "conversations": [spoken("human", q), spoken("gpt", a)]}
        for i, (q, a) in enumerate(p)
    ]
    made.append(
        one("sharegpt.json", array_of(sharegpt, 2), two, "human as user", "gpt as assistant")
    )
    made.append(one("sharegpt.parquet", parquet_of(sharegpt), two, "column 'conversations'"))
    rows = [
        {"conversations": [spoken("system", "S"), spoken("user", q), spoken("chatgpt", a)]}
        for q, a in p
    ]
    expected = [chat(("system", "S"), ("user", q), ("assistant", a)) for q, a in p]
    made.append(one("sharegpt-names.jsonl", lines_of(rows), expected))
    rows = [{"system": "S", "conversations": [spoken("human", q), spoken("gpt", a)]} for q, a in p]
    made.append(
        one("sharegpt-system.jsonl", lines_of(rows), expected, "'system' is the system message")
    )
    rows = [
        {
            "system": "other",
            "messages": [said("system", "S"), said("user", q), said("assistant", a)],
        }
        for q, a in p
    ]
    made.append(one("two-systems.jsonl", lines_of(rows), expected))
    for names in (("human", "bot"), ("user", "model"), ("Human", "AI"), ("User", "Assistant")):
        rows = [{"messages": [said(names[0], q), said(names[1], a)]} for q, a in p]
        made.append(one(f"roles-{names[1]}.jsonl", lines_of(rows), two, f"{names[1]} as assistant"))
    rows = [
        {"conversation": [{"role": "user", "value": q}, {"role": "assistant", "value": a}]}
        for q, a in p
    ]
    made.append(one("role-value.jsonl", lines_of(rows), two))
    rows = [
        {
            "messages": [
                said("user", [{"type": "text", key: q}]),
                said("assistant", [{"type": "text", key: a}]),
            ]
        }
        for (q, a), key in zip(p, ("text", "value", "text"), strict=True)
    ]
    made.append(one("parts.jsonl", lines_of(rows), two))
    rows = [{"prompt": [said("user", q)], "completion": a} for q, a in p]
    made.append(one("prompt-list.jsonl", lines_of(rows), two, "prompt (messages) + completion"))
    rows = [{"prompt": q, "completion": [said("assistant", a)]} for q, a in p]
    made.append(one("completion-list.jsonl", lines_of(rows), two, "completion (messages)"))
    rows = [{"prompt": [said("user", q)], "completion": [said("assistant", a)]} for q, a in p]
    made.append(one("both-lists.jsonl", lines_of(rows), two, "lists of messages"))
    rows = [{"prompt": said("user", q), "completion": said("assistant", a)} for q, a in p]
    made.append(one("both-objects.jsonl", lines_of(rows), two))
    rows = [[said("user", q), said("assistant", a)] for q, a in p]
    made.append(
        one("a-list-a-line.jsonl", lines_of(rows), two, "one conversation, a list of messages")
    )
    made.append(one("nested-lists.json", array_of(rows, 1), two, "a list of conversations"))
    made.append(one("one-conversation.json", array_of(rows[0], 1), two[:1], "one conversation"))
    rows = [{"system_prompt": "S", "prompt": q, "completion": a} for q, a in p]
    made.append(one("system-prompt.jsonl", lines_of(rows), expected))
    return made


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
CLOCK = {"type": "object", "properties": {"zone": {"type": "string"}}}


def _tool_files(w: Words) -> list[Files]:
    tools = [
        {
            "type": "function",
            "function": {"name": name, "description": "d", "parameters": parameters},
        }
        for name, parameters in (("weather", WEATHER), ("clock", CLOCK))
    ]
    bare = [tool["function"] for tool in tools]
    q, a = w.say(), w.say()
    city, zone = {"city": "Oslo", "days": 2}, {"zone": "CET"}

    def row(call: Mapping[str, Any], result: str = "tool", **more: Any) -> dict[str, Any]:
        return {
            "messages": [said("user", q), call, said(result, "7", **more), said("assistant", a)],
            "tools": tools,
        }

    def read(name: str, arguments: dict[str, Any]) -> Reading:
        turns = (("user", q), ("assistant", ""), ("tool", "7"), ("assistant", a))
        return Reading(turns=turns, calls=((1, name, arguments),), tools=tuple(tools))

    def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}

    made = []
    rows = [
        row(
            said("assistant", None, tool_calls=[call("weather", json.dumps(city), id="c1")]),
            tool_call_id="c1",
        ),
        row(said("assistant", None, tool_calls=[call("clock", "", id="c2")]), tool_call_id="c2"),
    ]
    expected = [read("weather", city), read("clock", {})]
    made.append(one("openai-calls.jsonl", lines_of(rows), expected))
    calls = [call("weather", city, id="c1"), call("clock", zone, id="c2")]
    rows = [row(said("assistant", None, tool_calls=[c]), tool_call_id=c["id"]) for c in calls]
    expected = [read("weather", city), read("clock", zone)]
    made.append(one("calls.jsonl", lines_of(rows), expected))
    made.append(one("calls.parquet", parquet_of(rows), expected, "as Arrow writes absent ones"))
    made.append(one("calls.arrow", arrow_of(rows, stream=True), expected))
    nothing = {"city": "Oslo", "days": None}
    rows = [row(said("assistant", None, tool_calls=[call("weather", nothing)]))]
    made.append(one("written-null.jsonl", lines_of(rows), [read("weather", nothing)]))
    rows = [
        row(
            said(
                "assistant", None, function_call={"name": "weather", "arguments": json.dumps(city)}
            ),
            "function",
            name="weather",
        )
    ]
    rows[0]["functions"] = [dict(f.items()) for f in bare]
    del rows[0]["tools"]
    made.append(one("older-calls.jsonl", lines_of(rows), [read("weather", city)]))
    rows = [row(said("assistant", "", tool_calls=[{"name": "weather", "arguments": city}]))]
    made.append(one("bare-calls.jsonl", lines_of(rows), [read("weather", city)]))
    rows = [
        {
            "conversations": [
                spoken("human", q),
                spoken("function_call", json.dumps({"name": "weather", "arguments": city})),
                spoken("observation", "7"),
                spoken("gpt", a),
            ],
            "tools": json.dumps(bare),
        }
    ]
    made.append(
        one(
            "llama-factory-tools.json",
            array_of(rows, 2),
            [read("weather", city)],
            "observation as tool",
        )
    )
    rows = [{"prompt": q, "completion": a, "tools": tools}]
    made.append(
        one(
            "prompt-tools.jsonl",
            lines_of(rows * 2),
            [chat(("user", q), ("assistant", a), tools=tuple(tools))] * 2,
        )
    )
    arguments = pyarrow.map_(pyarrow.string(), pyarrow.string())
    function = pyarrow.struct([("name", pyarrow.string()), ("arguments", arguments)])
    message = pyarrow.struct(
        [
            ("role", pyarrow.string()),
            ("content", pyarrow.string()),
            ("tool_calls", pyarrow.list_(pyarrow.struct([("function", function)]))),
            ("function_call", pyarrow.struct([("name", pyarrow.string())])),
        ]
    )
    mapped = {"function": {"name": "clock", "arguments": [("zone", "CET")]}}
    # A struct of nulls is another thing than a null: some writers make one for an absent object.
    older = {"function_call": {"name": None}}
    rows = [
        said("user", q),
        said("assistant", None, tool_calls=[mapped], **older),
        said("tool", "7", **older),
        said("assistant", a, tool_calls=[], **older),
    ]
    table = pyarrow.table(
        {"messages": pyarrow.array([rows], pyarrow.list_(message)), "tools": [json.dumps(tools)]}
    )
    made.append(one("map-arguments.parquet", parquet_of(table), [read("clock", zone)]))
    listed = [
        said("user", q),
        said("assistant", "", tool_calls=[call("clock", zone)]),
        said("tool", ["a", {"b": 1}]),
        said("assistant", a, text=a, train=True),
    ]
    turns = (("user", q), ("assistant", ""), ("tool", '["a", {"b": 1}]'), ("assistant", a))
    expected = [Reading(turns=turns, calls=((1, "clock", zone),))]
    made.append(one("tool-list.jsonl", lines_of([{"messages": listed, "tools": "null"}]), expected))
    return made


def _preference_files(w: Words) -> list[Files]:
    p = [(w.say(), w.say(), "WORSE " + w.say()) for _ in range(3)]
    two = [chat(("user", q), ("assistant", a)) for q, a, _ in p]
    flat = [Reading(q, a) for q, a, _ in p]
    note = "'chosen' is trained as the answer"
    made = []
    rows: list[Any] = [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in p]
    made.append(one("preferences.jsonl", lines_of(rows), flat, note, "'rejected' is not used"))
    made.append(one("preferences.csv", table_of(rows), flat, note))
    rows = [
        {
            "prompt": [said("user", q)],
            "chosen": [said("assistant", a)],
            "rejected": [said("assistant", b)],
        }
        for q, a, b in p
    ]
    made.append(one("trl-preferences.jsonl", lines_of(rows), two, note))
    rows = [
        {
            "chosen": [said("user", q), said("assistant", a)],
            "rejected": [said("user", q), said("assistant", b)],
        }
        for q, a, b in p
    ]
    made.append(one("implicit-preferences.jsonl", lines_of(rows), two, note))
    rows = [{"prompt": q, **row} for (q, _, _), row in zip(p, rows, strict=True)]
    made.append(one("repeated-prompt.parquet", parquet_of(rows), two, note))
    rows = [{"instruction": q, "input": "", "chosen": a, "rejected": b} for q, a, b in p]
    made.append(one("alpaca-preferences.json", array_of(rows), flat, note))
    rows = [
        {
            "conversations": [spoken("human", q)],
            "chosen": spoken("gpt", a),
            "rejected": spoken("gpt", b),
        }
        for q, a, b in p
    ]
    made.append(one("sharegpt-preferences.json", array_of(rows), two, note))
    rows = [
        {
            "input": {"messages": [said("user", q)], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [said("assistant", a)],
            "non_preferred_output": [said("assistant", b)],
        }
        for q, a, b in p
    ]
    made.append(
        one("openai-preferences.jsonl", lines_of(rows), two, "'preferred_output' is trained")
    )
    rows = [{"prompt": q, "completion": a, "label": True} for q, a, _ in p]
    made.append(one("kto-good.jsonl", lines_of(rows), flat, "'label' must be true"))
    rows = [
        {
            "prompt": q,
            "chosen": [said("system", "S"), said("user", q), said("assistant", a)],
            "rejected": [],
        }
        for q, a, _ in p
    ]
    expected = [chat(("system", "S"), ("user", q), ("assistant", a)) for q, a, _ in p]
    made.append(one("prompt-and-system.jsonl", lines_of(rows), expected, note))
    return made


def _wrapped_files(w: Words) -> list[Files]:
    p = w.pairs()
    rows = prompts(p)
    made = []
    for key, more in (
        ("data", {}),
        ("train", {}),
        ("rows", {"version": "1.1", "count": 3}),
        ("x", {"license": {"a": 1}}),
    ):
        says = f"in the list under {key!r}"
        made.append(one(f"wrapped-{key}.json", array_of({**more, key: rows}, 2), asked(p), says))
    made.append(one("wrapped.jsonl", array_of({"data": rows}), asked(p), "under 'data'"))
    columns = {"prompt": [q for q, _ in p], "completion": [a for _, a in p]}
    made.append(one("by-column.json", array_of(columns, 1), asked(p), "written column by column"))
    numbered = {name: {str(i): v for i, v in enumerate(values)} for name, values in columns.items()}
    made.append(
        one("pandas-columns.json", array_of(numbered), asked(p), "written column by column")
    )
    made.append(
        one(
            "pandas-index.json",
            array_of({str(i): r for i, r in enumerate(rows)}),
            asked(p),
            "whose values are the rows",
        )
    )
    split = {"columns": ["prompt", "completion"], "index": [0, 1, 2], "data": [list(x) for x in p]}
    made.append(one("pandas-split.json", array_of(split), asked(p), "orient='split'"))
    chats = {"messages": [[said("user", q), said("assistant", a)] for q, a in p]}
    made.append(
        one(
            "messages-by-column.json",
            array_of(chats),
            [chat(("user", q), ("assistant", a)) for q, a in p],
        )
    )
    single = {"messages": [said("user", p[0][0]), said("assistant", p[0][1])]}
    made.append(
        one("one-chat.json", array_of(single, 2), [chat(("user", p[0][0]), ("assistant", p[0][1]))])
    )
    made.append(
        one(
            "columns-beside.json", array_of({"version": 2, **columns}), asked(p), "'version' beside"
        )
    )
    deep = {"dataset": {"train": {"rows": rows}}}
    made.append(one("deep-wrap.json", array_of(deep, 1), asked(p), "wraps everything in 'dataset'"))
    return made


def _text_files(w: Words) -> list[Files]:
    plain = [w.say(odd=False) for _ in range(4)]
    made = [
        one(
            "lines.txt",
            "\n".join(plain).encode(),
            [Reading(text=t) for t in plain],
            "each row is a line",
        ),
        one(
            "paragraphs.txt",
            f"{plain[0]}\n{plain[1]}\n\n\n{plain[2]}\n \n{plain[3]}\n".encode(),
            [
                Reading(text=f"{plain[0]}\n{plain[1]}"),
                Reading(text=plain[2]),
                Reading(text=plain[3]),
            ],
            "each row is a paragraph",
        ),
        one(
            "packed.txt.gz",
            gzip.compress("\r\n".join(plain).encode()),
            [Reading(text=t) for t in plain],
        ),
        one(
            "text.jsonl",
            lines_of([{"text": t, "label": 1} for t in plain]),
            [Reading(text=t) for t in plain],
            "every token",
        ),
    ]
    p = w.pairs()
    made.append(one("json-lines.txt", lines_of(prompts(p)), asked(p), "holds JSON"))
    made.append(one("json-array.txt", array_of(prompts(p), 2), asked(p), "holds JSON"))
    return made


def _folder_files(w: Words) -> list[Files]:
    train, held, last = w.pairs(3), w.pairs(2), w.pairs(2)
    t, h, x = (lines_of(prompts(p)) for p in (train, held, last))
    rows, out = tuple(asked(train)), tuple(asked(held))

    def folder(
        name: str, files: Mapping[str, bytes], *says: str, held_out: Any = out, expected: Any = rows
    ) -> Files:
        inside = {f"{name}/{path}": content for path, content in files.items()}
        return Files(name, inside, name, expected, held_out, says)

    pt, ph, px = (parquet_of(prompts(p)) for p in (train, held, last))
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: abc.jsonl\n  - split: test\n    path: 'more/*.jsonl'\n---\n# Card\n"
    shards = {
        "README.md": b"---\nlicense: mit\n---\n",
        "dataset_infos.json": b"{}",
        ".gitattributes": b"x",
    }
    names = {"data/train-00000-of-00001.parquet": pt, "data/test-00000-of-00001.parquet": ph}
    return [
        folder(
            "by-name",
            {"train.jsonl": t, "valid.jsonl": h, "test.jsonl": x},
            "trained on train.jsonl",
            "measured on valid.jsonl",
            "not used: test.jsonl",
        ),
        folder("by-name-test", {"train.jsonl": t, "test.jsonl": h}, "measured on test.jsonl"),
        folder(
            "by-word",
            {"my_train.jsonl": t, "my-dev.jsonl": h, "contest.jsonl": x},
            "not used: contest.jsonl",
        ),
        folder("by-camel", {"TrainData.jsonl": t, "devset.jsonl": h, "MyTestSet.jsonl": x}),
        folder("by-folder", {"train/a.jsonl": t, "validation/a.jsonl": h, "test/a.jsonl": x}),
        folder("hub-clone", {**shards, **names}, "trained on train-00000-of-00001.parquet"),
        folder(
            "hub-card",
            {"README.md": card, "abc.jsonl": t, "more/d.jsonl": h, "other.jsonl": x},
            "by README.md",
        ),
        folder(
            "saved",
            {
                "train/data-00000-of-00001.arrow": arrow_of(prompts(train), True),
                "test/data-00000-of-00001.arrow": arrow_of(prompts(held), True),
                "dataset_dict.json": b"{}",
                "train/state.json": b"{}",
                "train/dataset_info.json": b"{}",
            },
        ),
        folder(
            "parts",
            {"a.jsonl": t, "b.jsonl": h, "LICENSE.txt": b"words"},
            "stands for a.jsonl, b.jsonl",
            held_out=(),
            expected=rows + out,
        ),
        folder("nested", {"README.md": b"# Card", "en/a.jsonl": t}, held_out=(), expected=rows),
        folder(
            "three-shards",
            {
                "data/train-00000-of-00002.parquet": pt,
                "data/train-00001-of-00002.parquet": px,
                "data/validation-00000-of-00001.parquet": ph,
            },
            expected=rows + tuple(asked(last)),
        ),
    ]
