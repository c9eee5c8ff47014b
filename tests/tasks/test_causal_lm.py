"""Which validation prompts a causal language model is asked."""

from lorakit.data import Example
from lorakit.tasks import CAUSAL_LM


def made(*prompts: str) -> list[Example]:
    return [Example(f"f:{i}", prompt=p, completion=str(i)) for i, p in enumerate(prompts, 1)]


def test_no_prompt_is_asked_twice_and_they_are_spread():
    chosen = CAUSAL_LM.examples(made("a", "a", "a", "b", "b", "c", "d", "e", "e", "f"), 3)
    assert [e.prompt for e in chosen] == ["a", "c", "e"]
    assert chosen[0].origin == "f:1"


def test_all_where_there_are_few_and_none_where_none_is_wanted():
    assert [e.prompt for e in CAUSAL_LM.examples(made("a", "b"), 8)] == ["a", "b"]
    assert CAUSAL_LM.examples(made("a", "b"), 0) == []


def test_plain_text_cannot_be_asked():
    assert CAUSAL_LM.examples([Example("f:1", text="no question here")], 4) == []


def test_conversations_that_end_alike_but_began_otherwise_are_two():
    def talk(first: str) -> Example:
        turns = (("user", first), ("assistant", "ok"), ("user", "and?"), ("assistant", "done"))
        return Example("f:1", messages=tuple({"role": r, "content": c} for r, c in turns))

    assert len(CAUSAL_LM.examples([talk("one"), talk("two"), talk("one")], 8)) == 2
