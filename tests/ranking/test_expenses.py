"""Searches that are too short are refused beforehand with what would do, and none costs more than was said."""

import re

import pytest

from lorakit.adapters import read_adapter
from lorakit.errors import ConfigError, DataError
from lorakit.ranking.expenses import least_steps
from lorakit.ranking.spec import RankSpec

LONG = {"max_steps": 40, "batch_size": 2, "allow_short": False, "tolerance": "auto"}


@pytest.fixture
def given(small, easy):
    """Options of a search that is as long as it has to be."""
    return {**small, **LONG, "data": (str(easy),), "eval_share": 0.2, "max_rank": 4}


def test_sixteen_steps_on_sixty_rows_are_refused_and_the_advice_is_enough(
    small, easy, search, tmp_path
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(easy.read_text().splitlines(keepends=True)[:60]))
    options = {k: v for k, v in small.items() if k not in ("max_steps", "allow_short")}
    options |= {"data": (str(rows),), "batch_size": 4, "max_rank": 2}
    with pytest.raises(DataError, match="too short for a search") as refused:
        search(tmp_path / "run", options)
    said = str(refused.value)
    assert "a run has 14 steps, and a search needs 40" in said
    assert "6 rows are held out, and an interval needs 12" in said
    assert not any((tmp_path / "run").iterdir())
    # What the message says to give is enough.
    epochs = int(re.search(r"--epochs (\d+)", said)[1])
    share = float(re.search(r"--eval-share ([\d.]+)", said)[1])
    made = search(tmp_path / "run", options | {"epochs": epochs, "eval_share": share})
    assert made["steps"] >= 40
    assert made["eval_rows"] >= 12
    assert made["too_short"] == []


def test_two_steps_are_refused_by_the_option_that_made_them_two(given, search, tmp_path):
    with pytest.raises(DataError, match=r"a run has 2 steps.*Give --max-steps 40\."):
        search(tmp_path / "run", given | {"max_steps": 2})
    assert not any((tmp_path / "run").iterdir())


def test_eight_rows_are_refused_in_words_that_do_not_ask_for_a_share_of_them(
    given, easy, search, tmp_path
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(easy.read_text().splitlines(keepends=True)[:8]))
    with pytest.raises(DataError, match="more rows, or --eval-data with 12 rows at least"):
        search(tmp_path / "run", given | {"data": (str(rows),), "eval_share": 0.4})


def test_short_runs_of_one_step_are_too_short_however_long_a_run_is():
    assert least_steps(RankSpec()) == 40
    assert least_steps(RankSpec(probe_share=0.02)) == 51
    assert least_steps(RankSpec(probe_share=0.5)) == 40


def test_where_it_is_allowed_all_the_same_nothing_is_said(given, search, tmp_path):
    options = given | {"max_steps": 4, "allow_short": True, "verify": True, "per_layer": True}
    made = search(tmp_path / "run", options | {"exhaustive": True, "grid_rates": 1})
    assert made["too_short"] == ["--max-steps 40"]
    words = [gap["verdict"]["word"] for gap in made["gaps"].values()]
    words += [
        made[name]["verdict"]["word"]
        for name in ("layers", "verified", "grid")
        if made[name]["verdict"] is not None
    ]
    assert set(words) == {"cannot be told"}
    assert made["confidence"] is None
    assert any("nothing is said of any rank: --max-steps 40" in note for note in made["notes"])
    assert made["words"].startswith("No rank is recommended: the search was too short.")
    for claim in (" is better than", " is worse", "are equal", "matters more", "Take rank"):
        assert claim not in made["words"], claim


def test_a_budget_that_does_not_reach_is_refused_with_one_that_does(given, search, tmp_path):
    with pytest.raises(ConfigError, match="budget is 1 runs") as refused:
        search(tmp_path / "run", given | {"budget": 1.0})
    assert not any((tmp_path / "run").iterdir())
    budget = float(re.search(r"--budget ([\d.]+)", str(refused.value))[1])
    made = search(tmp_path / "run", given | {"budget": budget})
    assert made["cost"]["runs"] <= made["cost"]["at_most"] == budget


@pytest.mark.parametrize("method", ["bracket", "heal", "nested", "halving"])
def test_a_search_costs_at_most_what_was_said_before(method, given, search, tmp_path):
    events = []
    options = given | {"method": method, "learning_rate": "auto", "rates": 3}
    made = search(tmp_path / "run", options | {"verify": method == "bracket"}, events.append)
    (before,) = [event for event in events if event["kind"] == "profile"]
    most, checks = before["expenses"].most, before["expenses"].checks
    assert made["cost"]["at_most"] == most
    # Steps hold rows of other lengths than the mean: a few percent.
    assert made["cost"]["runs"] <= 1.05 * most
    assert made["cost"]["with_checks"] <= 1.05 * (most + checks)
    assert made["cost"]["runs"] > 0.4 * most


def test_the_margin_is_named_before_and_recorded(given, search, tmp_path):
    events = []
    made = search(tmp_path / "run", given | {"tolerance": "3%"}, events.append)
    kinds = [event["kind"] for event in events]
    named = events[kinds.index("profile")]
    assert named["margin"] == made["margin"]["share"] == 0.03
    assert kinds.index("profile") < kinds.index("decided")
    for gap in made["gaps"].values():
        assert gap["verdict"]["margin"] == pytest.approx(0.03 * made["loss"], rel=0.6)
    assert read_adapter(tmp_path / "run" / "adapter").provenance["rank_search"]["margin"] == 0.03
