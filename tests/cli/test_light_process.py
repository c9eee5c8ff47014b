"""What the command's own process does not import, and that nothing is lost by it.

Seconds differ from machine to machine; which modules are there does not. `benchmarks/startup.py` has
the seconds.
"""

import json
import subprocess
import sys

import pytest

from lorakit.models import light

# Packages that transformers imports where they are installed, and parts of torch that nothing here uses.
LEFT_OUT = (
    *("scipy", "sklearn", "pandas", "datasets", "pyarrow", "peft", "torchvision"),
    *("torch._dynamo.convert_frame", "torch._dynamo.utils", "torch._inductor"),
    *("torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint"),
    *("torch.nn.attention.flex_attention"),
)
RUNNER = """
import gc, json, sys
from lorakit.cli.main import main

left_out, lines = json.load(sys.stdin)
found, before = {}, [gc.isenabled()]
for name, line in lines.items():
    sys.argv = ["lorakit", *line]
    try:
        main()
    except SystemExit as stop:
        found[name] = [stop.code, [m for m in left_out if m in sys.modules]]
import lorakit.serving.server
found["serve"] = [0, [m for m in left_out if m in sys.modules]]

import torch
from transformers.utils import is_torch_distributed_available
marks = list(sys.modules["torch._dynamo"].__dict__["_marks"])
asked = [torch.distributed.is_available(), is_torch_distributed_available(), gc.isenabled()]

# The compiler comes when it is wanted, and knows what was marked before.
doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist()
from torch._dynamo import trace_rules
known = [trace_rules.is_callable_allowed(f) for mark, f in marks if mark == "allow_in_graph"]
known += [f._dynamo_marked_constant for mark, f in marks if mark != "allow_in_graph"]
import scipy.optimize
told = {"found": found, "asked": asked, "doubled": doubled, "known": known}
print("\\n" + json.dumps(told | {"kind": type(torch._dynamo).__name__}))
"""


@pytest.fixture(scope="module")
def process(model_folder, tmp_path_factory):
    """One process of the command: a short run, an answer; then what a program of its own would do."""
    folder = tmp_path_factory.mktemp("light")
    rows = [json.dumps({"prompt": f"say {n}", "completion": str(n)}) for n in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    model = ["--model", str(model_folder)]
    short = ["--max-steps", "1", "--eval-share", "0", "--samples", "0"]
    lines = {
        "train": ["train", "--data", "rows.jsonl", "--out", "run", *model, *short],
        "generate": ["generate", *model, "--adapter", "run/adapter", "say 3"],
        "eval": ["eval", *model, "--data", "rows.jsonl"],
    }
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([LEFT_OUT, lines]),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", ["train", "generate", "serve"])
def test_left_out(process, command):
    assert process["found"][command] == [0, []]


def test_what_was_asked_of_others_is_answered_again(process):
    """torch has its distributed part; transformers was told of none, and keeps to it."""
    assert process["asked"] == [True, False, True]


def test_the_compiler_comes_when_it_is_wanted(process):
    assert process["doubled"] == [2.0, 2.0]
    assert process["kind"] == "module"
    assert process["known"]
    assert all(process["known"])


def test_a_program_that_imports_lorakit_has_transformers_as_it_is():
    import lorakit.execution.attention  # noqa: F401

    assert not any(isinstance(finder, light._Light) for finder in sys.meta_path)
    assert not isinstance(sys.modules.get("torch._dynamo"), light._Later)


def test_a_package_is_missing_only_while_asked(monkeypatch):
    there = sys.modules["json"]
    with light._missing("json"), pytest.raises(ImportError):
        import json as _  # noqa: F401
    assert sys.modules["json"] is there
    with light._missing("no_such_package"):
        pass
    assert "no_such_package" not in sys.modules
