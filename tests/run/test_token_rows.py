"""Runs that train modules whole, biases, or rows of tokens beside the pairs."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from families import saved, tiny, tokenizer
from lorakit.adapters import load_adapter, read_adapter
from lorakit.config import load_config
from lorakit.errors import ConfigError
from lorakit.models import load_model
from lorakit.run.commands.training import run_training

WORDS = ["lamp", "desk", "river", "stone", "cloud", "paper"]
ROWS = [{"prompt": f"say {word}", "completion": word[::-1]} for word in WORDS]
IDS = torch.tensor([[5, 9, 2, 60, 33]])
# peft reads an attribute that transformers 5 has renamed, and speaks of ties.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return file


def settings(base, rows, out, **options):
    fixed = {"model": str(base), "data": str(rows), "out": str(out), "dtype": "float32"}
    fixed |= {"samples": 0, "max_steps": 2, "learning_rate": 1e-2, "targets": ["q_proj"]}
    return load_config(None, fixed | options)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_tokens_are_trained_and_gone_on_from(tied, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    tiny("llama", tie_word_embeddings=tied).save_pretrained(base)
    tokenizer().save_pretrained(base)
    row = tokenizer().encode("say")[-1]  # of a token that every prompt has
    token = tokenizer().convert_ids_to_tokens(row)
    run_training(
        settings(base, rows, tmp_path / "a", train_tokens=[token], modules_to_save=["norm"])
    )
    spec = read_adapter(tmp_path / "a" / "adapter").spec
    held = {"model.embed_tokens"} if tied else {"model.embed_tokens", "lm_head"}
    assert spec.token_rows == dict.fromkeys(held, (row,))
    ours, _ = load_model(str(base), dtype="float32")
    plain = {n: p.clone() for n, p in ours.named_parameters(remove_duplicate=False)}
    load_adapter(ours, tmp_path / "a" / "adapter")
    for path in ("model.embed_tokens", "lm_head"):
        moved = (ours.get_submodule(path).weight != plain[f"{path}.weight"]).any(dim=1)
        assert moved.nonzero().flatten().tolist() == [row], path
    assert not torch.equal(ours.model.norm.weight, plain["model.norm.weight"])
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "a" / "adapter").eval()
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)
    again = settings(base, rows, tmp_path / "b")
    again = replace(again, start=replace(again.start, parent=str(tmp_path / "a" / "adapter")))
    result = run_training(again)
    before = json.loads((tmp_path / "a" / "result.json").read_text())["eval_loss"]
    assert result["eval_loss_before"] == pytest.approx(before, abs=1e-6)


def test_a_text_that_is_no_token(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    base = saved(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"train_tokens has '<\|nowhere\|>', which .* reads as"):
        run_training(settings(base, rows, tmp_path / "a", train_tokens=["<|nowhere|>"]))
