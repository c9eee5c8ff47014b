"""The demo's task: every answer follows from its message, and held-out pairs are new."""

import json
import re

import pytest

from lorakit.data import DataSpec, load_data, write_tickets
from lorakit.data.tickets import HURRY, PROBLEMS, PRODUCTS, is_held_out, tickets
from lorakit.errors import ConfigError

ROWS = list(tickets(600, seed=3))


def products_in(message):
    """The plain names of the products named, the longest mention first."""
    named = [(len(n), p) for p, names in PRODUCTS.items() for n in names if n in message]
    return [p for _, p in sorted(named, reverse=True)]


@pytest.mark.parametrize("row", ROWS[:200], ids=lambda r: None)
def test_the_answer_follows_from_the_message(row):
    message, ticket = row["prompt"].lower(), json.loads(row["completion"])
    assert list(ticket) == ["category", "product", "order", "wants", "priority"]
    assert ticket["category"] in PROBLEMS
    assert ticket["product"] in products_in(message)
    assert re.findall(r"\d{4}", message) == ([ticket["order"]] if ticket["order"] else [])
    said = {p for p, phrases in HURRY.items() for x in phrases if x and x.lower() in message}
    # "it is not urgent" is not a hurry
    assert said == (set() if ticket["priority"] == "normal" else {ticket["priority"]})


def test_rows_are_the_same_everywhere_and_never_alike():
    assert list(tickets(600, seed=3)) == ROWS
    assert list(tickets(600, seed=4)) != ROWS
    assert len({r["prompt"] for r in ROWS}) == 600
    assert [r["prompt"] for r in tickets(5, seed=3)] == [r["prompt"] for r in ROWS[:5]]


def test_there_is_variety():
    answers = [json.loads(r["completion"]) for r in ROWS]
    for field, least in (("category", 6), ("product", 24), ("wants", 4), ("priority", 3)):
        assert len({a[field] for a in answers}) == least
    assert 0.1 < sum(a["order"] is None for a in answers) / 600 < 0.3


def test_held_out_pairs_never_meet_in_training():
    pairs = [(x, p) for phrases in PROBLEMS.values() for x in phrases for p in PRODUCTS]
    apart = sum(is_held_out(*pair) for pair in pairs) / len(pairs)
    assert 0.15 < apart < 0.25

    def seen(rows):
        # phrases are recognised by the words that carelessness leaves alone: the whole of them
        found = set()
        for row in rows:
            message = row["prompt"].lower()
            product = json.loads(row["completion"])["product"]
            for name in PRODUCTS[product]:
                for phrases in PROBLEMS.values():
                    for phrase in phrases:
                        words = re.escape(phrase.format(p=name, n="#").lower()).replace(
                            r"\#", r"\d"
                        )
                        if re.search(words, message):
                            found.add((phrase, product))
        return found

    training, apart = seen(ROWS[:200]), seen(tickets(100, seed=3, held_out=True))
    assert len(training) > 80
    assert len(apart) > 30
    assert not training & apart
    assert all(is_held_out(*pair) for pair in apart)


def test_files_that_load(tmp_path, chatml):
    train, valid = write_tickets(tmp_path / "new", rows=50, eval_rows=10, seed=1)
    assert (train.name, valid.name) == ("train.jsonl", "valid.jsonl")
    found = load_data(DataSpec(data=(str(train),), eval_data=(str(valid),)), chatml)
    assert (len(found.train), len(found.eval)) == (50, 10)
    assert not any("are also training rows" in n for n in found.notes)
    before = train.read_bytes()
    write_tickets(tmp_path / "new", rows=50, eval_rows=10, seed=1)
    assert train.read_bytes() == before
    with pytest.raises(ConfigError, match="eval_rows must be at least 1; it is 0"):
        write_tickets(tmp_path, rows=1, eval_rows=0)
