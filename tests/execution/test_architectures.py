"""Architectures against their own code: one of each kind of attention and layer, and all of them."""

import dataclasses
import os
from types import SimpleNamespace

import bench
import pytest
import torch
import zoo
import zoo_table
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import zoo_answers
import zoo_checks
from architectures import VARIANTS, names, not_built, tiny_folder
from zoo_checks import examine, verdict
from zoo_oracle import Oracle

# One of each kind: what is special about it.
KINDS = {
    "llama": "grouped keys",
    "gpt2": "learnt positions, (in, out) weights",
    "gpt_neox": "one matrix of queries, keys and values",
    "falcon": "one key head for all",
    "gemma2": "soft caps, windows by layer",
    "gemma3_text": "windows and ropes by layer",
    "cohere2": "blocks in parallel, windows by layer",
    "bloom": "ALiBi",
    "mpt": "ALiBi, attention of its own",
    "gpt_neo": "local attention in a mask of its own",
    "deepseek_v3": "latent attention, experts beside dense layers",
    "gpt_oss": "sinks, experts with biases",
    "ministral3": "queries scaled by place",
    "llama4_text": "chunks, layers without rope",
    "phi3+longrope": "ropes by the length of a row",
    "qwen2_moe+window": "windows by layer, shared experts",
    "mixtral": "fused experts",
    "mamba": "state space",
    "mamba2": "state space with heads",
    "falcon_h1": "attention and state space in one block",
    "bamba": "state space and attention by layer",
    "qwen3_next": "delta rule and attention by layer",
    "recurrent_gemma": "gated recurrence",
    "lfm2": "short convolutions",
    "rwkv": "weighted key values",
    "xlstm": "matrix memory",
    "bart": "a decoder half",
    "xglm": "sinusoidal positions",
    "bert": "an encoder with a causal mask",
    "bert+encoder": "sees later tokens",
}
SAID = {line["name"]: line["checks"] for line in zoo_table.latest(bench.read(zoo.RESULTS))}
FINE = ("right", "refused")


def worse(subject):
    """Checks that end worse than docs/models.md says of the architecture, and their words."""
    said = SAID.get(subject.name, {})
    return {
        check: words
        for check, words in subject.checks.items()
        if not words.startswith(FINE) and said.get(check, "right").startswith(FINE)
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_right_or_refused_with_the_reason(name, tmp_path):
    subject = examine(name, tmp_path, short=True)
    assert not worse(subject), subject.facts


@pytest.mark.skipif(
    os.environ.get("LORAKIT_ZOO") != "all", reason="LORAKIT_ZOO=all examines all: about 20 minutes"
)
@pytest.mark.readers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*names(), *VARIANTS])
def test_an_architecture_is_right_or_refused_with_the_reason(name, tmp_path):
    subject = examine(name, tmp_path)
    assert not worse(subject), (verdict(subject.checks), subject.facts)


@pytest.mark.filterwarnings("ignore")
def test_the_checks_see_what_is_wrong(monkeypatch, tmp_path):
    """A loss that is a little off, and one token of an answer."""
    loss, generate = zoo_checks.CausalLoss, zoo_answers.generate

    class Off(loss):
        def __call__(self, batch, *, training=False):
            nll, count = super().__call__(batch, training=training)
            return nll + 2e-4 * count, count

    def other(*arguments, **options):
        first, *rest = generate(*arguments, **options)
        return [dataclasses.replace(first, ids=(first.ids[0] ^ 1, *first.ids[1:])), *rest]

    with monkeypatch.context() as patch:
        patch.setattr(zoo_checks, "CausalLoss", Off)
        patch.setattr(zoo_answers, "generate", other)
        checks = examine("llama", tmp_path / "off", short=True).checks
    assert checks["loss"].startswith("WRONG: loss")
    assert checks["generates"].startswith("WRONG: prompt of 9: token 1")
    assert verdict(checks) == "WRONG"


@torch.no_grad()
def test_the_oracle_without_pairs_is_the_model_and_with_them_the_merged_one(tmp_path):
    base = tiny_folder("gpt2", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    row = torch.arange(20, 40)
    assert torch.equal(Oracle(base, {}).logits(row), model(row[None]).logits[0])
    layer = model.transformer.h[0].attn.c_attn
    pair = SimpleNamespace(A=torch.randn(2, 48), B=torch.randn(144, 2), scale=0.5)
    logits = Oracle(base, {"transformer.h.0.attn.c_attn": pair}).logits(row)
    layer.weight += 0.5 * (pair.B @ pair.A).T
    assert (logits - model(row[None]).logits[0]).abs().max() < 1e-5


def test_every_architecture_of_the_mapping_is_built_or_said_not_to_be():
    assert {*names(), *not_built()} >= {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
