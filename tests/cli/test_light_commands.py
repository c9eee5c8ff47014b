"""Help, usage errors and missing files are answered before anything heavy is imported.

Seconds differ from machine to machine; what is imported does not. `benchmarks/startup.py` has the
seconds.
"""

import json
import subprocess
import sys

import pytest

from lorakit.cli.main import COMMANDS, GROUPS

HEAVY = (
    *("torch", "transformers", "tokenizers", "numpy", "scipy", "sklearn", "matplotlib", "pandas"),
    *("datasets", "pyarrow", "safetensors", "gguf", "fastapi", "uvicorn", "jinja2", "sacrebleu"),
)
RUNNER = """
import contextlib, io, json, sys
from lorakit.cli.main import run
heavy, lines = json.load(sys.stdin)
told = []
for line in lines:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(line)
    told.append([code, out.getvalue(), err.getvalue(), [m for m in heavy if m in sys.modules]])
json.dump(told, sys.stdout)
"""


def told(lines, folder, **environment):
    """Exit code, stdout, stderr and the heavy modules so far, of each line in one new process."""
    import os

    process = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([HEAVY, lines]),
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


def test_every_help(tmp_path):
    lines = [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    for group, (_, names) in GROUPS.items():
        lines += [[group, "--help"], *([group, name, "--help"] for name in names)]
    for line, (code, out, _, heavy) in zip(lines, told(lines, tmp_path), strict=True):
        assert heavy == [], line
        assert out.strip(), line
        assert code == (0 if line else 2), line


@pytest.fixture
def place(tmp_path):
    """A folder with rows, a model folder by name, a file that is no model, and an empty folder."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "bad.yaml").write_text("rnak: 8\n")
    (tmp_path / "kind.yaml").write_text("rank: eight\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "models").mkdir()
    (tmp_path / "notes.bin").write_bytes(b"12")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    return tmp_path


ROWS = ("--data", "rows.jsonl")
WRONG = {
    # a usage error
    "trian": "train",
    "adapters lst": "list",
    "train --rnak 8": "--rank",
    "serve --prt 8000": "--port",
    "adapters list --jsn": "--json",
    "train bad.yaml": "'rank'",
    "rank bad.yaml": "unknown key 'rnak'",
    "compare bad.yaml": "unknown key 'rnak'",
    "train kind.yaml": "a whole number",
    "train missing.yaml": "missing.yaml does not exist",
    "train --rank eight": "a whole number",
    "train --rank 0": "at least 1",
    "train --init kaimin": "kaiming",
    "generate --temperature hot hello": "--temperature",
    "adapters combine a b --how tie": "'ties'",
    "adapters shrink a": "rank or an energy",
    "adapters extract --base model --tuned model": "rank or an energy",
    "merge --adapter a": "--out",
    "export a": "--to",
    "export a --to olama --out b": "ollama",
    "generate": "no prompt",
    "serve --port http": "a whole number",
    "count --shape 512by64": "512x64",
    # rows that are not here
    "train --data row.jsonl": "rows.jsonl",
    "check --data row.jsonl": "rows.jsonl",
    "eval --data row.jsonl": "rows.jsonl",
    "rank --data row.jsonl": "rows.jsonl",
    "compare --data row.jsonl": "rows.jsonl",
    "compare --forecast --data row.jsonl": "rows.jsonl",
    "train --data rows.jsonl --eval-data row.jsonl": "rows.jsonl",
    "adapters shrink model --rank 2 --data row.jsonl": "rows.jsonl",
    "train --data nowhere/rows.jsonl": "nowhere",
    # an adapter that is not here
    "generate --adapter runs/first/adapter hello": "runs/first/adapter",
    "chat --adapter invoices --adapter base": "invoices",
    "eval --data rows.jsonl --adapter invoices": "invoices",
    "train --data rows.jsonl --from invoices": "invoices",
    "merge --adapter invoices:0.5 --adapter b:0.5 --out new": "invoices",
    "export invoices --to peft --out new": "invoices",
    "export invoices --lint": "invoices",
    "push invoices me/mine": "invoices",
    "adapters show invoices": "invoices",
    "adapters diff invoices letters": "invoices",
    "adapters combine invoices:0.7 letters": "invoices",
    "adapters verify invoices --base": "invoices",
    "adapters add first invoices": "first",
    "rank --inspect invoices": "invoices",
    "serve --adapters invoices": "invoices",
    "serve --adapters ./invoices": "no adapter folder invoices",
    "generate --adapter empty hello": "adapter_config.json",
    "generate --adapter model hello": "--model",
    "import lora.pt --base model --alpha 8": "lora.pt",
    # a model that is not here, or is none
    "train --data rows.jsonl --model ./tiny": "./tiny",
    "train --data rows.jsonl --model models/tiny": "models/tiny",
    "train --data rows.jsonl --model smollm2-135": "smollm2-135m",
    "train --data rows.jsonl --model notes.bin": "notes.bin",
    "train --data rows.jsonl --model empty": "config.json",
    "train --data rows.jsonl --model smollm2-135m --revision v1": "revision",
    "check --data rows.jsonl --model empty": "config.json",
    "eval --data rows.jsonl --model empty": "config.json",
    "compare --data rows.jsonl --model empty": "config.json",
    "rank --data rows.jsonl --model empty": "config.json",
    "count --model empty": "config.json",
    "generate --model empty hello": "config.json",
    "chat --model empty": "config.json",
    "serve --base empty": "config.json",
    "merge --undo model --out new --model empty": "config.json",
    "adapters extract --base empty --tuned model --rank 2": "config.json",
    "adapters extract --base model --tuned empty --rank 2": "config.json",
    "import notes.bin --base empty": "config.json",
    # a folder to write to that is in use
    "train --data rows.jsonl --out full": "mine.txt",
    "rank --data rows.jsonl --out full": "mine.txt",
    "compare --data rows.jsonl --out full": "mine.txt",
    "train --resume --out empty": "no run to resume",
    "train --data rows.jsonl --save-as a/b": "a/b",
}


def test_mistakes(place):
    lines = [text.split() for text in WRONG]
    environment = {"LORAKIT_STORE": str(place / "store"), "LORAKIT_CACHE": str(place / "cache")}
    answers = told(lines, place, **environment)
    wrong = [
        (text, code, err, heavy)
        for (text, wanted), (code, _, err, heavy) in zip(WRONG.items(), answers, strict=True)
        if heavy or code != 2 or wanted not in " ".join(err.split()) or "Traceback" in err
    ]
    assert wrong == []
