"""`lorakit chat` with several adapters, and that a second question is heard."""

import io
import sys

from lorakit.adapters.store import Store
from lorakit.cli.main import run
from lorakit.models import ModelSpec
from lorakit.serving.sampling import Sampling
from lorakit.serving.talk import Talk

GREEDY = Sampling(temperature=0.0)


def test_each_adapter_keeps_its_own_conversation(house):
    def all_of(talk, text):
        said = {}
        for number, piece in talk.ask(text, GREEDY):
            said[number] = said.get(number, "") + piece
        return [said[i] for i in range(3)]

    folder = str(Store(house / "store").resolve("small").folder)
    talk = Talk(
        ModelSpec(str(house / "tiny-base"), dtype="float32"),
        ["large", "base", folder],
        store=house / "store",
        most=12,
    )
    try:
        first = all_of(talk, "where is it?")
        assert len(set(first)) == 3
        assert all_of(talk, "where is it?") != first
        talk.forget()
        assert all_of(talk, "where is it?") == first
    finally:
        talk.close()


def test_in_a_terminal(house, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("where is it?\n/new\nand now?\n\n"))
    monkeypatch.setenv("COLUMNS", "120")
    asked = ["chat", "--model", str(house / "tiny-base"), "--store", str(house / "store")]
    code = run([*asked, "--adapter", "small", "--adapter", "base", "--max-new-tokens", "8"])
    said = capfd.readouterr()
    assert code == 0, said.err
    assert said.out.count("small") == 2
    assert said.out.count("base") >= 2


def test_a_second_question_to_one_adapter_is_heard(house, capfd, monkeypatch):
    from lorakit.cli import chat_command

    asked = []
    monkeypatch.setattr(
        chat_command,
        "write_completion",
        lambda session, example, *_, **__: asked.append(example) or "yes",
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("one?\ntwo?\n\n"))
    assert run(["chat", "--model", str(house / "tiny-base")]) == 0
    from families import tokenizer
    from lorakit.data import encode_prompt
    from lorakit.data.template import Template

    made = tokenizer()
    ids = encode_prompt(asked[1], made, Template("chat", made.chat_template))
    text = made.decode(ids)
    assert "one?" in text
    assert "yes" in text
    assert text.endswith("two?<|im_end|>\n<|im_start|>assistant\n")
