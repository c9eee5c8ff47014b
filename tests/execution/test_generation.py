"""Batched equals alone, stops where it should, leaves the model as it was."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES, VOCABULARY, tiny, tokenizer
from lorakit.errors import ConfigError, ModelError
from lorakit.execution.facts import facts_of
from lorakit.execution.generate import end_tokens, generate
from lorakit.execution.runnable import Runnable
from lorakit.execution.streaming import stream

PROMPTS = [[5, 9, 33], [80] * 17, [7], [100, 101, 102, 103, 104, 105], [44, 45]]


def by_hand(model, prompt, new, ends):
    """Greedy, one token after another, no cache, no batch."""
    ids = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if best in ends:
            return ids[len(prompt) :], True
        ids.append(best)
    return ids[len(prompt) :], False


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_greedy_equals_one_at_a_time_by_hand(family):
    model, words = tiny(family), tokenizer()
    ends = end_tokens(model, words)
    answers = generate(model, words, PROMPTS, max_new_tokens=12, batch_size=2)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids, finished = by_hand(model, prompt, 12, ends)
        assert (list(answer.ids), answer.finished) == (ids, finished)
        assert answer.text == words.decode(ids, skip_special_tokens=True)


def forced(model, sequence):
    """Make the model say this, whatever the prompt of length 3: one-hot logits by position."""
    facts_of(model).continued_to = (
        1 << 20
    )  # what it says is no model's: there is nothing to compare
    table = torch.full((600, VOCABULARY), -50.0)
    for place, token in enumerate(sequence):
        table[2 + place, token] = 50.0
    seen = []

    def override(_module, _inputs, output):
        start = seen[-1] if seen else 0
        length = 3 if not seen else 1
        seen.append(start + length)
        return table[start + length - output.shape[1] : start + length][None].to(output)

    return model.get_output_embeddings().register_forward_hook(override)


def test_the_templates_end_of_turn_ends_an_answer():
    model, words = tiny("llama"), tokenizer()
    end = words.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == 1
    assert end_tokens(model, words) == (1, end)
    assert end_tokens(model, tokenizer(chat=False)) == (1,)
    a, b = words("ab", add_special_tokens=False)["input_ids"]
    forced(model, [a, end, b, b])
    (answer,) = generate(model, words, [[5, 6, 7]], max_new_tokens=4)
    assert (answer.ids, answer.text, answer.finished) == ((a,), "a", True)


@pytest.mark.parametrize("stop", [("END",), ("zzz", "ND")])
def test_stop_strings_cut_the_text_in_batches_and_streams(stop):
    words = tokenizer()
    ids = words("ok E ENDmore", add_special_tokens=False)["input_ids"]
    expected = "ok E " if stop == ("END",) else "ok E E"
    model = tiny("llama")
    forced(model, ids)
    (answer,) = generate(model, words, [[5, 6, 7]], max_new_tokens=len(ids), stop=stop)
    assert (answer.text, answer.finished) == (expected, True)
    assert words.decode(answer.ids) == expected
    model = tiny("llama")
    forced(model, ids)
    pieces = list(stream(model, words, [5, 6, 7], max_new_tokens=len(ids), stop=stop))
    assert "".join(pieces) == expected


def test_a_stream_gives_whole_characters_and_the_batchs_text():
    words = tokenizer()
    text = "né 😀, 你好"
    ids = words(text, add_special_tokens=False)["input_ids"]
    model = tiny("llama")
    forced(model, [*ids, 1])
    pieces = list(stream(model, words, [5, 6, 7], max_new_tokens=50))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) == len(text)
    model = tiny("gpt2")
    (answer,) = generate(model, words, [PROMPTS[0]], max_new_tokens=10)
    assert "".join(stream(model, words, PROMPTS[0], max_new_tokens=10)) == answer.text


def test_a_stream_may_be_left_and_an_error_in_it_reaches_the_reader():
    model, words = tiny("llama"), tokenizer()
    pieces = stream(model, words, [5, 6, 7], max_new_tokens=400)
    next(pieces)
    pieces.close()

    def fail(_module, _inputs):
        raise RuntimeError("no more memory")

    model.get_output_embeddings().register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        list(stream(model, words, [5, 6, 7], max_new_tokens=5))


def test_the_model_is_left_as_it_was_and_being_ready_does_not_disturb():
    model, words = tiny("llama"), tokenizer()
    plain = generate(model, words, PROMPTS, max_new_tokens=5)
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    assert Runnable(model).packs
    assert generate(model, words, PROMPTS, max_new_tokens=5) == plain
    assert [module.training for module in model.modules()] == modes


def test_the_output_head_gets_rows_that_one_product_takes():
    """A view of the last positions would be a batch of products, each with a copy of the weight."""
    model, seen = tiny("llama"), []
    generate(model, tokenizer(), PROMPTS, max_new_tokens=2)  # how it is tried, see together.py
    head = model.get_output_embeddings()
    watch = head.register_forward_hook(
        lambda _module, given, _output: seen.append((len(given[0]), given[0].is_contiguous()))
    )
    generate(model, tokenizer(), PROMPTS, max_new_tokens=2)
    assert set(seen) == {(len(PROMPTS), True)}
    watch.remove()
    assert not head._forward_pre_hooks  # and the model is left as it was


def test_sampling_repeats_with_its_seed_and_keeps_the_global_generator():
    model, words = tiny("llama"), tokenizer()
    options = {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.95, "top_k": 50}
    state = torch.get_rng_state()
    one = generate(model, words, PROMPTS, seed=1, **options)
    assert one == generate(model, words, PROMPTS, seed=1, **options)
    assert one != generate(model, words, PROMPTS, seed=2, **options)
    assert torch.equal(torch.get_rng_state(), state)
    only_one = generate(model, words, PROMPTS, max_new_tokens=8, temperature=1.5, top_k=1, seed=3)
    assert only_one == generate(model, words, PROMPTS, max_new_tokens=8)


def test_the_models_own_sampling_defaults_are_not_applied():
    model, words = tiny("llama"), tokenizer()
    plain = generate(model, words, PROMPTS, max_new_tokens=12)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.max_length = 4
    assert generate(model, words, PROMPTS, max_new_tokens=12) == plain


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([[]], {}, ModelError, "prompt 1 has no tokens"),
        ([[5], [5] * 510], {}, ModelError, "prompt 2 has 510 tokens; with 4 new ones"),
        ([[5]], {"temperature": -1.0}, ConfigError, "temperature is out of range"),
        (
            [[5]],
            {"top_p": 0.0},
            ConfigError,
            "top_p is out of range: it must be above 0 and at most 1, and is 0.0",
        ),
        ([[5]], {"batch_size": 0}, ConfigError, "batch_size must be at least 1"),
    ],
)
def test_bad_requests_say_what_is_wrong(prompts, options, error, message):
    with pytest.raises(error, match=message):
        generate(tiny("llama"), tokenizer(), prompts, max_new_tokens=4, **options)


def test_no_prompts_no_answers():
    assert generate(tiny("llama"), tokenizer(), [], max_new_tokens=4) == []


def sized(family, **settings):
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "pad_token_id": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.3,
        "init_std": 0.3,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**sizes, **settings})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


DECODER = {
    "d_model": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 64,
    "encoder_layers": 1,
    "encoder_attention_heads": 6,
}
LONG_ROPE = {
    "original_max_position_embeddings": 20,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 20,
    },
}
COMPANY = {
    "rwkv": {"attention_hidden_size": 48},
    "whisper": DECODER,
    "bart": DECODER,
    "pegasus": DECODER,
    "phi3": {"num_key_value_heads": 2, **LONG_ROPE},
}


@pytest.mark.parametrize("family", COMPANY)
def test_where_company_changes_answers_each_prompt_is_continued_alone(family):
    model, words = sized(family, **COMPANY[family]), tokenizer()
    generator = torch.Generator().manual_seed(3)
    prompts = [
        torch.randint(5, VOCABULARY, (n,), generator=generator).tolist() for n in (9, 23, 14, 3)
    ]
    together = generate(model, words, prompts, max_new_tokens=8, batch_size=4)
    for prompt, answer in zip(prompts, together, strict=True):
        ids, finished = by_hand(model, prompt, 8, end_tokens(model, words))
        assert (list(answer.ids), answer.finished) == (ids, finished)
    assert facts_of(model).batches is False


def test_prompts_of_one_length_share_a_batch_untried():
    model = tiny("gpt2")
    generate(model, tokenizer(), [[5, 6], [7, 8]], max_new_tokens=3)
    assert facts_of(model).batches is None
