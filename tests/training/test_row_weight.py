"""Rows that weigh: a weight of two is the row twice, and what is held out weighs all alike."""

import json
from dataclasses import replace

import pytest
import torch
from test_joint import task
from test_loss import adapted, gradients

from families import BY_SEQUENCE, tiny, tokenizer
from lorakit.data import DataSpec, load_data
from lorakit.data.batches import join, micro_batches
from lorakit.data.table import TokenTable
from lorakit.errors import DataError
from lorakit.kernels.token_loss import TokenLoss
from lorakit.lora import LoraSpec, plan
from lorakit.lora.jobs import Jobs
from lorakit.training import CausalLoss, JointLoss, Observers, Schedule, TrainSpec, fit
from lorakit.training.loss import token_loss


def weighed(table, factors):
    return TokenTable.build(replace(row, factor=f) for row, f in zip(table, factors, strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma2", *list(BY_SEQUENCE)[:1]])
@pytest.mark.parametrize("kind", [TokenLoss(), TokenLoss(True, 0.1)])
def test_a_weight_of_two_is_the_row_twice(family, kind):
    """By a head in chunks, by logits (gemma2), and by rows that are run alone."""
    model = adapted(family)
    table = task(0, 4)
    factors = [1.0, 2.0, 3.0, 1.0]
    (batch,) = micro_batches(weighed(table, factors), range(4), 1000)
    times = [row for row, f in enumerate(factors) for _ in range(int(f))]
    repeated = micro_batches(table.take(times), range(len(times)), 1000)
    loss = CausalLoss(model, kind=kind)
    got, divisor = loss(batch, training=True)
    parts = [loss(part, training=True) for part in repeated]
    wanted = sum(part for part, _ in parts)
    assert divisor == sum(count for _, count in parts)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    found, expected = gradients(model, got), gradients(model, wanted)
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())
    # Measured, all weigh alike.
    (plain,) = micro_batches(table, range(4), 1000)
    assert torch.equal(loss(batch)[0], loss(plain)[0])
    assert loss(batch)[1] == plain.token_count


def test_jobs_that_share_a_pass_weigh_as_alone(monkeypatch):
    monkeypatch.setenv("LORAKIT_KERNELS", "plain")
    model = tiny("llama")
    jobs = Jobs(model, [plan(model, LoraSpec(rank=2)) for _ in range(2)], [0, 1])
    jobs.install_all()
    tables = [weighed(task(0, 3), [0.5, 4.0, 1.0]), task(1, 3)]
    part = [(j, micro_batches(table, range(3), 1000)[0]) for j, table in enumerate(tables)]
    got = JointLoss(jobs)(part)
    for (job, batch), nats in zip(part, got, strict=True):
        jobs.install(job)
        torch.testing.assert_close(nats, CausalLoss(model)(batch, training=True)[0])
        jobs.install_all()
    both = join([batch for _, batch in part])
    assert both.divisor == pytest.approx(part[0][1].divisor + part[1][1].token_count)


def test_a_step_is_divided_by_the_weights():
    """Weights of .001 for all are no weights at all: a step, its losses and its norm are the same."""
    told = []
    for factor in (1.0, 0.001):
        model = adapted("llama")
        table = weighed(task(0, 8), [factor] * 8)
        reports = []
        fit(
            model,
            lambda step, table=table: micro_batches(table, range(8), 60),
            Schedule(3, 1e-2, TrainSpec(loss="nll")),
            loss=CausalLoss(model, kind=token_loss(TrainSpec())),
            observers=Observers(report=reports.append),
        )
        told.append([(r["loss"], r["grad_norm"], r["loss_tokens"]) for r in reports])
    for plain, light in zip(*told, strict=True):
        assert light == pytest.approx(plain, rel=1e-4)


def read(tmp_path, rows, **spec):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"template": "raw", "eval_share": 0.0, **spec}
    return load_data(DataSpec(data=(str(file),), **options), tokenizer(chat=False))


def test_a_column_of_weights(tmp_path):
    rows = [
        {"prompt": "a", "completion": "b", "w": 2},
        {"prompt": "c", "completion": "d", "w": ".5"},
    ]
    data = read(tmp_path, rows, row_weight="w")
    assert data.train.factor_S.tolist() == [2.0, 0.5]
    assert "each row's loss weighs as 'w' says" in data.shape.description
    assert "not used" not in data.shape.description
    without = read(tmp_path, rows)
    assert without.train.factor_S.tolist() == [1.0, 1.0]
    # Other weights are other data: a run that resumes, or a trial that is kept, sees it.
    assert without.data_sha256 != data.data_sha256
    assert read(tmp_path, rows, prompt="{prompt}{w}", completion="{completion}", row_weight="w")


def test_a_row_that_is_cut_keeps_its_weight(tmp_path):
    rows = [
        {"text": "abc", "w": 3},
        {"text": "abcdef", "w": 1},
    ]
    data = read(tmp_path, rows, row_weight="w", max_length=4, too_long="cut")
    assert data.train.factor_S.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("bad", [0, -1, None, "much", True, 1e31, [2]])
def test_a_weight_that_is_none_is_named(tmp_path, bad):
    rows = [
        {"prompt": "a", "completion": "b", "w": 1},
        {"prompt": "c", "completion": "d", "w": bad},
    ]
    with pytest.raises(DataError, match=r"rows.jsonl:2: 'w' is .*a number above 0"):
        read(tmp_path, rows, row_weight="w")


def test_a_column_that_is_not_there_is_named(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "weight": 1}]
    with pytest.raises(DataError, match=r"rows.jsonl:1: row_weight is 'w'; .*'weight'"):
        read(tmp_path, rows, row_weight="w")
