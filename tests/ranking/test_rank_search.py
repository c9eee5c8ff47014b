"""The whole search on a tiny model: an easy task, a task of known need, and every method."""

import json

import numpy as np
import pytest
import torch

from families import tiny
from lorakit.adapters import load_adapter, read_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.trained_rows import read_trained_rows
from lorakit.data.table import Encoded, TokenTable
from lorakit.errors import ConfigError, DataError, OutputError
from lorakit.experiments import stamps
from lorakit.lora import LoraSpec, equations, plan
from lorakit.lora.jobs import Jobs
from lorakit.ranking import command
from lorakit.ranking.alternatives.nested import dealt, fit_nested
from lorakit.ranking.pairs import at_scale, put_pairs
from lorakit.ranking.spec import FORM
from lorakit.training import Schedule, TrainSpec


@pytest.fixture(scope="module")
def found(small, easy, search, tmp_path_factory):
    """A search with a probe and a noise estimate, its folder and its events."""
    out, events = tmp_path_factory.mktemp("runs") / "easy", []
    options = {**small, "data": (str(easy),), "learning_rate": "auto", "tolerance": "auto"}
    options |= {"rates": 3, "probe_share": 0.25, "per_layer": True, "verify": True}
    return search(out, options, events.append), out, events


def test_the_result_has_every_part(found):
    result, out, events = found
    assert json.loads((out / "result.json").read_text()) == result
    assert result["recommended_rank"] in result["ranks"]
    assert result["confidence"] is None  # so short a search says nothing
    assert result["loss"] < result["base_loss"]
    assert result["tolerance"]["runs"] == 3
    assert 0.001 <= result["tolerance"]["share"] <= 0.01
    assert {p["round"] for p in result["probe"]} <= {1, 2}
    assert len([p for p in result["probe"] if p["round"] == 1]) == 3
    assert [e["rank"] for e in result["evidence"][:2]] == [1, 8]
    assert result["prior"]["bits"] > 0
    assert set(result["cost"]["flops"]) == {
        *("look", "probe", "noise", "search", "layers", "verify")
    }
    assert result["cost"]["with_checks"] > result["cost"]["runs"] > 1
    assert result["verified"]["seed"] == 1000
    assert result["words"].count(".") >= 3
    assert [e for e in events if e["kind"] == "decided"]
    assert {p.name for p in (out / "plots").iterdir()} >= {
        f"{name}.png" for name in ("loss", "leaving", "heat", "decay", "rates", "cost")
    }


def test_what_another_version_profiled_is_profiled_anew(small, easy, monkeypatch):
    """An older profile lacks what a newer search asks of it."""
    given = FORM.read(None, {**small, "data": (str(easy),)})
    keys = []

    def runner(trials):
        keys.extend(trial.key for trial in trials)
        raise InterruptedError

    for number in ("0.1.0", "0.1.0", "0.2.0"):
        known = {"lorakit": number, "torch": "2", "transformers": "5"}
        monkeypatch.setattr(stamps, "versions", lambda known=known: known)
        with pytest.raises(InterruptedError):
            command.profile_rank(given.spec, given.config, runner)
    assert keys[0] == keys[1] != keys[2]


def test_the_adapter_is_there_at_the_recommended_rank(found):
    result, out, _ = found
    info = read_adapter(out / "adapter")
    if not result["layers"]["wins"]:
        assert info.spec.rank == result["recommended_rank"]
        assert info.trainable_parameters == result["trainable_parameters"]
    assert info.provenance["rank_search"]["method"] == "bracket"
    assert info.provenance["metrics"]["eval_loss"] == result["loss"]
    load_adapter(tiny("llama"), out / "adapter", force=True)
    # A run may go on from it, and then knows its rows.
    rows, why = read_trained_rows(out / "adapter", info.tensors_sha256)
    assert why == ""
    assert 0 < rows.rows <= result["rows"]


def test_ranks_by_layer_have_no_more_parameters(found):
    layers, result = found[0]["layers"], found[0]
    model = tiny("llama")
    made = plan(model, LoraSpec(rank=1, rank_pattern=layers["ranks"]))
    assert made.trainable <= result["trainable_parameters"]
    assert layers["wins"] == (layers["verdict"]["word"] == "better")


