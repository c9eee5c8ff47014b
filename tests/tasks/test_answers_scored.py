"""A model that answers with the references' own tokens is perfect; others are judged by what they mean."""

import json

import pytest

from families import tiny, tokenizer
from lorakit.data import DataSpec, Example, Template, TokenTable, resolve_template
from lorakit.data.answer import encode_answer
from lorakit.data.encode import encode
from lorakit.data.table import longest_answer
from lorakit.data.template import chat_template
from lorakit.execution.generate import Generation, decode
from lorakit.models.fingerprint import BaseIdentity
from lorakit.tasks import CAUSAL_LM, Session
from lorakit.tasks import causal_lm as module
from lorakit.tasks.causal_lm import default_limit
from tool_templates import TEMPLATES, TOOLS, add_marks

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A thinking model's: an answer without thoughts is written after an empty thought.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def session(source: str | None = CHAT, words=None) -> Session:
    words = words or tokenizer()
    template = Template("raw") if source is None else chat_template(source)
    identity = BaseIdentity("tiny", None, "", "", "")
    return Session(
        tiny("llama", max_position_embeddings=4096), words, identity, template, CAUSAL_LM
    )


def call(name="find", **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calling(n, *calls, content=""):
    user = {"role": "user", "content": f"question {n}"}
    answer = {"role": "assistant", "content": content}
    if calls:
        answer["tool_calls"] = list(calls)
    return Example(f"f:{n}", messages=(user, answer), tools=tuple(TOOLS))


def answering(monkeypatch, texts, own=None):
    """Let the model generate these texts, or the tokens that `own` holds for each."""

    def generate(model, words, prompts, *, template, max_new_tokens):
        end = words.convert_tokens_to_ids("<|im_end|>")
        made = []
        for ids in own or [words(t, add_special_tokens=False)["input_ids"] for t in texts]:
            kept = (ids[: ids.index(end)] if end in ids else ids)[:max_new_tokens]
            made.append(Generation(decode(words, kept), tuple(kept), len(ids) <= max_new_tokens))
        return made

    monkeypatch.setattr(module, "generate", generate)


def scored(of, examples, metrics="auto"):
    task = of.task
    plan = task.plan_answers(examples, of, (), metrics=metrics, limit=256)
    return task.measure(task.references(of, examples), task.predict(of, examples, plan.limit), plan)


def perfectly(monkeypatch, of, examples):
    own = [encode_answer(e, of.tokenizer, of.template) for e in examples]
    answering(monkeypatch, (), own)
    return scored(of, examples)


ROWS = {
    "labels": [
        Example(f"f:{i}", prompt=f"p{i}", completion=("yes", "no ")[i % 2]) for i in range(6)
    ],
    "one word": [Example(f"f:{i}", prompt="p", completion=f"  word{i}\n") for i in range(5)],
    "unicode": [
        Example("f:1", prompt="p", completion="naïve ﬁ 猫 e\u0301"),
        Example("f:2", prompt="p", completion="👍"),
    ],
    "json": [
        Example(f"f:{i}", prompt="p", completion=json.dumps({"a": [i, None]})) for i in range(3)
    ],
    "numbers": [Example(f"f:{i}", prompt="p", completion=str(i * 1.5)) for i in range(5)],
    "special": [
        Example("f:1", prompt="p", completion="<s> is a mark"),
        Example("f:2", prompt="p", completion="x"),
    ],
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("source", [CHAT, None])
def test_the_references_own_tokens_are_perfect(monkeypatch, kind, source):
    of = session(source)
    scores = perfectly(monkeypatch, of, ROWS[kind])
    assert set(scores.values.values()) == {1.0}, scores.values


@pytest.mark.parametrize(
    "form", ["hermes", "llama3_json", "llama3_tagged", "mistral_list", "mistral_named", "other"]
)
def test_calls_as_the_template_writes_them_are_perfect(monkeypatch, form):
    words = tokenizer()
    add_marks(words)
    words.chat_template = TEMPLATES[form]
    of = session(TEMPLATES[form], words)
    rows = [
        calling(1, call(town="Oslo", days=3)),
        calling(2, call(town="Rome"), call("count", n=2, deep={"b": [1, True], "a": None})),
        calling(3, content="No tool is needed."),
    ]
    scores = perfectly(monkeypatch, of, rows)
    assert set(scores.values.values()) == {1.0}, scores.values
    assert ("call_match" in scores.values) is (form != "other")


def hermes():
    words = tokenizer()
    words.chat_template = TEMPLATES["hermes"]
    return session(TEMPLATES["hermes"], words)


def test_order_of_keys_and_of_calls_and_white_space_do_not_matter(monkeypatch):
    rows = [calling(1, call(town="Oslo", days=3), call("count", n=2))]
    one = '<tool_call>\n{"arguments": {"days":3,"town":"Oslo"}, "name":"find"}\n</tool_call>'
    two = '<tool_call>{"name": "count", "arguments": {"n": 2}}</tool_call>'
    answering(monkeypatch, [f"{two}\n{one}"])
    assert set(scored(hermes(), rows).values.values()) == {1.0}
    answering(monkeypatch, [one])
    assert scored(hermes(), rows)["call_match"].value == 0.0
    answering(monkeypatch, [f"{two}\n{one}".replace("Oslo", "Rome")])
    found = scored(hermes(), rows)
    assert (found["call_match"].value, found["call_names"].value) == (0.0, 1.0)


def test_what_is_said_beside_a_call_counts_for_the_exact_match_alone(monkeypatch):
    rows = [calling(1, call(town="Oslo"), content="I look it up.")]
    made = '<tool_call>\n{"name": "find", "arguments": {"town": "Oslo"}}\n</tool_call>'
    answering(monkeypatch, [f"I look it up.\n{made}"])
    assert set(scored(hermes(), rows).values.values()) == {1.0}
    answering(monkeypatch, [made])
    assert (
        scored(hermes(), rows)["call_match"].value,
        scored(hermes(), rows)["exact_match"].value,
    ) == (1, 0)


def test_a_call_where_none_is_wanted_is_wrong(monkeypatch):
    rows = [calling(1, call(town="Oslo")), calling(2, content="Hello.")]
    made = '<tool_call>\n{"name": "find", "arguments": {"town": "Oslo"}}\n</tool_call>'
    answering(monkeypatch, [made, made])
    assert scored(hermes(), rows)["call_match"].value == 0.5


def test_thinking_is_not_compared(monkeypatch):
    def row(n, thought, said):
        answer = {"role": "assistant", "content": said, "reasoning_content": thought}
        return Example(f"f:{n}", messages=({"role": "user", "content": f"q{n}"}, answer))

    rows = [row(1, "long thoughts", "Oslo"), row(2, "", "Rome")]
    of = session(THINKING)
    assert set(perfectly(monkeypatch, of, rows).values.values()) == {1.0}
    answering(monkeypatch, ["<think>\nquite other ones\n</think>\n\nOslo", "Rome"])
    assert scored(of, rows)["exact_match"].value == 1.0
    # Thoughts that never end, as the limit leaves them, are no answer.
    answering(monkeypatch, ["<think>\nOslo", "<think>\nRome\n</think>\n\nParis"])
    assert scored(of, rows)["exact_match"].value == 0.0


def test_answers_at_the_limit_are_counted(monkeypatch):
    rows = ROWS["one word"]
    answering(monkeypatch, ["x" * 20, "word1", "y" * 30, "word3", "word4"])
    of = session()
    plan = of.task.plan_answers(rows, of, (), limit=16)
    scores = of.task.measure(of.task.references(of, rows), of.task.predict(of, rows, 16), plan)
    assert scores.cut.startswith("2 of 5 answers reached the limit of 16 tokens")
    assert scores["exact_match"].value == pytest.approx(3 / 5)


def test_the_limit_comes_from_the_longest_answer_of_all_rows():
    of = session()
    rows = [Example(f"f:{i}", prompt="p", completion="x" * n) for i, n in enumerate((3, 300, 7))]
    table = TokenTable.build(encode(row, of.tokenizer, of.template) for row in rows)
    assert longest_answer(table) == 301, "the end of turn is a token too"
    assert of.task.plan_answers(rows[:1], of, (table,)).limit == default_limit(301) >= 375
    assert of.task.plan_answers(rows, of, (table,), limit=5).limit == 5, "a given number wins"


def test_measures_come_from_all_rows_and_not_from_those_that_are_asked():
    of = session()
    rows = [
        Example(f"f:{i}", prompt=f"p{i}", completion=("lost", "top up", "fee")[i % 3])
        for i in range(30)
    ]
    plan = of.task.plan_answers(rows, of, ())
    assert plan.chosen is not None
    assert plan.chosen.names[0] == "accuracy"
    assert plan.labels == ("fee", "lost", "top up")
    few = of.task.references(of, rows[:4])
    assert set(of.task.measure(few, few, plan).values.values()) == {1.0}


def test_a_prompt_near_the_models_end_has_the_room_that_is_left():
    words = tokenizer()
    template = resolve_template(DataSpec(), words)
    model = tiny("llama", max_position_embeddings=64)
    of = Session(model, words, BaseIdentity("tiny", None, "", "", ""), template, CAUSAL_LM)
    rows = [
        Example("f:1", prompt="p" * 30, completion="a"),
        Example("f:2", prompt="p", completion="b"),
    ]
    answers = of.task.predict(of, rows, 40)
    assert len(answers) == 2
    assert answers[0].tokens <= 64 - 30
