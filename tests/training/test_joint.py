"""Jobs trained together against the same jobs trained alone."""

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from families import tiny
from lorakit.data.batches import micro_batches, order
from lorakit.data.table import Encoded, TokenTable
from lorakit.errors import DivergedError, ModelError, TargetError
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.lora.jobs import Jobs
from lorakit.training import (
    CausalLoss,
    Course,
    JointLoss,
    Observers,
    Schedule,
    TrainSpec,
    check_can_share,
    fit,
    fit_jobs,
    guard_of,
    held_out_loss,
)
from lorakit.training.joint import passes

STEPS = 20


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    """A job alone would run by compiled kernels, which jobs that share a pass do not: other roundings."""
    monkeypatch.setenv("LORAKIT_KERNELS", "plain")


def task(seed, count=12):
    """Rows of their own: uneven lengths, loss on their second half."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        n = 4 + int(torch.randint(12, (), generator=generator))
        ids = torch.randint(5, 250, (n,), generator=generator).int().numpy()
        rows.append(Encoded(ids, (torch.arange(n) >= n // 2).to(torch.uint8).numpy(), f"r:{i}"))
    return TokenTable.build(rows)


@dataclass(frozen=True)
class Work:
    rank: int
    rows: int = 0
    rate: float = 2e-3
    steps: int = STEPS
    spec: TrainSpec = field(default_factory=lambda: TrainSpec(batch_size=4, keep="last"))
    lora: dict = field(default_factory=dict)

    @property
    def wanted(self):
        return LoraSpec(rank=self.rank, **self.lora)

    def batches(self, step):
        table = task(self.rows)
        (rows,) = list(
            order(len(table), self.spec.batch_size, steps=step + 1, seed=self.spec.seed,
                  start_step=step)
        )  # fmt: skip
        return micro_batches(table, rows, self.spec.batch_tokens)


# Mixed ranks, tasks, rates, schedules, targets and batch sizes; the third leaves early.
MIXED = (
    Work(2),
    Work(8, rows=1, rate=5e-4, spec=TrainSpec(batch_size=3, seed=4, clip=0.1, keep="last")),
    Work(1, rows=2, steps=7),
    Work(4, lora={"targets": ("q_proj", "down_proj"), "alpha": 8.0},
         spec=TrainSpec(batch_size=5, batch_tokens=20, schedule="linear", warmup=0.0, keep="last")),
)  # fmt: skip


def evaluate(rows, loss):
    table = task(rows + 100)
    return held_out_loss(micro_batches(table, range(len(table)), 1000), loss)


def alone(work, family, fused=True, evaluated=False):
    model = tiny(family)
    attach(model, work.wanted, seed=work.spec.seed)
    loss = CausalLoss(model)
    assert bool(loss.runnable.fused_blocks) == fused
    look = partial(evaluate, work.rows, loss) if evaluated else None
    result = fit(
        model,
        work.batches,
        Schedule(work.steps, work.rate, work.spec),
        loss=loss,
        observers=Observers(evaluate=look),
    )
    return {p: (x.A, x.B) for p, x in lora_layers(model).items()}, result


def concurrent(
    works, family, *, evaluated=False, batch_tokens=4096, report=lambda job, event: None
):
    model = tiny(family)
    jobs = Jobs(model, [plan(model, w.wanted) for w in works], [w.spec.seed for w in works])
    loss = JointLoss(jobs)
    courses = [
        Course(
            jobs.parameters(j),
            w.batches,
            Schedule(w.steps, w.rate, w.spec),
            Observers(
                partial(evaluate, w.rows, loss.of_job(j)) if evaluated else None,
                partial(report, j),
            ),
            guard=guard_of(jobs, j),
        )
        for j, w in enumerate(works)
    ]
    before = dict(model.named_modules())
    results = fit_jobs(jobs, courses, loss=loss, batch_tokens=batch_tokens)
    assert dict(model.named_modules()) == before
    return model, jobs, results


def apart(ours, theirs):
    """Largest relative difference of a tensor, by its norm."""
    return max(
        float((a - b).detach().norm() / b.detach().norm())
        for path, pair in theirs.items()
        for a, b in zip((ours[path].A, ours[path].B), pair, strict=True)
    )


@pytest.mark.parametrize(("family", "fused"), [("llama", True), ("qwen3", True), ("phi3", False),
                                               ("gemma2", False)])  # fmt: skip
def test_a_concurrent_job_is_the_job_alone(family, fused):
    works = MIXED
    if family == "phi3":
        works = tuple(Work(w.rank, w.rows, w.rate, w.steps, w.spec) for w in MIXED)
    _, jobs, results = concurrent(works, family)
    for job, work in enumerate(works):
        theirs, result = alone(work, family, fused)
        assert apart(jobs.layers[job], theirs) < 1e-5
        assert results[job].steps == result.steps == work.steps
        assert results[job].train_loss == pytest.approx(result.train_loss, rel=1e-5)
        assert results[job].tokens == result.tokens


def test_small_passes_change_nothing():
    events = []
    _, jobs, _ = concurrent(MIXED, "llama", batch_tokens=1, report=lambda j, e: events.append(j))
    for job, work in enumerate(MIXED):
        assert apart(jobs.layers[job], alone(work, "llama")[0]) < 1e-5


def test_dropout_of_a_job_is_its_own():
    works = [Work(2, lora={"dropout": 0.3}), Work(4, rows=1, lora={"dropout": 0.1}), Work(3)]
    _, jobs, _ = concurrent(works, "llama")
    for job, work in enumerate(works):
        theirs, _ = alone(work, "llama", fused=job == 2)
        assert apart(jobs.layers[job], theirs) < 1e-5


def test_embeddings_have_jobs_too():
    works = [Work(2, lora={"targets": ("embed_tokens", "q_proj")}), Work(3, rows=1)]
    _, jobs, _ = concurrent(works, "llama")
    for job, work in enumerate(works):
        assert apart(jobs.layers[job], alone(work, "llama")[0]) < 1e-5


@pytest.mark.parametrize("family", ["gpt_oss", "qwen2_moe"])
def test_pairs_on_experts_have_jobs_too(family):
    experts = {"target_parameters": ("experts",)}
    works = [Work(2, steps=5, lora=experts), Work(3, rows=1, steps=3, lora=experts), Work(2)]
    model, jobs, _ = concurrent(works, family)
    for job, work in enumerate(works):
        assert apart(jobs.layers[job], alone(work, family, fused=False)[0]) < 1e-5
    # Put in and taken out again, in any order, the model has one job's pairs, or none.
    with torch.no_grad():
        ids = torch.arange(5, 16)[None]
        jobs.remove()
        plain = model(ids).logits
        jobs.remove()
        assert torch.equal(plain, tiny(family)(ids).logits)
        jobs.install(1)
        jobs.install(0)
        assert lora_layers(model) == jobs.layers[0]
        assert not torch.allclose(model(ids).logits, plain)
        jobs.install_all()
        jobs.assign([(0, 0, 5), (1, 5, 11)])
        with pytest.raises(ValueError, match="come to one weight"):
            model(ids)


def test_each_job_is_evaluated_and_keeps_its_own_best():
    best = TrainSpec(batch_size=4, eval_every=3, patience=1)
    works = [Work(2, rate=0.05, spec=best), Work(4, rows=1, spec=best)]
    _, jobs, results = concurrent(works, "llama", evaluated=True)
    for job, work in enumerate(works):
        theirs, result = alone(work, "llama", evaluated=True)
        assert apart(jobs.layers[job], theirs) < 1e-4  # a rate of 0.05 amplifies rounding
        assert results[job].best_step == result.best_step
        assert results[job].stopped_early == result.stopped_early
        assert results[job].eval_loss == pytest.approx(result.eval_loss, rel=1e-4)
    assert results[0].stopped_early
    assert results[0].steps < STEPS


def test_one_that_diverges_leaves_and_the_others_go_on():
    wild = Work(2, rate=9.0, spec=TrainSpec(batch_size=4, clip=0.0, warmup=0.0, keep="last"),
                lora={"alpha": 1e30})  # fmt: skip
    _, jobs, results = concurrent([wild, MIXED[0]], "llama")
    assert isinstance(results[0], DivergedError)
    assert apart(jobs.layers[1], alone(MIXED[0], "llama")[0]) < 1e-5


def test_the_base_keeps_every_byte_and_the_model_comes_back():
    before = tiny("llama").state_dict()
    model, jobs, _ = concurrent(MIXED[:2], "llama")
    jobs.remove()
    assert not lora_layers(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], old) for name, old in before.items())
    jobs.install(1)
    assert lora_layers(model) == jobs.layers[1]


def test_passes_hold_one_batch_of_a_job_and_every_batch_once():
    table = task(0)
    five, two = micro_batches(table, range(12), 30), micro_batches(table, range(4), 40)
    found = passes({0: five, 3: two, 4: []}, 60)
    for part in found:
        named = [job for job, _ in part]
        assert len(set(named)) == len(named)
        assert len(part) == 1 or sum(batch.tokens for _, batch in part) <= 60
    for job, batches in ((0, five), (3, two)):
        assert [batch for part in found for j, batch in part if j == job] == batches


def test_what_cannot_share_a_pass_is_refused():
    with pytest.raises(ModelError, match="cannot be packed"):
        check_can_share(tiny("xlm"))
    with pytest.raises(ModelError, match="drops activations of its own"):
        check_can_share(tiny("gpt2"))
    sampling = tiny("phimoe")
    state = torch.get_rng_state()
    with pytest.raises(ModelError, match="draws random numbers of its own"):
        check_can_share(sampling)
    assert torch.equal(torch.get_rng_state(), state)
    model = attach(tiny("llama"), LoraSpec(rank=2))
    with pytest.raises(TargetError, match="attached already"):
        Jobs(model, [], [])


def test_rows_belong_to_one_job():
    model = tiny("llama")
    jobs = Jobs(model, [plan(model, LoraSpec(rank=2))] * 2, [0, 1])
    with pytest.raises(ValueError, match="two jobs"):
        jobs.assign([(0, 0, 5), (1, 4, 8)])
    with pytest.raises(ValueError, match="two spans"):
        jobs.assign([(0, 0, 5), (0, 5, 8)])
