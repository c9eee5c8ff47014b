"""The examples that a command's --help prints are run as they are printed, on a tiny model and few rows.

A stand-in lies where the cache has the built-in model, so that examples that name no model run without
the network. What an example says to have ("runs/first/adapter", the name "invoices" in the store, a
fine-tuned folder) is there as an earlier command leaves it.
"""

import io
import json
import shlex
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from families import saved, tiny, tokenizer
from lorakit.cli.main import COMMANDS, GROUPS, run
from lorakit.comparing import command as comparing
from lorakit.comparing import general
from lorakit.experiments import experiment, in_process
from lorakit.models import default

WORDS = ("lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper", "violet")
# Command -> why its examples are not run here.
NOT_RUN = {
    "demo": "trains for minutes; tests/run/commands has its parts",
    "pull": "needs a repository of the hub",
    "push": "needs a repository of the hub",
    "serve": "does not end by itself; tests/serving starts servers",
}
# Command -> what is added to its examples, which would train for a minute.
SHORTER = {
    "compare": ("--seeds", "1", "--rates", "1", "--evaluations", "1", "--samples", "2"),
    "rank": ("--allow-short",),  # forty rows are refused
}
EVERY = [(name,) for name in COMMANDS if name != "adapters"]
EVERY += [(group, name) for group, (_, names) in GROUPS.items() for name in names]

# llama.cpp's converter knows the tokenizers of real models alone, and the stand-in's is none:
# tests/adapters/test_export_chat.py exports for Ollama with the built-in model itself.
NOT_RUN_LINES = ("--to ollama",)


def examples(command, capsys) -> list[str]:
    """Lines of the printed help that begin with the command itself."""
    assert run([*command, "--help"]) == 0
    lines = (line.strip() for line in capsys.readouterr().out.splitlines())
    head = shlex.join(["lorakit", *command])
    return [line for line in lines if line == head or line.startswith(head + " ")]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal so wide that no example is broken over two lines."""
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with all that the examples name, and the cache and the store beside it."""
    place, work = tmp_path_factory.mktemp("examples"), tmp_path_factory.mktemp("examples") / "work"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LORAKIT_CACHE", "LORAKIT_STORE"):
            patch.setenv(name, str(place / name.lower()))
        work.mkdir()
        patch.chdir(work)
        _base(default.location())
        words = [f"{first} {second}" for first in WORDS for second in WORDS[:4]]
        rows = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words]
        for name in ("rows", "test", "more", "mails", "held_out"):
            (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = "".join(f"say {word},{word[::-1]}\n" for word in words)
        (work / "rows.csv").write_text("question,answer\n" + table)
        (work / "notes.csv").write_text("prompt,completion\n" + table)
        common = ("train", "--data", "rows.jsonl", "--max-steps", "1", "--batch-size", "2")
        for out, name, *seed in (
            ("runs/first", "invoices"),
            ("runs/second", "invoices", "--seed", "1"),
            ("runs/third", "letters", "--seed", "2"),
        ):
            assert run([*common, "--out", out, *seed]) == 0
            assert run(["adapters", "add", f"{out}/adapter", name]) == 0
        _base(work / "base-folder")
        _base(work / "tuned-folder", moved=0.01)
        saved(work / "gpt2-folder", "gpt2")
        pair = {"lora_A": torch.randn(3 * 4, 48), "lora_B": torch.randn(3 * 48, 4)}
        names = {f"transformer.h.0.attn.c_attn.{name}": x for name, x in pair.items()}
        torch.save(names, work / "lora.pt")
    return place, work


def _base(folder, moved=0.0):
    """A tiny model whose every module takes rank 32."""
    config = tiny("llama").config
    config.num_key_value_heads = config.num_attention_heads
    config.max_position_embeddings = 2048
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.fixture
def place(given, tmp_path, monkeypatch):
    """A copy of the folder, the cache and the store, to be changed by one command's examples."""
    own = tmp_path / "place"
    shutil.copytree(given[0], own, symlinks=True)
    shutil.copytree(given[1], tmp_path / "work")
    for name in ("LORAKIT_CACHE", "LORAKIT_STORE"):
        monkeypatch.setenv(name, str(own / name.lower()))
    monkeypatch.chdir(tmp_path / "work")
    # One process a trial, of which each takes seconds to begin, is tested elsewhere.
    for module in (experiment, comparing):
        monkeypatch.setattr(
            module, "processes", lambda root, report, workers=1: in_process(root, report=report)
        )
    monkeypatch.setattr(general, "PROMPTS", general.PROMPTS[:2])
    config = json.loads((default.location() / "config.json").read_text())
    monkeypatch.setattr(default, "CONFIG", config)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n"))
    return tmp_path / "work"


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_the_examples_of_help_run(command, place, capsys):
    printed = examples(command, capsys)
    assert printed, "no example in --help"
    if command[-1] in NOT_RUN:
        return
    for line in printed:
        if any(part in line for part in NOT_RUN_LINES):
            continue
        for folder in ("runs/rank", "runs/compare"):  # of the example before
            shutil.rmtree(folder, ignore_errors=True)
        if command == ("train",):
            shutil.rmtree("runs", ignore_errors=True)
        shorter = () if "--inspect" in line else SHORTER.get(command[-1], ())
        code = run([*shlex.split(line)[1:], *shorter])
        said = capsys.readouterr()
        assert code == 0, f"{line}\n{said.out[-2000:]}\n{said.err[-2000:]}"
