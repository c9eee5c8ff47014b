"""Penalties, biases and exclusions against transformers' own processors and the formula of OpenAI's page.

Where transformers has the same (repetition, bias, bad words, least length, min_p) it is the oracle; for
frequency and presence it is the formula, counted token by token.
"""

import math
import random

import pytest
import torch
from engines import Driven, base
from transformers import (
    AddedToken,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from families import tokenizer
from lorakit.serving.adjusting import Adjuster, NothingAllowedError
from lorakit.serving.answers import Prompt
from lorakit.serving.sampling import Sampling, choose
from lorakit.serving.text import TextStream

PROMPT = [20, 21, 22, 20, 40]
MOST = 20
ENDS = frozenset({1, 4})

WISHES = {
    "plain": {},
    "repetition": {"repetition_penalty": 1.7},
    "less repetition": {"repetition_penalty": 0.6},
    "frequency": {"frequency_penalty": 4.0},
    "presence": {"presence_penalty": 6.0},
    "more of the same": {"frequency_penalty": -2.0, "presence_penalty": -1.0},
    "bias": {"logit_bias": ((50, 100.0), (20, -100.0), (7, 3.5))},
    "least": {"min_tokens": 8, "logit_bias": ((1, 100.0),)},
    "bad": {"bad_ids": ((145,), (44, 91), (53, 53, 54))},
    "allowed": {"allowed_ids": (60, 61, 62)},
    "all": {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.7,
        "presence_penalty": -0.4,
        "logit_bias": ((50, 2.0), (90, -5.0)),
        "min_tokens": 4,
        "bad_ids": ((281,),),
    },
}


def processors(wish, length):
    """transformers' own, in the order that vLLM documents."""
    made = LogitsProcessorList()
    if wish.get("bad_ids"):
        made.append(NoBadWordsLogitsProcessor([list(ids) for ids in wish["bad_ids"]]))
    if wish.get("min_tokens"):
        made.append(MinNewTokensLengthLogitsProcessor(length, wish["min_tokens"], sorted(ENDS)))
    if wish.get("logit_bias"):
        made.append(SequenceBiasLogitsProcessor([[[id], bias] for id, bias in wish["logit_bias"]]))
    if wish.get("repetition_penalty"):
        made.append(RepetitionPenaltyLogitsProcessor(wish["repetition_penalty"]))
    return made


def expected(model, wish, prompt=PROMPT):
    """Greedy tokens of the model's own code, everything computed anew for each."""
    have = list(prompt)
    while len(have) < len(prompt) + MOST:
        with torch.no_grad():
            row = model(torch.tensor([have]), use_cache=False).logits[0, -1].clone()
        if wish.get("allowed_ids"):
            keep = torch.full_like(row, -math.inf)
            keep[list(wish["allowed_ids"])] = row[list(wish["allowed_ids"])]
            row = keep
        # transformers forbids the rest of a bad word that begins in the prompt; vLLM does not.
        answer = have[len(prompt) :]
        ids = torch.tensor([have])
        if wish.get("bad_ids"):
            ids = torch.tensor([[0] * len(prompt) + answer])
        for each in processors(wish, len(prompt)):
            given = ids if isinstance(each, NoBadWordsLogitsProcessor) else torch.tensor([have])
            row = each(given, row[None])[0]
        for token in set(answer):
            row[token] -= wish.get("frequency_penalty", 0.0) * answer.count(token)
            row[token] -= wish.get("presence_penalty", 0.0)
        have.append(int(row.argmax()))
        if have[-1] in ENDS:
            break
    return have[len(prompt) :]


@pytest.fixture(scope="module")
def engine():
    return Driven("llama")


@pytest.fixture(scope="module")
def oracle():
    model = base("llama")
    return {name: expected(model, wish) for name, wish in WISHES.items()}


def ask(engine, tag, wish):
    sampling = Sampling(temperature=0.0, **wish)
    prompt = Prompt(
        ids=PROMPT, key="", load=None, name="base", most=MOST, ends=ENDS, sampling=sampling
    )
    engine.submit([prompt], tag)


def test_the_wishes_change_the_answer(oracle):
    assert len({tuple(ids) for ids in oracle.values()}) >= 9


@pytest.mark.parametrize("name", WISHES)
def test_alone_an_answer_is_that_of_transformers(engine, oracle, name):
    ask(engine, name, WISHES[name])
    engine.settle()
    assert engine.answers.pop((name, 0)).ids == oracle[name]


def test_in_a_mixed_batch_each_answer_is_the_same(engine, oracle):
    names = [*WISHES, *reversed(WISHES)][: 2 * len(WISHES)]
    for number, name in enumerate(names):
        ask(engine, (number, name), WISHES[name])
        if number % 3 == 0:
            engine.step()
    engine.settle()
    for number, name in enumerate(names):
        assert engine.answers.pop(((number, name), 0)).ids == oracle[name], name


def test_plain_rows_are_not_even_copied():
    wish = Sampling(0.0)
    assert not wish.adjusts
    assert not Sampling(1.0, top_p=0.5, top_k=3, min_p=0.1, seed=1, logprobs=2).adjusts
    for name, changed in WISHES.items():
        assert Sampling(0.0, **changed).adjusts == (name != "plain")


def test_reported_log_probabilities_are_of_the_models_own_logits():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3))
    wish = Sampling(0.0, logprobs=2, logit_bias=((9, 100.0),))
    (token,) = choose(logits, [wish], [random.Random()], {0: Adjuster(wish, [1], ())})
    assert token.id == 9
    logs = torch.log_softmax(logits[0], -1)
    assert token.logprob == pytest.approx(logs[9].item())
    assert [id for id, _ in token.top] == logs.topk(2).indices.tolist()
    assert (logits[0] < 100).all()  # the row itself is as it was


