"""Budget, probe, costs and verdict: pure functions against values worked by hand."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest

from lorakit.comparing.costs import reached
from lorakit.comparing.methods import Method, arms_of
from lorakit.comparing.planning import steps_of
from lorakit.comparing.spec import FORM, Budget, CompareSpec
from lorakit.errors import ConfigError, DivergedError
from lorakit.experiments.rates import at_edge, grid, rounds, survivors
from lorakit.experiments.records import from_json, to_json
from lorakit.lora import LoraSpec


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("200 steps", Budget(200, "steps")),
        ("1 step", Budget(1, "steps")),
        ("300k tokens", Budget(300_000, "tokens")),
        ("1.5M tokens", Budget(1_500_000, "tokens")),
        ("10minutes", Budget(10, "minutes")),
        ("0.5 epochs", Budget(0.5, "epochs")),
    ],
)
def test_budgets(text, wanted):
    assert CompareSpec(budget=text).parsed_budget() == wanted


@pytest.mark.parametrize("text", ["200", "steps", "0 steps", "-1 steps", "3 hours", "2 k steps x"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ConfigError, match="give a number and a unit"):
        CompareSpec(budget=text)


def test_steps_of_every_unit():
    profile = SimpleNamespace(tokens_per_step=500.0, rows=81)
    assert steps_of(Budget(7, "steps"), profile, 2.0, 8) == 7
    assert steps_of(Budget(10_000, "tokens"), profile, 2.0, 8) == 20
    assert steps_of(Budget(3, "minutes"), profile, 2.0, 8) == 90
    assert steps_of(Budget(2, "epochs"), profile, 2.0, 8) == 22  # 81 rows are 11 steps of 8
    assert steps_of(Budget(0.01, "minutes"), profile, 2.0, 8) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ranks": ()}, "ranks"),
        ({"ranks": (0,)}, "ranks"),
        ({"ranks": (8, 8)}, "twice"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"rate_factor": 1.0}, "rate_factor must be above 1"),
        ({"probe_share": 0.0}, "probe_share"),
        ({"margin": 1.0}, "margin"),
        ({"score_margin": -0.1}, "score_margin"),
        ({"forgetting_margin": 1.0}, "forgetting_margin"),
        ({"cost_margin": 2.0}, "cost_margin"),
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=message):
        CompareSpec(**wrong)


def test_what_the_protocol_decides_is_no_option():
    with pytest.raises(ConfigError, match="learning_rate is decided by the protocol"):
        FORM.read(None, {"learning_rate": 1e-4})
    with pytest.raises(ConfigError, match="unknown key 'sedes'; did you mean 'seeds'"):
        FORM.read(None, {"sedes": 3})


def test_a_grid_is_geometric_around_its_centre():
    assert grid(2e-4, 5, 10.0) == (2e-6, 2e-5, 2e-4, 2e-3, 2e-2)
    assert grid(1e-3, 2, 4.0) == (5e-4, 2e-3)
    assert grid(3e-4, 1, 10.0) == (3e-4,)


@pytest.mark.parametrize("rates", [2, 3, 4, 5, 8])
def test_rounds_halve_the_rates_and_double_the_steps(rates):
    made = rounds(rates, 0.5, 64)
    assert made[0].rates == rates
    assert made[-1].rates == 2
    assert made[-1].steps == 32
    for before, after in pairwise(made):
        assert after.steps == 2 * before.steps
        assert after.rates == max(2, before.rates // 2)


def test_survivors_are_the_lowest_and_the_diverged_are_out():
    losses = {1e-5: 2.0, 1e-4: 1.5, 1e-3: 1.7, 1e-2: None}
    assert survivors(losses, 2) == (1e-4, 1e-3)
    assert survivors(losses, 4) == (1e-5, 1e-4, 1e-3)
    assert survivors({1e-4: 1.0, 1e-3: 1.0}, 1) == (1e-4,)
    with pytest.raises(DivergedError, match="every learning rate"):
        survivors({1e-2: None}, 1)


def test_the_end_of_a_grid_is_noticed():
    assert at_edge(1e-2, [1e-4, 1e-3, 1e-2])
    assert not at_edge(1e-3, [1e-4, 1e-3, 1e-2])
    assert not at_edge(1e-3, [1e-3])


def test_when_a_loss_was_reached():
    losses, seconds = [3.0, 2.0, 2.5, 1.0], [0.0, 10.0, 20.0, 30.0]
    assert reached(losses, seconds, 2.25) == pytest.approx(7.5)
    assert reached(losses, seconds, 1.75) == pytest.approx(25.0)
    assert reached(losses, seconds, 3.5) == 0.0
    assert reached(losses, seconds, 0.5) is None


def test_arms_by_the_settings():
    arms = arms_of(CompareSpec(ranks=(4, 16), control=True), LoraSpec(alpha=16))
    assert [arm.name for arm in arms] == [
        "full fine-tuning",
        "LoRA r=4",
        "LoRA r=16",
        "LoRA r=4, again",
    ]
    assert arms[1].method.lora == arms[3].method.lora
    assert arms[1].method != arms[3].method
    for arm in arms:
        assert from_json(Method, json.loads(json.dumps(to_json(arm.method)))) == arm.method
