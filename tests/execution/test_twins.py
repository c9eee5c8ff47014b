"""Tokens that a frozen head cannot tell apart are found, and said of the tokens that end answers."""

import json

import pytest
import torch

from families import saved, tiny
from lorakit.config import load_config
from lorakit.execution.twins import twin_of
from lorakit.run.commands.training import prepare


def test_the_other_token_with_the_same_row():
    model = tiny("llama")
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[7] = head[3]
        head[9] = head[3] * 1.01
    assert (twin_of(model, 3), twin_of(model, 7)) == (7, 3)
    assert twin_of(model, 9) is None
    assert twin_of(model, 5) is None
    assert twin_of(model, len(head)) is None
    logits = model(torch.tensor([[1, 2, 4]])).logits[0]
    assert torch.equal(logits[:, 3], logits[:, 7])


@pytest.mark.parametrize(("targets", "says"), [("all-linear", True), ("lm_head", False)])
def test_an_end_that_cannot_be_taught_is_said(tmp_path, monkeypatch, targets, says):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    folder = saved(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": "say lamp", "completion": "desk"}) + "\n" for _ in "abc")
    )
    flags = {"model": str(folder), "data": (str(rows),), "eval_share": 0.0, "targets": targets}
    assert not any("ends answers" in note for note in prepare(load_config(None, flags)).data.notes)
    end = int(prepare(load_config(None, flags)).data.train.ids_N[-1])
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[(end + 1) % len(head)] = head[end]
    model.save_pretrained(folder)
    notes = prepare(load_config(None, flags)).data.notes
    assert (
        any(repr(tokenizer.decode([end])) in note and "ends answers" in note for note in notes)
        == says
    )
