"""Architectures against their own code: one of each kind of attention and layer, and all of them."""

import pytest
from architectures import VARIANTS, names, not_built
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from zoo_checks import examine, verdict

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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_right_or_refused_with_the_reason(name, tmp_path):
    subject = examine(name, tmp_path, short=True)
    wrong = {k: v for k, v in subject.checks.items() if not v.startswith(("right", "refused"))}
    assert not wrong, subject.facts


@pytest.mark.readers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*names(), *VARIANTS])
def test_an_architecture_is_right_or_refused_with_the_reason(name, tmp_path):
    subject = examine(name, tmp_path)
    wrong = {k: v for k, v in subject.checks.items() if not v.startswith(("right", "refused"))}
    assert not wrong, (verdict(subject.checks), subject.facts)


def test_every_architecture_of_the_mapping_is_built_or_said_not_to_be():
    assert {*names(), *not_built()} >= {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
