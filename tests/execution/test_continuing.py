"""Models that transformers' `generate` continues otherwise than their own forward: whole rows are right."""

import logging

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

import lorakit
from architectures import tiny_model
from families import VOCABULARY, tiny, tokenizer
from lorakit.execution import continuing
from lorakit.execution.facts import facts_of
from lorakit.execution.generate import end_tokens, generate
from lorakit.execution.own_caches import Way
from lorakit.execution.streaming import stream

# Positions that begin behind the padding token's; a number of layers that the configuration has not;
# a cache that forgets; a rope that changes with the row; keys that are chosen.
OTHERWISE = ("roberta", "camembert", "xlm-roberta-xl", "xmod", "data2vec-text", "blt", "moshi")
PAST_LIMITS = ("moshi", "phi4_multimodal", "doge", "phi3+longrope", "hy_v4")
NEW = 12


def prompts(lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (sum(lengths),), generator=generator)
    return [part.tolist() for part in ids.split(lengths)]


@torch.no_grad()
def row_by_row(model, prompt, new, ends):
    """Greedy answers by the model's own forward of the whole row for each token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + new:
        best = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if best in ends:
            return ids[len(prompt) :], True
        ids.append(best)
    return ids[len(prompt) :], False


def check_answers(model, asked, answers, new=NEW):
    ends = end_tokens(model, tokenizer())
    for prompt, answer in zip(asked, answers, strict=True):
        assert (list(answer.ids), answer.finished) == row_by_row(model, prompt, new, ends)


@pytest.mark.parametrize("family", OTHERWISE)
def test_what_transformers_continues_otherwise_is_continued_by_its_own_forward(family):
    model, asked = tiny_model(family), prompts((9, 3, 14, 23))
    check_answers(model, asked, generate(model, tokenizer(), asked, max_new_tokens=NEW))
    assert facts_of(model).continues_apart is not None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", PAST_LIMITS)
def test_an_answer_that_crosses_a_limit_is_that_of_whole_rows(family, seed):
    """Limits are 16 and 24 tokens: each is crossed by an answer, or by a prompt."""
    model, asked = tiny_model(family, seed), prompts((9, 12, 14, 21, 23, 30), seed)
    check_answers(model, asked, generate(model, tokenizer(), asked, max_new_tokens=NEW))


def test_a_limit_is_tried_when_it_is_first_crossed_and_what_was_found_holds_for_all():
    model = tiny_model("phi4_multimodal")
    generate(model, tokenizer(), [[5, 6, 7]], max_new_tokens=3)
    assert facts_of(model).continues_apart is None
    asked = prompts((20, 4))
    check_answers(model, asked, generate(model, tokenizer(), asked, max_new_tokens=NEW))
    assert facts_of(model).continues_apart is not None


def test_it_is_said_once_how_a_model_is_continued(caplog):
    model = tiny_model("roberta")
    with caplog.at_level(logging.WARNING, "lorakit.execution"):
        for _ in range(2):
            generate(model, tokenizer(), prompts((4,)), max_new_tokens=2)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "RobertaForCausalLM is continued otherwise by transformers' generate" in said[0]
    assert said[0].endswith(tuple(way.value for way in Way))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "zamba2"])
def test_what_transformers_continues_rightly_is_left_to_it(family):
    model = tiny_model(family)
    generate(model, tokenizer(), prompts((9, 23)), max_new_tokens=3)
    assert facts_of(model).continues_apart is None


def test_streams_stops_samples_and_probabilities_of_the_own_loop(monkeypatch):
    """A llama that is said to be continued wrongly answers as it does by transformers' loop."""
    model, words, asked = tiny("llama"), tokenizer(), prompts((9, 3, 14))
    other = tiny("llama")
    monkeypatch.setattr(continuing, "_right", lambda model, *_: model is other, raising=True)
    options = {"max_new_tokens": NEW}
    assert generate(model, words, asked, **options) == generate(other, words, asked, **options)
    assert facts_of(model).continues_apart is not None
    assert facts_of(other).continues_apart is None
    stop = generate(other, words, asked[:1], **options)[0].text[3:5]
    for more in ({"stop": (stop,)}, {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "seed": 5}):
        ours, theirs = (generate(m, words, asked[:1], **options, **more) for m in (model, other))
        assert ours == theirs
        pieces = "".join(stream(model, words, asked[0], **options, **more))
        assert pieces == "".join(stream(other, words, asked[0], **options, **more)) == ours[0].text
    logs = [
        [each.logprob for each in generate(m, words, asked, **options, logprobs=True)]
        for m in (model, other)
    ]
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)


def test_sampling_draws_from_the_whole_rows_distribution():
    model, (prompt,) = tiny_model("roberta"), prompts((6,))
    processors = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(12)])
    (answer,) = generate(
        model, tokenizer(), [prompt], max_new_tokens=6, temperature=0.7, top_k=12, seed=9
    )
    ids = torch.tensor([prompt])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(9)
        for token in answer.ids:
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            new = torch.multinomial(processors(ids, logits).softmax(-1), 1)
            assert new.item() == token
            ids = torch.cat([ids, new], dim=1)


def test_an_adapted_model_is_continued_with_its_pairs():
    model = tiny_model("camembert")
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    for layer in lorakit.lora_layers(model).values():
        torch.nn.init.normal_(layer.B, std=0.3)
    asked = prompts((7, 11))
    check_answers(model, asked, generate(model, tokenizer(), asked, max_new_tokens=NEW))


def test_limits_of_a_few_tokens_are_crossed_by_the_short_trial():
    assert continuing._lengths((2, 4, 16, 24), 0, 40) == [7, 14, 22, 27]
    assert continuing._lengths((2, 4, 16, 24), 20, 40) == [22, 27]
    assert continuing._lengths((2, 4, 16, 24), 40, 60) == []
    model, asked = tiny("gpt2", max_position_embeddings=64), prompts((9, 3))
    model.config.local_window = 3
    check_answers(model, asked, generate(model, tokenizer(), asked, max_new_tokens=NEW))