def test_the_cost_is_what_the_trials_trained(found):
    """Tokens of all training trials over those of one run; low ranks cost less, measuring more."""
    result, out, _ = found
    tokens = sum(
        run["tokens"]
        for file in out.glob("trials/*/result.json")
        for run in json.loads(file.read_text()).get("runs", ())
    )
    whole = result["steps"] * _profile(out)["profile"]["tokens_per_step"]
    assert 0.6 * tokens / whole < result["cost"]["with_checks"] < 1.6 * tokens / whole


def _profile(out):
    for file in out.glob("trials/*/trial.json"):
        if json.loads(file.read_text())["label"] == "profile":
            return json.loads((file.parent / "result.json").read_text())
    raise AssertionError


def test_resumed_it_trains_nothing_and_later_checks_can_be_added(found, search, small, easy):
    result, out, _ = found
    events = []
    options = {**small, "data": (str(easy),), "learning_rate": "auto", "tolerance": "auto"}
    options |= {"rates": 3, "probe_share": 0.25, "resume": True}
    again = search(out, options, events.append)
    assert not [e for e in events if e["kind"] == "begin"]
    assert again["gaps"] == result["gaps"]
    assert again["verified"] is None
    whole = search(out, {**options, "exhaustive": True, "grid_rates": 1}, events.append)
    assert len(whole["grid"]["losses"]) == 4
    assert whole["grid"]["regret"] >= 0
    assert whole["cost"]["runs"] == again["cost"]["runs"]
    with pytest.raises(OutputError, match="other settings"):
        search(out, {**options, "max_rank": 4})


def test_a_task_of_known_need_is_not_given_rank_1(base, keys, search, small, tmp_path):
    """80 keys with 3 random letters each, 1,100 bits, through one down_proj: 112 parameters for each
    unit of rank. Rank 1 cannot hold them; 16 learns more, and the search sees it."""
    options = {
        **small, "data": (str(keys),), "eval_data": (str(keys),), "targets": ("down_proj",),
        "layers": "1", "max_rank": 16, "max_steps": 150, "batch_size": 40, "learning_rate": 0.02,
        "tolerance": "1%", "allow_short": False,
    }  # fmt: skip
    result = search(tmp_path / "run", options)
    assert result["recommended_rank"] > 1
    assert result["gaps"]["1"]["low"] > result["margin"]["nats"]
    assert result["gaps"]["1"]["verdict"]["word"] == "worse"
    assert "Rank 1 is worse, by more than the margin, than rank 16" in result["words"]
    assert result["kind"] in ("needed", "unsaturated")
    assert result["confidence"] is None or result["recommended_rank"] < 16


# A tolerance so wide that a smaller rank is within it, and one that leaves the choice to the losses.
@pytest.mark.parametrize("tolerance", ["50%", "2%"])
@pytest.mark.parametrize("method", ["heal", "nested", "halving"])
def test_every_method_ends_with_its_adapter(method, tolerance, small, easy, search, tmp_path):
    options = {**small, "data": (str(easy),), "method": method, "max_rank": 4}
    result = search(tmp_path / "run", options | {"tolerance": tolerance})
    if tolerance == "50%":
        assert result["recommended_rank"] < 4
    stored = read_stored(tmp_path / "run" / "adapter")
    assert {pair.rank for pair in stored.pairs.values()} == {result["recommended_rank"]}
    assert {pair.alpha for pair in stored.pairs.values()} == {32.0}
    assert result["method"] == method
    hows = {e["how"] for e in result["evidence"]}
    assert hows == {
        "heal": {"trained", "cut", "healed"}, "nested": {"nested", "healed"}, "halving": {"trained"},
    }[method]  # fmt: skip


def test_by_a_metric(small, easy, search, tmp_path):
    options = {**small, "data": (str(easy),), "metric": "exact_match", "max_rank": 4}
    result = search(tmp_path / "run", options)
    assert result["metric"]["name"] == "exact_match"
    assert result["recommended_rank"] == result["metric"]["rank"]
    assert "exact_match" in result["words"]
    assert set(result["metric"]["scores"]) >= {"1", "4"}


def test_a_rank_that_does_not_fit_is_refused_and_leaves_nothing(small, easy, search, tmp_path):
    with pytest.raises(
        ConfigError, match=r"is above 48, .* of .*q_proj .*: give --max-rank 16, or"
    ):
        search(tmp_path / "run", {**small, "data": (str(easy),), "max_rank": 64})
    assert not any((tmp_path / "run").iterdir())


