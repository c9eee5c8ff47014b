"""--too-long cut may cut the prompt instead of the row's end: every answer stays whole, and it is said."""

import json

import numpy as np
import pytest

from lorakit.data import DataSpec, encode_prompt, load_data, load_rows, resolve_template
from lorakit.errors import ConfigError

ROWS = [
    {"prompt": "0123456789" * 4, "completion": "yes"},
    {"prompt": "short", "completion": "no"},
    {"prompt": "abc" * 20, "completion": "maybe"},
]


def write(folder, rows, name="rows.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def load(file, words, cut, limit, **options):
    spec = DataSpec(
        data=(file,), eval_share=0, too_long="cut", cut=cut, max_length=limit, **options
    )
    return load_data(spec, words)


def texts(data, words):
    return [
        (words.decode(row.ids[row.weight == 0]), words.decode(row.ids[row.weight > 0]))
        for row in data.train
    ]


@pytest.mark.parametrize(
    ("cut", "first", "third"),
    [
        ("prompt-start", "4567890123456789", "bcabcabcabcabc"),
        ("prompt-middle", "0123456723456789", "abcabcabcabcbc"[:7] + "cabcabc"),
    ],
)
def test_a_raw_prompt_by_hand(tmp_path, plain, cut, first, third):
    data = load(write(tmp_path, ROWS), plain, cut, 20)
    assert texts(data, plain) == [
        (first, "yes<|endoftext|>"),
        ("short", "no<|endoftext|>"),
        (third, "maybe<|endoftext|>"),
    ]
    assert [len(row) for row in data.train] == [20, 8, 20]
    notes = " ".join(data.notes)
    assert (
        "2 of 3 training rows are longer than 20 tokens (the longest has 66): 2 were truncated"
        in notes
    )
    where = "beginning" if cut == "prompt-start" else "middle"
    assert f"70 tokens were cut out of the {where} of their prompts; every answer is whole" in notes


def test_the_end_is_cut_by_default_and_says_what_it_costs(tmp_path, plain):
    rows = [{"prompt": "0123456789", "completion": "abcdefghij"}, ROWS[1]]
    data = load(write(tmp_path, rows), plain, "end", 12)
    assert texts(data, plain)[0] == ("0123456789", "ab")
    assert "9 tokens were cut off the ends of these rows, 9 of them of answers" in " ".join(
        data.notes
    )


def test_what_the_chat_template_writes_stays(tmp_path, chatml):
    data = load(write(tmp_path, ROWS), chatml, "prompt-middle", 40)
    for prompt, answer in texts(data, chatml):
        assert prompt.startswith("<|im_start|>user\n")
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert answer.endswith("<|im_end|>")
    assert [answer for _, answer in texts(data, chatml)] == [
        *("yes<|im_end|>", "no<|im_end|>", "maybe<|im_end|>"),
    ]
    assert max(map(len, data.train)) <= 40


def test_of_a_conversation_the_longest_message_is_cut(tmp_path, chatml):
    said = [("user", "x" * 50), ("assistant", "one"), ("user", "why?"), ("assistant", "two")]
    row = {"messages": [{"role": role, "content": text} for role, text in said]}
    data = load(write(tmp_path, [row]), chatml, "prompt-start", 80)
    ((prompt, answers),) = texts(data, chatml)
    assert "why?" in prompt
    assert answers == "one<|im_end|>two<|im_end|>"
    assert 0 < prompt.count("x") < 50


def test_letters_of_several_tokens_are_never_torn(tmp_path, plain):
    row = {"prompt": "äöü" * 10, "completion": "ja"}
    for cut in ("prompt-start", "prompt-middle"):
        ((prompt, _),) = texts(load(write(tmp_path, [row]), plain, cut, 20), plain)
        assert "\ufffd" not in prompt
        assert set(prompt) == set("äöü")


def test_a_row_whose_answer_alone_is_too_long_is_left_out(tmp_path, plain):
    rows = [{"prompt": "q", "completion": "x" * 30}, ROWS[1]]
    data = load(write(tmp_path, rows), plain, "prompt-middle", 20)
    assert len(data.train) == 1
    assert "without their prompts they are too long as well" in " ".join(data.notes)


def test_held_out_rows_are_asked_as_they_are_read(tmp_path, plain):
    file = write(tmp_path, ROWS)
    spec = DataSpec(
        data=(file,), eval_data=(file,), too_long="cut", cut="prompt-middle", max_length=20
    )
    data = load_data(spec, plain)
    template = resolve_template(DataSpec(), plain)
    table, examples, counts = load_rows((file,), spec, plain, template)
    assert counts.truncated == 2
    for rows, asked in ((data.eval, data.eval_examples), (table, examples)):
        for row, example in zip(rows, asked, strict=True):
            prompt = encode_prompt(example, plain, template)
            assert np.array_equal(row.ids[: len(prompt)], prompt)
            assert not row.weight[: len(prompt)].any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cut": "prompt-middle"}, "give --too-long cut as well"),
        ({"cut": "prompt-midle", "too_long": "cut"}, "did you mean 'prompt-middle'"),
        ({"cut": "prompt-start", "too_long": "drop"}, "too_long is 'drop'"),
    ],
)
def test_a_cut_that_means_nothing(options, said):
    with pytest.raises(ConfigError, match=said):
        DataSpec(**options)


def test_texts_have_no_prompt(tmp_path, plain):
    file = write(tmp_path, [{"text": "a" * 50}])
    with pytest.raises(ConfigError, match="rows of text have no prompt"):
        load(file, plain, "prompt-middle", 20)
    assert len(load(file, plain, "end", 20).train[0]) == 20