@pytest.mark.parametrize("min_p", [0.01, 0.1, 0.5, 1.0])
def test_min_p_leaves_what_transformers_leaves(min_p):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(5)) * 3
    wish, drawn = Sampling(1.5, min_p=min_p), set()
    generator = random.Random(0)
    for token in choose(logits.expand(3000, -1), [wish] * 3000, [generator] * 3000):
        drawn.add(token.id)
    left = MinPLogitsWarper(min_p)(None, logits / 1.5)[0] > -math.inf
    allowed = set(left.nonzero()[:, 0].tolist())
    assert drawn <= allowed
    likely = torch.softmax((logits / 1.5).masked_fill(~left, -math.inf), -1)[0] > 0.01
    assert set(likely.nonzero()[:, 0].tolist()) <= drawn


def test_penalties_act_before_temperature_and_the_cuts():
    logits = torch.zeros(1, 4)
    wish = Sampling(0.5, presence_penalty=2.0, seed=0)
    adjuster = Adjuster(wish, [0], ())
    adjuster.take(2)
    counts = torch.zeros(4)
    generator = random.Random(1)
    for _ in range(4000):
        (token,) = choose(logits, [wish], [generator], {0: adjuster})
        counts[token.id] += 1
    share = math.exp(-2 / 0.5) / (3 + math.exp(-2 / 0.5))
    assert counts[2].item() / 4000 == pytest.approx(share, abs=0.006)


def test_a_request_that_excludes_every_token_ends_alone():
    logits = torch.randn(3, 10)
    wishes = [Sampling(0.0), Sampling(0.0, allowed_ids=(3,), bad_ids=((3,),)), Sampling(0.0)]
    adjusts = {1: Adjuster(wishes[1], [1], ())}
    first, refused, last = choose(logits, wishes, [random.Random()] * 3, adjusts)
    assert isinstance(refused, NothingAllowedError)
    assert (first.id, last.id) == (int(logits[0].argmax()), int(logits[2].argmax()))


def said(text, least=0, **more):
    made = tokenizer()
    stream, out = TextStream(made, **more, least=least), ""
    for id in made(text, add_special_tokens=False)["input_ids"]:
        out += stream.feed(id)
        if stream.stopped is not None:
            return out, stream.stopped
    return out + stream.finish(), None


def test_stop_strings_count_after_min_tokens_alone_and_are_shown_where_wished():
    assert said("abc.def.ghi", stop=["."]) == ("abc", ".")
    assert said("abc.def.ghi", stop=["."], stop_shown=True) == ("abc.", ".")
    assert said("abc.def.ghi", stop=["."], least=4) == ("abc.def", ".")
    assert said("abc.def.ghi", stop=["c.d"], least=4) == ("ab", "c.d")  # it ends after them
    assert said("abc.def", stop=["bc"], least=3) == ("abc.def", None)
    assert said("abc.def", stop=["."], least=9) == ("abc.def", None)


def test_special_tokens_are_shown_where_wished():
    text = "a<|im_start|>b<|im_end|>c"
    start = tokenizer().convert_tokens_to_ids("<|im_start|>")
    assert said(text) == ("abc", None)
    assert said(text, specials=None) == (text, None)
    assert said(text, specials=frozenset({start})) == ("a<|im_start|>bc", None)


def test_a_special_token_without_a_name_is_left_out_too():
    made = tokenizer()
    made.add_tokens([AddedToken("<|turn|>", special=True)])
    turn, start = made.convert_tokens_to_ids(["<|turn|>", "<|im_start|>"])
    stream = TextStream(made, specials=frozenset({start}))
    assert "".join(map(stream.feed, [turn, start, turn])) + stream.finish() == "<|im_start|>"
