"""Options of `train`, two at a time: what was trained is what is saved and loaded again, or one refusal.

Each option says of itself that it works. What two of them make of each other is seen here: the held-out loss of a
run is that of the base with the saved adapter, loaded anew.
"""

import json
from itertools import combinations

import pytest

import lorakit
from families import tiny, tokenizer
from lorakit.cli.main import run
from lorakit.data import DataSpec, load_data
from lorakit.data.batches import micro_batches
from lorakit.training import CausalLoss, held_out_loss

OPTIONS = {
    "dora": ["--dora"],
    "rslora": ["--rslora"],
    "alora": ["--alora", "question"],
    "pissa": ["--init", "pissa"],
    "eva": ["--init", "eva"],
    "lora_ga": ["--init", "lora_ga"],
    "lora+": ["--lora-plus", "4", "--weight-decay", "0.1"],
    "moments": ["--moments", "8bit"],
    "loss": ["--loss", "dft", "--label-smoothing", "0.1", "--row-weight", "weight"],
    "modules": ["--modules-to-save", "norm"],
    "biases": ["--bias", "all"],
    "lora_bias": ["--lora-bias"],
    "tokens": ["--train-tokens", "<|im_end|>"],
    "nf4": ["--base-dtype", "nf4"],
    "head": ["--targets", "all-linear,lm_head"],
    "recompute": ["--activation-checkpointing", "on"],
}
# What one of two options makes impossible, and the word by which it is said.
REFUSED = {
    ("dora", "alora"): "no variant has both",
    ("dora", "lora_bias"): "lora_bias",
    ("alora", "lora_bias"): "lora_bias",
    ("alora", "head"): "lm_head",
    ("tokens", "head"): "lm_head.weight has a pair",
}
ONE_OPTION = ({"pissa", "eva", "lora_ga"},)


def pairs():
    for first, second in combinations(OPTIONS, 2):
        if not any({first, second} <= group for group in ONE_OPTION):
            yield first, second


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    tiny("llama").save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    rows = (
        {"prompt": f"question {i} ab", "completion": f"answer {i % 3} cd", "weight": 1 + i % 2}
        for i in range(24)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("first", "second"), list(pairs()))
def test_what_is_trained_is_what_is_loaded(first, second, place, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    rows, out = place / "rows.jsonl", tmp_path / "run"
    words = ["train", "--model", place / "base", "--data", rows, "--out", out, "--dtype", "float32"]
    words += ["--max-steps", 3, "--rank", 4, "--batch-size", 6, "--learning-rate", 0.01]
    code = run([str(word) for word in (*words, *OPTIONS[first], *OPTIONS[second])])
    said = capfd.readouterr().err
    if (first, second) in REFUSED:
        assert code == 2
        assert REFUSED[first, second] in said
        assert said.startswith("error: ")
        return
    assert code == 0, said
    trained = json.loads((out / "result.json").read_text())
    packing = {"base_dtype": "nf4"} if "nf4" in (first, second) else {}
    model, words_of = lorakit.load_model(str(place / "base"), dtype="float32", **packing)
    lorakit.load_adapter(model, str(out / "adapter"))
    weight = "weight" if "loss" in (first, second) else None
    data = load_data(DataSpec(data=(str(rows),), row_weight=weight), words_of, seed=0)
    batches = micro_batches(data.eval, range(len(data.eval)), 4096)
    assert len(data.eval) > 1
    measured = held_out_loss(batches, CausalLoss(model))
    assert measured == pytest.approx(trained["eval_loss"], rel=2e-5)
    assert trained["eval_loss"] != trained["eval_loss_before"]