def test_one_held_out_row_is_refused_before_anything_is_trained(small, search, tmp_path):
    """Ten rows, of which the default share holds out one; as advised, a larger share is enough."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {i}", "completion": "yes"}}\n' for i in range(10)))
    options = {**small, "data": (str(rows),), "max_rank": 2, "max_steps": 2}
    with pytest.raises(DataError, match=r"one row is held out.*give --eval-data, or a larger"):
        search(tmp_path / "run", options)
    assert not any((tmp_path / "run").iterdir())
    assert search(tmp_path / "run", options | {"eval_share": 0.3})["eval_rows"] > 1


def test_a_cut_to_the_full_rank_gives_the_same_logits(found):
    """Through the way that cuts go here: balanced factors at the scale alpha / rank."""
    _, out, _ = found
    from lorakit.adapters.shrink import shrink
    from lorakit.adapters.specs import ShrinkSpec

    stored = read_stored(out / "adapter")
    highest = max(pair.rank for pair in stored.pairs.values())
    model = tiny("llama")
    ids = torch.arange(5, 60)[None]
    load_adapter(model, out / "adapter", force=True)
    with torch.no_grad():
        expected = model(ids).logits
    model = tiny("llama")
    spec = LoraSpec(rank=highest, rank_pattern={p: x.rank for p, x in stored.pairs.items()})
    jobs = Jobs(model, [plan(model, spec)], [0])
    put_pairs(jobs, 0, shrink(stored, ShrinkSpec(rank=highest)).adapter)
    jobs.install(0)
    with torch.no_grad():
        got = model(ids).logits
    assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_another_scale_is_the_same_product(found):
    stored = read_stored(found[1] / "adapter")
    for pair in stored.pairs.values():
        A, B = at_scale(pair, 0.7)
        torch.testing.assert_close(equations.delta(A, B, 0.7), pair.delta(), rtol=1e-5, atol=1e-7)


class TestNested:
    def rows(self):
        draw = np.random.default_rng(0)
        return TokenTable.build(
            Encoded(
                draw.integers(5, 200, 9).astype(np.int32),
                np.array([0] * 4 + [1] * 5, np.uint8),
                f"r:{i}",
            )
            for i in range(12)
        )

    def test_rows_are_dealt_evenly(self):
        seen = dict.fromkeys(range(3), 0)
        for step in range(6):
            hands = dealt(range(4), step, 3)
            assert sorted(row for rows in hands.values() for row in rows) == [0, 1, 2, 3]
            for prefix, rows in hands.items():
                seen[prefix] += len(rows)
        assert set(seen.values()) == {8}

    def test_prefixes_are_one_anothers_and_all_move(self):
        model = tiny("llama")
        plans = [plan(model, LoraSpec(rank=rank)) for rank in (1, 2, 4)]
        jobs = Jobs(model, plans, [0, 0, 0])
        spec = TrainSpec(batch_size=6, keep="last")
        fit_nested(jobs, self.rows(), spec, steps=3, learning_rate=1e-2)
        for path, whole in jobs.layers[-1].items():
            for layers in jobs.layers[:-1]:
                small = layers[path]
                assert torch.equal(small.A, whole.A[: small.rank])
                assert torch.equal(small.B, whole.B[:, : small.rank])
            assert whole.B.abs().amin(0).gt(0).any()

    def test_one_prefix_alone_is_an_ordinary_run(self):
        from lorakit.run.fitting import Work, fit_models

        spec = TrainSpec(batch_size=6, keep="last")
        made = []
        for nested in (True, False):
            model = tiny("llama")
            jobs = Jobs(model, [plan(model, LoraSpec(rank=3))], [0])
            rows = self.rows()
            if nested:
                fit_nested(jobs, rows, spec, steps=5, learning_rate=1e-2)
            else:
                work = Work(rows, rows.take(()), Schedule(5, 1e-2, spec))
                fit_models(jobs, [work], batch_tokens=spec.batch_tokens)
            made.append(jobs.layers[0])
        for path, layer in made[0].items():
            torch.testing.assert_close(layer.A, made[1][path].A, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(layer.B, made[1][path].B, rtol=1e-6, atol=1e-8)
