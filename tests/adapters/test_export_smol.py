"""The built-in model in llama.cpp: an adapter, and a merged model, answer as they do in lorakit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapter_models import adapt
from gguf_oracle import convert
from llama_cpp import LlamaCpp
from lorakit.adapters import save_adapter
from lorakit.adapters.export import write_gguf_adapter
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.pairs import read_stored
from lorakit.cli.main import run
from lorakit.data import Example, encode_prompt, resolve_template
from lorakit.data.spec import DataSpec
from lorakit.execution.generate import end_tokens, generate
from lorakit.lora import lora_layers
from lorakit.models import load_model
from lorakit.models.sources import resolve
from lorakit.models.spec import ModelSpec

pytestmark = [pytest.mark.smol, pytest.mark.readers]
PROMPTS = (
    "Name three fruits.",
    "What is the capital of France?",
    "Write one sentence about rain.",
    "How many days are in a week?",
    "Translate 'good morning' into Spanish.",
    "What do bees make?",
    "Give a synonym of 'fast'.",
    "Who wrote Hamlet?",
    "What is 12 plus 30?",
    "Name a planet with rings.",
    "Finish: The early bird",
    "What colour is the sky?",
    "Why do leaves fall?",
    "Suggest a name for a cat.",
    "Order 10482: what is its number?",
    "List two programming languages.",
    "What is water made of?",
    "Say hello politely.",
    "Which animal barks?",
    "def add(a, b):",
)
NEW = 16


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """The model with pairs that change its answers, rsLoRA and uneven; folders and answers."""
    room = tmp_path_factory.mktemp("smol")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    model, tokenizer = load_model(dtype="float32")
    template = resolve_template(DataSpec(), tokenizer)
    prompts = [
        encode_prompt(Example(origin=text, prompt=text), tokenizer, template).tolist()
        for text in PROMPTS
    ]
    plain = generate(model, tokenizer, prompts, max_new_tokens=NEW)
    adapt(model, rank=8, alpha=16.0, rslora=True, rank_pattern={"v_proj": 4})
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.A.mul_(0.1)
            layer.B.mul_(0.2)
    folder = save_adapter(model, room / "adapter")
    answers = generate(model, tokenizer, prompts, max_new_tokens=NEW)
    with torch.no_grad():
        logits = model(torch.tensor([prompts[0]])).logits[0]
    yield {
        "room": room,
        "folder": folder,
        "prompts": prompts,
        "plain": plain,
        "answers": answers,
        "logits": logits,
        "ends": end_tokens(model, tokenizer),
        "base": GgufBase.of(model.config),
    }
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base_file(adapted) -> Path:
    """The base in float32, by llama.cpp's converter."""
    file = adapted["room"] / "base.gguf"
    convert(
        "convert_hf_to_gguf.py",
        [[resolve(ModelSpec()).folder, "--outtype", "f32", "--outfile", file]],
    )
    return file


def answers_of(there: LlamaCpp, adapted: dict[str, Any]) -> int:
    """How many of the prompts it answers greedily as lorakit does, to the token."""
    pairs = zip(adapted["prompts"], adapted["answers"], strict=True)
    return sum(
        there.greedy(prompt, NEW, adapted["ends"]) == list(answer.ids) for prompt, answer in pairs
    )


def test_an_adapter_answers_as_in_lorakit(adapted, base_file, record_property):
    changed = sum(a.ids != p.ids for a, p in zip(adapted["answers"], adapted["plain"], strict=True))
    assert changed >= 15, "the adapter hardly changes the answers: nothing would be tested"
    file = write_gguf_adapter(
        read_stored(adapted["folder"]), adapted["room"] / "adapter.gguf", base=adapted["base"]
    )
    with LlamaCpp(base_file, file) as there:
        same = answers_of(there, adapted)
        difference = float((there.logits(adapted["prompts"][0]) - adapted["logits"]).abs().max())
    record_property("same greedy answers of 20", same)
    record_property("largest logit difference", difference)
    print(
        f"{same} of 20 the same, {changed} changed by the adapter; largest logit difference {difference:.2g}"
    )
    assert same >= 18
    assert difference < 0.1


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_merged_model_answers_as_its_adapter(adapted, kind, capsys):
    file = adapted["room"] / f"merged-{kind}.gguf"
    code = run(
        [
            "export",
            str(adapted["folder"]),
            "--to",
            "gguf-merged",
            "--type",
            kind,
            "--out",
            str(file),
        ]
    )
    assert code == 0, capsys.readouterr().err
    with LlamaCpp(file) as there:
        same = answers_of(there, adapted)
        logits = there.logits(adapted["prompts"][0])
    difference = float((logits - adapted["logits"]).abs().max())
    print(f"{kind}: {same} of 20 the same; largest logit difference {difference:.2g}")
    if kind == "f32":
        assert same >= 18
        assert difference < 0.1
    else:
        # 8 bits a weight: distributions near, most first tokens the same.
        log_p, log_q = adapted["logits"].log_softmax(-1), logits.log_softmax(-1)
        assert float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) < 0.05
        assert file.stat().st_size < 200e6
