"""Models that see later tokens are refused with a way on that works."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import tiny_model
from families import VOCABULARY, tiny
from lorakit.errors import ModelError
from lorakit.evaluation.likelihood import log_probs_of
from lorakit.execution.runnable import Runnable
from lorakit.execution.stepping import open_blocks
from lorakit.training.loss import CausalLoss

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 2,
}
GEMMA = {"num_key_value_heads": 2, "head_dim": 8, "use_bidirectional_attention": True}
LEAKING = {
    "bert": SIZES,
    "roberta": SIZES,
    "gemma3_text": SIZES | GEMMA,
    "xlm": {"vocab_size": VOCABULARY, "emb_dim": 48, "n_layers": 2, "n_heads": 6, "init_std": 0.3},
}
NO_WAY_ON = {
    "xlnet": {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 6, "d_inner": 64},
    "cpmant": {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "dim_head": 8,
        "dim_ff": 64,
        "num_hidden_layers": 2,
    },
}


def build(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", LEAKING)
def test_a_model_that_sees_later_tokens_is_refused_and_the_advice_works(family):
    with pytest.raises(ModelError, match="sees later tokens") as refused:
        CausalLoss(build(family, **LEAKING[family]))
    text = str(refused.value)
    _, key, value = text.partition("Set ")[2].partition(" in its config.json")[0].split('"')
    advised = build(family, **{**LEAKING[family], key: value.strip(": ") == "true"})
    assert Runnable(advised).way in ("packed", "padded", "alone")


@pytest.mark.parametrize("family", NO_WAY_ON)
def test_one_that_cannot_be_made_causal_says_so(family):
    with pytest.raises(ModelError, match=r"sees later tokens.*trained to predict the next token"):
        Runnable(build(family, **NO_WAY_ON[family]))


def test_it_is_asked_by_evaluation_and_serving_too():
    for ask in (log_probs_of, open_blocks):
        with pytest.raises(ModelError, match="sees later tokens"):
            ask(build("bert", **SIZES))


def test_a_model_that_draws_at_random_is_refused():
    model = tiny("llama")
    model.model.layers[0].register_forward_hook(lambda _m, _i, y: y + torch.randn_like(y))
    with pytest.raises(ModelError, match="differently each time"):
        Runnable(model)


def test_a_model_that_does_not_run_on_a_row_of_tokens_is_named():
    model = tiny("llama")

    def fail(_module, _inputs):
        raise ValueError("bytes are wanted")

    model.model.register_forward_pre_hook(fail)
    with pytest.raises(
        ModelError, match=r"does not run on a row of 12 token ids.*bytes are wanted"
    ):
        Runnable(model)


def test_a_model_that_cannot_be_followed_back_in_evaluation_mode_is_named():
    with pytest.raises(ModelError, match="ReformerModelWithLMHead cannot be trained here"):
        Runnable(tiny_model("reformer"))


def test_a_model_that_runs_in_float32_alone_says_so():
    """XLNet's positions and xLSTM's cells are in float32, whatever format the weights have."""
    for dtype, advice in ((torch.bfloat16, True), (torch.float32, False)):
        model = tiny("llama").to(dtype)
        model.lm_head.register_forward_pre_hook(fails)
        with pytest.raises(ModelError, match="expected scalar type Float") as caught:
            Runnable(model)
        said = "loaded in bfloat16: if that is what it fails on, give --dtype float32"
        assert (said in str(caught.value)) is advice


def fails(*_):
    raise RuntimeError("expected scalar type Float but found BFloat16")
