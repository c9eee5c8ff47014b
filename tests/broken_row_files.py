"""Files of rows that are broken as real ones are: each with what its error must say, and where."""

import bz2
import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow
import zstandard

from row_files import (
    PACK,
    Files,
    Words,
    array_of,
    lines_of,
    parquet_of,
    prompts,
    said,
    spoken,
    table_of,
)

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 269060552\n"


def broken(name: str, content: bytes, *says: str, line: int | None = None, **more: Any) -> Files:
    """A single file, its error, and the line that it names."""
    return Files(name, {name: content}, name, says=says, line=line, **more)


def broken_files(seed: int = 0) -> list[Files]:
    """Files that must be refused."""
    made: list[Files] = []
    for i, make in enumerate((_json_lines, _json_values, _other_contents, _packed, _columns)):
        made += make(Words(seed + i))
    for i, make in enumerate((_messages, _tables, _preferences, _documents, _folders, _names)):
        made += make(Words(seed + 10 + i))
    return made


def _json_lines(w: Words) -> list[Files]:
    """One line of a good file is damaged: the error names it."""
    # name -> (how the line is damaged, what is said, how the advice mends it)
    Change = Callable[[str], str]
    kinds: dict[str, tuple[Change, str, Change | None]] = {
        "cut": (lambda t: t[: len(t) // 2], "broken JSON", None),
        "no-brace": (lambda t: t[:-1], "broken JSON", None),
        "comma-inside": (lambda t: t[:-1] + ",}", "comma too many before '}'", lambda t: t),
        "comma-after": (lambda t: t + ",", "Remove the comma after the row", lambda t: t),
        "nan": (
            lambda t: t[:-1] + ', "n": NaN}',
            "NaN is not JSON",
            lambda t: t[:-1] + ', "n": null}',
        ),
        "infinity": (lambda t: t[:-1] + ', "n": -Infinity}', "-Infinity is not JSON", lambda t: t),
        "twice": (lambda t: t[:-1] + ', "prompt": "x"}', "the key 'prompt' occurs twice", None),
        "slashes": (lambda t: f"// {t}", "JSON has no comments", lambda t: ""),
        "hash": (lambda t: f"# {t}", "JSON has no comments", lambda t: ""),
        "repr": (
            lambda t: repr(json.loads(t)) if "'" not in t else t,
            "json.dumps(row)",
            lambda t: t,
        ),
        "literals": (
            lambda t: t[:-1] + ', "b": True}',
            "JSON writes true, false and null",
            lambda t: t,
        ),
        "none": (
            lambda t: t[:-1] + ', "b": None}',
            "JSON writes true, false and null",
            lambda t: t,
        ),
        "bare-key": (lambda t: t.replace('"prompt"', "prompt", 1), "broken JSON", None),
        "raw-newline": (lambda t: t.replace('": "', '": "a\nb', 1), "broken JSON", None),
        "surrogate": (
            lambda t: t.replace('": "', '": "\\ud83d ', 1),
            "half of a surrogate pair",
            None,
        ),
        "two-on-a-line": (
            lambda t: f"{t} {t}",
            "Write each row on a line of its own",
            lambda t: f"{t}\n{t}",
        ),
        "list": (lambda t: "[1, 2]", "a row must be a JSON object", None),
        "text": (lambda t: '"only words"', 'write {"text": …}', None),
        "number": (lambda t: "42", "a row must be a JSON object", None),
        "null": (lambda t: "null", "a row must be a JSON object", None),
        "not-json": (lambda t: "prompt: hello", "broken JSON", None),
    }
    made = []
    for kind, (damage, part, mend) in kinds.items():
        for at in (2, 4):
            good = [json.dumps(row) for row in prompts(w.pairs(5, odd=False))]
            bad = [damage(t) if i == at else t for i, t in enumerate(good, 1)]
            mended = None
            if mend is not None:
                mended = [mend(t) if i == at else t for i, t in enumerate(good, 1)]
            name = f"{kind}-{at}.jsonl"
            files = {name: "\n".join(mended).encode()} if mended else None
            # a raw newline ends the line that it is on
            made.append(broken(name, "\n".join(bad).encode(), part, line=at, mend=files))
    return made


def _json_values(w: Words) -> list[Files]:
    rows = prompts(w.pairs(4, odd=False))
    lines = [json.dumps(row) for row in rows]
    return [
        broken("no-end.json", ("[" + ",\n".join(lines)).encode(), "expected ',' or ']'"),
        broken(
            "no-comma.json", ("[" + "\n".join(lines) + "]").encode(), "expected ',' or ']'", line=2
        ),
        broken(
            "comma-at-end.json",
            ("[" + ",\n".join(lines) + ",]").encode(),
            "a comma too many",
            mend={"comma-at-end.json": ("[" + ",\n".join(lines) + "]").encode()},
        ),
        broken(
            "more-after.json", ("[" + ",\n".join(lines) + "]\n{}").encode(), "after the closing ']'"
        ),
        broken(
            "commas-no-list.json",
            ",\n".join(lines).encode(),
            "Remove the comma after the row",
            line=1,
            mend={"commas-no-list.json": ("[" + ",\n".join(lines) + "]").encode()},
        ),
        broken(
            "pretty-commas.json",
            ",\n".join(json.dumps(r, indent=1) for r in rows).encode(),
            "write all rows between [ and ]",
            mend={"pretty-commas.json": ("[" + ",\n".join(lines) + "]").encode()},
        ),
        broken(
            "texts.json",
            array_of(["a", "b"]),
            'write {"text": …}',
            line=1,
            mend={"texts.json": array_of([{"text": "a"}, {"text": "b"}])},
        ),
        broken("numbers.json", array_of([1, 2]), "a row must be a JSON object", line=1),
        broken(
            "lists.json", array_of([["a", "b"], ["c", "d"]]), "an object that names them", line=1
        ),
        broken("text.json", b'"hello"', "a row must be a JSON object", line=1),
        broken("deep.json", b"[" * 50_000, "broken JSON"),
        broken("deep.jsonl", b'{"a":' * 50_000, "broken JSON"),
        broken("empty-list.json", b"[]", "the file holds no rows"),
        broken("empty-object.json", b"{}", "the columns (none)"),
        broken("empty.jsonl", b"", "the file is empty"),
        broken("blank.jsonl", b"\n \n\n", "the file holds no rows"),
        broken(
            "row-in-pretty.json",
            b'{\n "prompt": "a"\n "completion": "b"\n}',
            "breaks off",
            "the row begins on line 1",
            line=2,
        ),
        broken("cut-pretty.json", json.dumps(rows, indent=2).encode()[:-30], "broken JSON"),
        broken(
            "pretty-repr.json",
            b"[\n{'prompt': 'a', 'completion': 'b'}\n]",
            "json.dumps(row)",
            line=2,
        ),
        broken("yaml.json", b"- prompt: a\n  completion: b\n", "broken JSON", line=1),
        broken(
            "table.jsonl",
            table_of(rows),
            "rename the file to .csv",
            line=1,
            mend={"table.csv": table_of(rows)},
            mended_source="table.csv",
        ),
        broken(
            "old-mac.jsonl",
            "\r".join(lines).encode(),
            "carriage return",
            line=1,
            mend={"old-mac.jsonl": "\n".join(lines).encode()},
        ),
        broken("script.json", b"var rows = [{}];", "broken JSON", line=1),
    ]


def _other_contents(w: Words) -> list[Files]:
    rows = prompts(w.pairs(3, odd=False))
    page = b"<!DOCTYPE html>\n<html><head><title>rows.jsonl - Hugging Face</title>"
    zipped = b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00[Content_Types].xml"
    made = []
    for ending in ("jsonl", "csv", "parquet", "json.gz"):
        made.append(broken(f"lfs.{ending}", LFS, "Git LFS pointer", "269.1 MB", "git lfs pull"))
    for ending in ("json", "txt", "tsv"):
        made.append(broken(f"page.{ending}", page, "web page", "/resolve/"))
    for ending in ("jsonl", "parquet"):
        made.append(
            broken(f"annex.{ending}", b"/annex/objects/SHA256E-s10--ab.jsonl\n", "git annex get")
        )
    for ending in ("jsonl", "csv"):
        made.append(broken(f"book.{ending}", zipped, "Excel", "save the sheet as CSV"))
    for pack, data in (
        (".gz", gzip.compress),
        (".zst", zstandard.compress),
        (".bz2", bz2.compress),
    ):
        content = data(lines_of(rows))
        name = f"packed{pack[1:]}.jsonl"
        made.append(
            broken(
                name,
                content,
                f"rename it to {name}{pack}",
                mend={name + pack: content},
                mended_source=name + pack,
            )
        )
    content = parquet_of(rows)
    made.append(
        broken(
            "is-parquet.json",
            content,
            "rename it to is-parquet.parquet",
            mend={"is-parquet.parquet": content},
            mended_source="is-parquet.parquet",
        )
    )
    for name, head, part in (
        ("pdf.txt", b"%PDF-1.7\n", "a PDF"),
        ("rich.txt", b"{\\rtf1\\ansi hello}", "rich text"),
        ("pickle.json", b"\x80\x04\x95\x10\x00", "a pickle"),
        ("base.csv", b"SQLite format 3\x00", "SQLite"),
        ("old.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "old Excel"),
        ("seven.jsonl", b"7z\xbc\xaf\x27\x1c", "7z"),
        ("not-found.jsonl", b"Entry not found", "'Entry not found'"),
        ("denied.json", b"Invalid username or password.", "login"),
        (
            "s3.json",
            b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>",
            "error message (XML)",
        ),
        ("no.parquet", b"prompt,completion\na,b\n" * 20, "broken Parquet"),
        ("cut.parquet", content[: len(content) // 2], "broken Parquet"),
        ("no.arrow", b"prompt,completion\na,b\n" * 20, "broken Arrow"),
    ):
        made.append(broken(name, head, part))
    for encoding, guess in (("utf-16", "UTF-16"), ("utf-16-be", "")):
        text = lines_of(rows).decode()
        mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
        for ending in ("jsonl", "csv"):
            name = f"{encoding}.{ending}"
            content16 = mark + (text if ending == "jsonl" else table_of(rows).decode()).encode(
                encoding
            )
            right = content16.decode("utf-16").encode()
            made.append(
                broken(
                    name,
                    content16,
                    guess or "UTF-16",
                    "iconv -f UTF-16",
                    line=1,
                    mend={name: right},
                )
            )
    for at in (1, 3):
        lines = [json.dumps(row, ensure_ascii=False) for row in prompts(w.pairs(3, odd=False))]
        lines[at - 1] = lines[at - 1].replace('": "', '": "caf\u00e9 ', 1)
        content = "\n".join(lines).encode("cp1252")
        mended = {f"latin-{at}.jsonl": content.decode("cp1252").encode()}
        made.append(
            broken(f"latin-{at}.jsonl", content, "iconv -f WINDOWS-1252", line=at, mend=mended)
        )
    return made


def _packed(w: Words) -> list[Files]:
    made = []
    rows = lines_of(prompts(w.pairs(4000, odd=False)))
    for pack in (".gz", ".zst", ".bz2"):
        whole = PACK[pack](rows)
        for share in (3, 2):
            made.append(
                broken(
                    f"cut{share}.jsonl{pack}",
                    whole[: len(whole) * (share - 1) // share],
                    "truncated",
                )
            )
        made.append(broken(f"short.jsonl{pack}", whole[:-3], "ends early"))
        name = f"plain.jsonl{pack}"
        made.append(
            broken(
                name,
                rows,
                "rename it to plain.jsonl",
                line=1,
                mend={"plain.jsonl": rows},
                mended_source="plain.jsonl",
            )
        )
        made.append(broken(f"html.jsonl{pack}", PACK[pack](b"<!doctype html><html>"), "web page"))
        made.append(broken(f"none.jsonl{pack}", PACK[pack](b""), "the file holds no rows"))
    return made


def _columns(w: Words) -> list[Files]:
    """Columns that are missing, null or empty from some row on."""
    changes: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
        "missing": (lambda r: {"prompt": r["prompt"]}, "no column 'completion'"),
        "misspelt": (
            lambda r: {"prompt": r["prompt"], "completoin": "x"},
            "this row has 'completoin': rename it",
        ),
        "other-form": (
            lambda r: {"messages": [said("user", "a"), said("assistant", "b")]},
            "All rows of a run are of one form",
        ),
        "alpaca-later": (
            lambda r: {"instruction": "a", "output": "b"},
            "All rows of a run are of one form",
        ),
        "empty": (lambda r: {**r, "completion": ""}, "the completion is empty"),
        "spaces": (lambda r: {**r, "completion": " \n\t"}, "the completion is empty"),
        "null": (lambda r: {**r, "completion": None}, "the completion is empty"),
        "null-prompt": (lambda r: {**r, "prompt": None}, "'prompt' is null"),
        "no-messages": (lambda r: {**r, "prompt": []}, "'prompt' is an empty list"),
        "half-message": (
            lambda r: {**r, "prompt": [{"role": "user"}]},
            "message 1 (user) has no content",
        ),
    }
    made = []
    for kind, (change, part) in changes.items():
        for at, ending in ((2, "jsonl"), (3, "json")):
            rows: list[dict[str, Any]] = [dict(r) for r in prompts(w.pairs(4, odd=False))]
            rows[at - 1] = change(rows[at - 1])
            content = (
                lines_of(rows) if ending == "jsonl" else b"[" + lines_of(rows, ",\n")[:-2] + b"]"
            )
            made.append(broken(f"{kind}-from-{at}.{ending}", content, part, line=at))
    for name, row in (
        ("qa", {"id": 1, "question": "a", "answer": "b", "source": "web"}),
        ("dolly", {"instruction": "a", "context": "", "response": "b", "category": "open_qa"}),
        ("gsm", {"problem": "a", "solution": "b", "level": 5}),
        ("sums", {"document": "long", "summary": "short", "id": "7"}),
        ("orca", {"system": "s", "question": "a", "chosen": "b", "rejected": "c"}),
        ("capitals", {"Question": "a", "Answer": "b"}),
        ("intents", {"utterance": "a", "intent": "b", "rejected": "c"}),
    ):
        made.append(
            broken(f"{name}.jsonl", lines_of([row, row]), "for example --prompt '{", line=1)
        )
    for name, row in (
        ("unknown", {"a": 1, "b": 2, "c": 3}),
        ("ranked", {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}),
        ("models", {"question": "a", "gpt4": "b", "llama": "c"}),
        ("only-prompt", {"prompt": "a"}),
        ("ids", {"input_ids": [1, 2], "labels": [1, 2]}),
    ):
        made.append(
            broken(f"{name}.jsonl", lines_of([row, row]), "in place of QUESTION and ANSWER", line=1)
        )
    row = {"instruction": "", "input": "", "output": "b"}
    made.append(
        broken(
            "nothing-asked.json", lines_of([row]), "'instruction' (and 'input') is empty", line=1
        )
    )
    row = {"instruction": "a", "output": "b", "history": [["only one"]]}
    made.append(
        broken("half-history.json", lines_of([row]), "a list of [question, answer]", line=1)
    )
    row = {"instruction": "a", "output": "b", "history": "not a list"}
    made.append(
        broken("text-history.json", lines_of([row]), "'history' is text but not JSON", line=1)
    )
    mapped = {"prompt": "{questoin}", "completion": "{answer}"}
    rows = [{"question": "a", "answer": "b"}]
    made.append(
        broken("mapped.jsonl", lines_of(rows), "did you mean 'question'?", line=1, options=mapped)
    )
    return made


def _messages(w: Words) -> list[Files]:
    user, answer = said("user", w.say()), said("assistant", w.say())
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}

    def with_call(call: Any) -> list[Any]:
        return [user, said("assistant", None, tool_calls=call), answer]

    kinds: Iterable[tuple[str, Any, str]] = (
        ("unanswered", [user], "no message has the role 'assistant'"),
        ("no-message", [], "no message has the role 'assistant'"),
        ("unknown-role", [said("asistant", "x"), answer], "did you mean 'assistant'?"),
        ("odd-role", [said("narrator", "x"), answer], "message 1 has the role 'narrator'"),
        ("no-role", [{"content": "x"}, answer], "message 1 has no role"),
        ("null-role", [said(None, "x"), answer], "message 1 has no role"),  # type: ignore[arg-type]
        ("number-role", [said(1, "x"), answer], "message 1 has the role 1"),  # type: ignore[arg-type]
        ("null-content", [said("user", None), answer], "message 1 (user) has no content"),
        ("no-content", [{"role": "user"}, answer], "message 1 (user) has no content"),
        ("other-key", [{"role": "user", "message": "x"}, answer], "its keys: 'role', 'message'"),
        ("empty-answer", [user, said("assistant", "")], "(assistant) is empty"),
        ("null-answer", [user, said("assistant", None)], "(assistant) is empty"),
        (
            "image",
            [said("user", [{"type": "image_url", "image_url": {}}]), answer],
            "of type 'image_url'",
        ),
        (
            "two-contents",
            [{"role": "user", "content": "a", "value": "b"}, answer],
            "'content' and 'value'",
        ),
        ("a-text", [user, "hello"], 'a list that holds "hello"'),
        ("null-message", [user, None, answer], "a list that holds null"),
        ("object", {"a": 1}, "must be a list of objects"),
        ("text", "hello", "'messages' is text but not JSON"),
        ("number", 7, "must be a list of objects; it is of type int"),
        ("none", None, "must be a list of objects; it is null"),
        ("call-no-name", with_call([{"function": {}}]), "a tool call needs function.name"),
        ("call-text", with_call(["f"]), "a tool call needs function.name"),
        ("call-object", with_call({"a": 1}), "tool_calls must be a list"),
        (
            "bad-arguments",
            with_call([{"function": {"name": "f", "arguments": "{'a': 1}"}}]),
            "the arguments of 'f' are not JSON",
        ),
        (
            "list-arguments",
            with_call([{"function": {"name": "f", "arguments": [1]}}]),
            "must be an object",
        ),
        (
            "two-calls",
            [user, said("assistant", None, tool_calls=[call], function_call={"name": "f"}), answer],
            "function_call and tool_calls",
        ),
    )
    made = []
    for kind, messages, part in kinds:
        rows = [{"messages": [user, answer]}] * 2 + [{"messages": messages}]
        made.append(broken(f"{kind}.jsonl", lines_of(rows), part, line=3))
        if kind in ("unanswered", "unknown-role", "no-role", "image", "call-no-name"):
            first = lines_of([{"messages": messages}, *rows[:2]])
            made.append(broken(f"{kind}-first.jsonl", first, part, line=1))
    for kind, turns, part in (
        (
            "not-a-call",
            [spoken("human", "a"), spoken("function_call", "look it up"), spoken("gpt", "b")],
            "its text is no call as JSON",
        ),
        ("who", [spoken("alice", "a"), spoken("bob", "b")], "message 1 has the role 'alice'"),
        ("nobody", [{"value": "a"}, {"value": "b"}], "message 1 has no role"),
    ):
        made.append(
            broken(f"sharegpt-{kind}.json", lines_of([{"conversations": turns}]), part, line=1)
        )
    tools = [{"messages": [user, answer], "tools": "weather"}]
    made.append(broken("bad-tools.jsonl", lines_of(tools), "'tools' is text but not JSON", line=1))
    frame = [{"messages": str([user, answer])}]
    good = {"python-text.csv": table_of([{"messages": json.dumps([user, answer])}])}
    made.append(broken("python-text.csv", table_of(frame), "map(json.dumps)", line=2, mend=good))
    return made


def _tables(w: Words) -> list[Files]:
    made = []
    for at in (2, 4):
        rows = [["prompt", "completion"], *map(list, w.pairs(4, odd=False))]
        for kind, change, part in (
            ("long", lambda r: [*r, "more"], "3 fields where the header has 2"),
            ("short", lambda r: r[:1], "1 fields where the header has 2"),
            ("quote", lambda r: [f'"{r[0]}" x', r[1]], "broken CSV"),
            ("nul", lambda r: [f"{r[0]}\0", r[1]], ""),
        ):
            if kind == "nul":
                continue  # from Python 3.13 on the csv module reads it
            bad = [change(r) if i == at else r for i, r in enumerate(rows, 1)]
            text = "\n".join(",".join(r) for r in bad)
            made.append(broken(f"{kind}-{at}.csv", text.encode(), part, line=at))
        text = "\n".join(",".join(r) for r in rows[: at - 1]) + '\n"never closed,x\ny,z\n'
        made.append(broken(f"open-{at}.csv", text.encode(), "broken CSV", line=at))
    p = w.pairs(3, odd=False)
    body = "".join(f"{q},{a}\n" for q, a in p).encode()
    named = {"no-header.csv": b"prompt,completion\n" + body}
    made += [
        broken(
            "no-header.csv",
            body,
            "put a line with 2 names before it, such as prompt,completion",
            mend=named,
        ),
        broken("only-header.csv", b"prompt,completion\n", "the file holds no rows"),
        broken("twice.csv", b"prompt,prompt\na,b\n", "names the column 'prompt' twice", line=1),
        broken(
            "nameless.csv",
            b"prompt,,completion\na,b,c\n",
            "column 2 of the header has no name",
            line=2,
        ),
        broken("no-names.csv", b",,\na,b,c\n", "no column of the header has a name", line=1),
        broken("one-column.csv", b"prompt\na\n", "the columns ('prompt')", line=2),
        broken(
            "colon.csv", b"prompt:completion\na:b\n", "the columns ('prompt:completion')", line=2
        ),
        broken(
            "old-mac.csv",
            b"prompt,completion\ra,b\rc,d\r",
            "carriage return",
            mend={"old-mac.csv": b"prompt,completion\na,b\nc,d\n"},
        ),
        broken(
            "empty-answer.csv", b"prompt,completion\na,b\nc,\n", "the completion is empty", line=3
        ),
        broken("blank-end.csv", b"prompt,completion\na,b\n,\n", "the completion is empty", line=3),
        broken(
            "unquoted.csv",
            b"prompt,completion\nWhy, then?,b\n",
            "quote a field that holds ','",
            line=2,
            mend={"unquoted.csv": b'prompt,completion\n"Why, then?",b\n'},
        ),
        broken(
            "unknown.csv", b"frage,antwort,x\na,b,c\n", "in place of QUESTION and ANSWER", line=2
        ),
    ]
    return made


def _preferences(w: Words) -> list[Files]:
    made = []
    for at in (1, 3):
        rows: list[dict[str, Any]] = [{**r, "label": True} for r in prompts(w.pairs(3, odd=False))]
        rows[at - 1]["label"] = False
        made.append(
            broken(
                f"kto-{at}.jsonl",
                lines_of(rows),
                "'label' is false",
                "leave such rows out",
                line=at,
            )
        )
        alpaca = [
            {"instruction": r["prompt"], "output": r["completion"], "kto_tag": r["label"]}
            for r in rows
        ]
        made.append(
            broken(
                f"kto-tag-{at}.jsonl",
                lines_of(alpaca),
                "'kto_tag' is false",
                line=at,
                mend={f"kto-tag-{at}.jsonl": lines_of([r for r in alpaca if r["kto_tag"]])},
            )
        )
    table = [{"prompt": "a", "completion": "b", "label": "False"}]
    made.append(broken("kto.csv", table_of(table), "'label' is false", line=2))
    transcript = {
        "chosen": "\n\nHuman: a\n\nAssistant: b",
        "rejected": "\n\nHuman: a\n\nAssistant: c",
    }
    made.append(
        broken(
            "transcripts.jsonl",
            lines_of([transcript]),
            "name the column 'text'",
            line=1,
            mend={"transcripts.jsonl": lines_of([{"text": transcript["chosen"]}])},
        )
    )
    for kind, chosen in (("empty", ""), ("null", None)):
        row = {"prompt": "a", "chosen": chosen, "rejected": "b"}
        made.append(
            broken(f"chosen-{kind}.jsonl", lines_of([row]), "the completion is empty", line=1)
        )
    row = {
        "prompt": [said("user", "a")],
        "chosen": [said("user", "b")],
        "rejected": [said("user", "c")],
    }
    made.append(broken("chosen-asks.jsonl", lines_of([row]), "not clear what is asked", line=1))
    table = pyarrow.table({"prompt": ["a", "b"], "completion": [1.5, float("nan")]})
    made.append(broken("nan.parquet", parquet_of(table), "'completion' is no number (NaN)", line=2))
    row = {"question": "a", "response_j": "b", "response_k": "c"}
    made.append(broken("j-k.jsonl", lines_of([row]), "in place of QUESTION and ANSWER", line=1))
    return made


def _documents(w: Words) -> list[Files]:
    rows = prompts(w.pairs(2))
    splits = {"train": rows, "test": rows}
    columns = {"prompt": ["a", "b"], "completion": ["c"]}
    more = {"prompt": ["a", "b"], "completion": ["c", "d"]}
    return [
        broken(
            "splits.json",
            array_of(splits, 1),
            "write each list to a file of its own",
            mend={"splits.json": array_of(rows)},
        ),
        broken(
            "uneven.json",
            array_of(columns),
            "different lengths ('prompt' 2, 'completion' 1)",
            mend={"uneven.json": array_of(more)},
        ),
        broken(
            "no-inputs.json",
            array_of({"instruction": ["a", "b"], "input": [], "output": ["c", "d"]}),
            "'input' 0",
        ),
        broken("wrapped-texts.json", array_of({"data": ["a", "b"]}), "the columns ('data')"),
        broken(
            "wrapped-unknown.json",
            array_of({"data": [{"x": 1, "y": 2}]}, 1),
            "the columns ('x', 'y')",
        ),
        broken(
            "settings.json",
            array_of({"name": "x", "version": 1}),
            "the columns ('name', 'version')",
        ),
        broken(
            "wrapped-bad-row.json",
            array_of({"data": [rows[0], {"prompt": "a"}]}, 1),
            "no column 'completion'",
        ),
    ]


def _folders(w: Words) -> list[Files]:
    content = lines_of(prompts(w.pairs(2)))

    def folder(name: str, files: Mapping[str, bytes], *says: str) -> Files:
        return Files(
            name, {f"{name}/{path}": data for path, data in files.items()}, name, says=says
        )

    card = b"---\nconfigs:\n- config_name: %s\n  data_files: a.jsonl\n- config_name: %s\n  data_files: b.jsonl\n---\n"
    gone = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
    two = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_sft\n    path: a.jsonl\n  - split: train_gen\n    path: b.jsonl\n---\n"
    return [
        folder(
            "only-test", {"test.jsonl": content}, "holds only rows to measure on", "name the file"
        ),
        folder(
            "only-held-out",
            {"valid.jsonl": content, "test.jsonl": content},
            "holds only rows to measure on",
        ),
        folder(
            "no-rows",
            {"README.md": b"# x", "model.safetensors": b"x"},
            "no file of rows in this folder",
        ),
        folder(
            "licence",
            {"LICENSE.txt": b"words", "config.json": b"{}"},
            "no file of rows in this folder",
        ),
        folder(
            "two-trains",
            {
                "data/train_sft-00000-of-00001.jsonl": content,
                "data/train_gen-00000-of-00001.jsonl": content,
            },
            "several training splits (train_gen, train_sft)",
        ),
        folder(
            "two-trains-card",
            {"README.md": two, "a.jsonl": content, "b.jsonl": content},
            "several training splits (train_sft, train_gen)",
        ),
        folder(
            "two-configs",
            {"README.md": card % (b"en", b"de"), "a.jsonl": content, "b.jsonl": content},
            "several sets of rows (en, de)",
        ),
        folder(
            "gone",
            {"README.md": gone, "x.jsonl": content},
            "no such file of rows is here",
            "Git LFS",
        ),
        folder(
            "bad-card",
            {"README.md": b"---\nconfigs: [\n---\n", "a.jsonl": content},
            "the YAML between the lines of --- is broken",
        ),
        folder("pointers", {"train.jsonl": LFS, "test.jsonl": LFS}, "Git LFS pointer"),
        folder(
            "bad-held-out",
            {"train.jsonl": content, "valid.jsonl": b'{"prompt": "a"}\n'},
            "the columns ('prompt')",
        ),
    ]


def _names(w: Words) -> list[Files]:
    content = lines_of(prompts(w.pairs(2)))
    made = []
    for ending, part in (
        ("xlsx", "save the sheet as CSV"),
        ("zip", "unpack it"),
        ("md", "rename it to .txt"),
        ("pkl", "write the rows as JSON lines"),
        ("yaml", "write the rows as JSON lines"),
        ("doc", "known: .jsonl"),
        ("jsonl.xz", "unpack it with `xz -d`"),
    ):
        made.append(broken(f"rows.{ending}", content, "the format", part))
    made.append(broken("rows", content, "of a name without an ending"))
    made.append(
        Files(
            "missing.jsonl",
            {"missin.jsonl": content},
            "missing.jsonl",
            says=("did you mean 'missin.jsonl'?",),
        )
    )
    return made
