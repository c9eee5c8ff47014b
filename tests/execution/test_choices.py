"""How likely given answers are: against a plain loop through the model's own forward."""

import numpy as np
import pytest
import torch

from families import BY_SEQUENCE, FAMILIES, NOT_PACKABLE, tiny, tokenizer
from lorakit.data import DataSpec, Example, Template, encode_prompt, resolve_template
from lorakit.data.encode import encode
from lorakit.data.template import chat_template
from lorakit.errors import ConfigError, ModelError
from lorakit.execution.answer_probs import answer_log_probs, answered
from lorakit.execution.choices import ChoiceScores, choice_rows, read_choices, score_choices
from lorakit.execution.facts import facts_of
from lorakit.lora import LoraSpec, attach, plan

LABELS = ("card", "card lost", "transfer failed")


def asked(*prompts, answer="card"):
    return [Example(f"f:{i}", prompt=p, completion=answer) for i, p in enumerate(prompts, 1)]


@torch.no_grad()
def plainly(model, prompt, answer):
    """log p of the answer's tokens after the prompt's, one position after the other."""
    ids = torch.tensor([*prompt, *answer])[None]
    log_p = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("family", [*FAMILIES, *BY_SEQUENCE, *NOT_PACKABLE])
def test_each_answer_is_as_likely_as_in_a_plain_loop(family):
    model, generator = tiny(family), np.random.default_rng(1)
    prompts = [generator.integers(5, 300, n).tolist() for n in (9, 1, 14, 6)]
    answers = [[generator.integers(5, 300, n).tolist() for n in (1, 3, 7)] for _ in prompts]
    groups = [
        [answered(prompt, each) for each in some]
        for prompt, some in zip(prompts, answers, strict=True)
    ]
    found = answer_log_probs(model, groups, batch_tokens=40)
    assert not model.training
    for prompt, some, log_p in zip(prompts, answers, found, strict=True):
        expected = [plainly(model, prompt, each) for each in some]
        assert log_p == pytest.approx(expected, rel=2e-3)
    assert facts_of(model).answers_step is (family in FAMILIES), "prompts are computed once"


def test_an_adapter_beside_the_base_counts():
    model = tiny("llama")
    group = [[answered([7, 8, 9], [20, 1]), answered([7, 8, 9], [21, 22, 1])]]
    before = answer_log_probs(model, group)
    attach(model, plan(model, LoraSpec(rank=2)), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("B"):
                parameter += 0.3
    after = answer_log_probs(model, group)
    assert after[0] == pytest.approx(
        [plainly(model, [7, 8, 9], each) for each in ([20, 1], [21, 22, 1])], rel=2e-3
    )
    assert not np.allclose(before, after)


@pytest.mark.parametrize("chat", [True, False])
def test_a_label_is_asked_as_it_would_be_trained(chat):
    model, words = tiny("qwen2"), tokenizer(chat)
    template = resolve_template(DataSpec(), words) if chat else Template("raw")
    rows = asked("I lost it", "where is my money", answer="card" if chat else " card")
    scores = score_choices(model, words, template, rows, LABELS)
    assert scores.log_p_RC.shape == (2, 3)
    for r, row in enumerate(rows):
        prompt = encode_prompt(row, words, template).tolist()
        for c, label in enumerate(LABELS):
            lead = "" if chat else " "
            trained = encode(
                Example("f", prompt=row.prompt, completion=lead + label), words, template
            )
            answer = trained.ids[len(prompt) :].tolist()
            ends = words.convert_tokens_to_ids("<|im_end|>" if chat else "</s>")
            assert answer[-1] == ends, "the end is part of the answer"
            assert scores.log_p_RC[r, c] == pytest.approx(plainly(model, prompt, answer), rel=2e-3)


def test_the_same_whether_a_row_has_an_answer_of_its_own_or_none():
    model, words = tiny("llama"), tokenizer()
    template = resolve_template(DataSpec(), words)
    own = score_choices(model, words, template, asked("a", answer="x"), LABELS)
    none = score_choices(model, words, template, [Example("f:1", prompt="a")], LABELS)
    assert np.array_equal(own.log_p_RC, none.log_p_RC)


def test_rows_are_those_that_training_writes_for_every_label():
    words = tokenizer()
    template = resolve_template(DataSpec(), words)
    # A template that writes a long question's answer otherwise, which no other row's tells.
    odd = chat_template(
        words.chat_template.replace("{{ m['content'] }}", "{% if m['role'] == 'assistant' and "
        "messages[0]['content'] | length > 9 %}So: {% endif %}{{ m['content'] }}")
    )  # fmt: skip
    for way in (template, odd):
        rows = asked("short", "a long question", "brief", answer=" card ")
        groups = choice_rows(rows, LABELS, words, way)
        for row, group in zip(rows, groups, strict=True):
            for label, made in zip(LABELS, group, strict=True):
                alone = encode(Example("f", prompt=row.prompt, completion=f" {label}"), words, way)
                assert made.ids.tolist() == alone.ids.tolist()
                assert made.weight.tolist() == alone.weight.tolist()


def test_of_a_conversation_the_last_answer_alone_counts():
    model, words = tiny("llama"), tokenizer()
    template = resolve_template(DataSpec(), words)
    said = ("user", "hi"), ("assistant", "hello"), ("user", "which?"), ("assistant", "card lost")
    talk = Example("f:1", messages=tuple({"role": r, "content": c} for r, c in said))
    scores = score_choices(model, words, template, [talk], LABELS)
    prompt = encode_prompt(talk, words, template).tolist()
    answer = words("card lost<|im_end|>", add_special_tokens=False)["input_ids"]
    assert scores.log_p_RC[0, 1] == pytest.approx(plainly(model, prompt, answer), rel=2e-3)


def test_probabilities_and_the_likeliest():
    scores = ChoiceScores(("a", "b", "c"), np.array([[-1000.0, -1001.0, -2000.0], [-3, -2, -2]]))
    assert scores.picked == ("a", "b")
    assert scores.probabilities.sum(1) == pytest.approx([1, 1])
    assert scores.probabilities[0] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0])


def test_choices_that_are_none():
    assert read_choices([" yes ", "no"]) == ("yes", "no")
    for bad in (["yes"], [], ["a", ""], ["a", "b", " a"]):
        with pytest.raises(ConfigError, match="choices"):
            read_choices(bad)


def test_a_row_longer_than_the_model_reads_is_named():
    model = tiny("llama", max_position_embeddings=16)
    with pytest.raises(ModelError, match=r"f:3.*16 positions"):
        answer_log_probs(model, [[answered(range(5, 25), [1], "f:3")]])
