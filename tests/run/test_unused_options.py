"""Options that do nothing in a run are said, and none that does something."""

import pytest

from lorakit.config import load_config
from lorakit.run.unused import unused_options


def said(held_out=4, **flags):
    notes = unused_options(load_config(None, {"data": "rows.jsonl", **flags}), held_out)
    return [note.split(" ")[0] for note in notes]


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"eval_share": 0.5, "eval_data": "held.jsonl"}, ["eval_share"]),
        ({"epochs": 2, "max_steps": 5}, ["epochs"]),
        ({"max_new_tokens": 5, "samples": 0}, ["max_new_tokens"]),
        ({"task_option": {"mails.eval_data": "a.jsonl"}}, ["task_option"]),
    ],
)
def test_what_another_option_takes_the_place_of(flags, names):
    assert said(**flags) == names
    if names[0] != "task_option":
        assert said(**{names[0]: flags[names[0]]}) == []


def test_what_is_of_held_out_rows_alone():
    flags = {"patience": 2, "eval_every": 1, "keep": "last", "samples": 3}
    assert said(0, **flags) == ["samples", "eval_every", "keep", "patience"]
    assert said(4, **flags) == []


def test_defaults_that_a_recorded_run_repeats_are_not():
    assert said(0, eval_share=0.1, eval_data="held.jsonl", samples=8, keep="best") == []
