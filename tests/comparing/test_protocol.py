"""That the protocol is fair, on a tiny random model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from comparing_tools import without_measured

from lorakit.comparing import differences
from lorakit.comparing.methods import FULL, Arm, Method, arms_of
from lorakit.comparing.planning import estimate_compare
from lorakit.comparing.protocol import compare_arms
from lorakit.comparing.spec import FORM
from lorakit.data import DataSpec, load_data
from lorakit.experiments import in_process
from lorakit.experiments.opening import split_validation
from lorakit.lora import LoraSpec


@pytest.fixture(scope="module")
def probed(small, compare, tmp_path_factory):
    """A comparison with a probe, its folder and its events."""
    out, events = tmp_path_factory.mktemp("runs") / "probed", []
    options = {**small, "rates": 4, "budget": "8 steps", "ranks": (2, 4)}
    return compare(out, options, report=events.append), out, events


def test_the_result_has_every_part(probed):
    result, out, _ = probed
    assert [arm["name"] for arm in result["arms"]] == [FULL, "LoRA r=2", "LoRA r=4"]
    assert [d["arm"] for d in result["differences"]] == ["LoRA r=2", "LoRA r=4"]
    for arm in result["arms"]:
        assert [p["step"] for p in arm["course"]] == [0, 4, 8]
        assert arm["course"][0]["loss"]["mean"] == result["base"]["loss"]
        assert arm["course"][0]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
        assert arm["loss"]["mean"] < result["base"]["loss"]
        assert arm["kl"]["mean"] > 0
        assert arm["loss"]["low"] <= arm["loss"]["mean"] <= arm["loss"]["high"]
        assert arm["measured"]["peak_memory_bytes"] > 0
    assert json.loads((out / "result.json").read_text()) == result
    assert {"report.html", "samples.json", "config.yaml", "plots"} <= {
        p.name for p in out.iterdir()
    }
    samples = json.loads((out / "samples.json").read_text())
    assert [a["who"] for a in samples[0]["answers"]] == ["base", FULL, "LoRA r=2", "LoRA r=4"]
    for place in result["arms"][1]["measured"]["adapters"]:
        assert (out / place / "adapter_model.safetensors").is_file()


def test_every_arm_has_the_same_probe_budget_and_the_better_rates_go_on(probed):
    result = probed[0]
    budgets = [[(p["round"], p["steps"]) for p in arm["probe"]] for arm in result["arms"]]
    assert budgets[0] == budgets[1] == budgets[2] == [(1, 1)] * 4 + [(2, 2)] * 2
    for arm in result["arms"]:
        first = sorted((p for p in arm["probe"] if p["round"] == 1), key=lambda p: p["loss"])
        last = sorted((p for p in arm["probe"] if p["round"] == 2), key=lambda p: p["loss"])
        assert {p["rate"] for p in last} == {p["rate"] for p in first[:2]}
        assert arm["learning_rate"] == last[0]["rate"]


def test_every_arm_takes_the_same_rows_in_the_same_steps(probed):
    result, out, _ = probed
    tokens = {}
    for file in out.glob("trials/*/metrics.jsonl"):
        asked = json.loads((file.parent / "trial.json").read_text())
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        steps = [(e["tokens"], e["loss_tokens"]) for e in lines if e["kind"] == "train"]
        tokens.setdefault(asked["spec"]["seed"], []).append(steps)
    assert sorted(tokens) == [0, 1]
    for runs in tokens.values():
        assert len(runs) == 3
        assert runs[0] == runs[1] == runs[2]
    assert tokens[0][0] != tokens[1][0]
    first = [arm["tokens"] for arm in result["arms"]]
    assert first[0] == first[1] == first[2]


def test_swapping_the_names_of_the_arms_changes_nothing(small, compare, tmp_path):
    options = {**small, "rates": 2}
    arms = arms_of(FORM.read(None, options).spec, LoraSpec(rank=2))
    swapped = (replace(arms[0], name=arms[1].name), replace(arms[1], name=arms[0].name))
    texts = []
    for name, given in (("as-they-are", arms), ("swapped", swapped)):
        result = without_measured(compare(tmp_path / name, options, arms=given))
        texts.append(json.dumps(result))
    mark = "\0"
    renamed = texts[1].replace("LoRA r=2", mark).replace(FULL, "LoRA r=2").replace(mark, FULL)
    # The words of a verdict begin with a capital where the name begins the sentence.
    assert json.loads(renamed)["arms"] == json.loads(texts[0])["arms"]
    for key in ("loss", "kl", "general_loss", "scores", "rate_ratio", "fewer_parameters"):
        ours, theirs = (json.loads(text)["differences"][0][key] for text in (texts[0], renamed))
        assert ours == theirs, key
    kinds = [json.loads(text)["differences"][0]["verdict"]["word"] for text in texts]
    assert kinds[0] == kinds[1]


def test_the_order_of_the_arms_changes_nothing(small, compare, tmp_path):
    arms = arms_of(FORM.read(None, small).spec, LoraSpec(rank=2))
    one = without_measured(compare(tmp_path / "one", small, arms=arms))
    other = without_measured(compare(tmp_path / "other", small, arms=arms[::-1]))
    assert one["differences"] == other["differences"]
    assert one["arms"] == other["arms"][::-1]


def test_one_method_in_both_arms_is_found_to_be_one(small, tmp_path):
    """Two arms that differ by A's start alone: of 10 comparisons with 3 seeds, at least 9 intervals
    of the loss, and of the forgetting, cover zero."""
    options = {**small, "seeds": 30, "evaluations": 1, "samples": 0, "max_eval_rows": 20}
    given = FORM.read(None, {**options, "budget": "6 steps", "out": str(tmp_path)})
    lora = LoraSpec(rank=2)
    arms = (Arm("one", Method("lora", lora)), Arm("other", Method("lora", lora, start=500_009)))
    runner = in_process(tmp_path)
    estimate = estimate_compare(arms, given.spec, given.config, runner)
    found = compare_arms(arms, given.spec, given.config, runner, estimate)
    for values in (differences.losses, lambda arm: differences.moved(arm, "kl")):
        covered, moved = 0, 0.0
        for first in range(0, 30, 3):
            ours, theirs = (
                values(replace(arm, runs=arm.runs[first : first + 3])) for arm in found.arms
            )
            between = differences.difference(ours, theirs)
            covered += between.covers(0.0)
            moved = max(moved, abs(between.mean))
        assert covered >= 9
        assert moved > 1e-6  # they are two trainings and not one


def test_validation_rows_share_no_prompt_with_the_rest(rows, base):
    from lorakit.models import load_model

    _, tokenizer = load_model(str(base))
    twice = rows.parent / "twice.jsonl"
    text = rows.read_text()
    twice.write_text(text + text.replace('"completion": "', '"completion": "a '))
    table = load_data(DataSpec(data=(str(twice),), eval_share=0.0), tokenizer).train
    rest, aside = split_validation(table, 0)
    assert 10 <= len(aside) <= 22
    assert len(rest) + len(aside) == len(table)
    outside, inside = (
        {row.ids[: int(np.argmax(row.weight))].tobytes() for row in part} for part in (rest, aside)
    )
    assert not inside & outside
    assert {row.origin for row in aside} != {row.origin for row in split_validation(table, 1)[1]}


def test_minutes_give_each_arm_the_steps_that_fit(small, compare, tmp_path):
    result = compare(tmp_path / "run", {**small, "budget": "0.001 minutes", "seeds": 1})
    for arm in result["arms"]:
        assert arm["steps"] >= 1
    assert any("one seed" in note for note in result["notes"])


def test_every_arm_may_hold_its_moments_in_8_bits(small, compare, tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.training.optimizer.SMALL", 1)
    options = {**small, "seeds": 1, "moments": "8bit", "eval_share": 0.1, "samples": 0}
    for arm in compare(tmp_path / "out", options)["arms"]:
        # 2 bytes of moments, or 8 of an embedding's, where 32 bits have 8 of all.
        assert 2 < arm["optimizer_state_bytes"] / arm["trainable_parameters"] < 5, arm["name"]


def test_general_rows_of_the_users(small, compare, tmp_path):
    file = tmp_path / "general.jsonl"
    file.write_text('{"text": "the sun is a star"}\n{"text": "water is wet"}\n')
    result = compare(tmp_path / "run", {**small, "general_data": (str(file),), "seeds": 1})
    assert result["base"]["general"]["rows"] == 2
    assert "general.jsonl" in result["base"]["general"]["source"]
    assert result["arms"][0]["kl"]["rows"] == 2
