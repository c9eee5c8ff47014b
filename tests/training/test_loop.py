"""The loop on small models with a loss of our own: what it promises, without transformers."""

import json
import math

import pytest
import torch
from torch import nn

from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded, TokenTable
from lorakit.errors import DivergedError, InterruptedRunError, OutputError
from lorakit.lora import LoraSpec, attach
from lorakit.training import Checkpoints, Observers, Schedule, TrainSpec, fit

VOCABULARY, WIDTH = 11, 6


class Reader(nn.Module):
    """Predicts the next token from this one, through two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids_T):
        x = self.embedding(ids_T)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)


def nll(model, batch):
    logits = model(batch.ids_T)[batch.predict_L]
    return nn.functional.cross_entropy(logits, batch.labels_L, reduction="sum"), batch.token_count


def adapted(dropout: float = 0.0, **spec) -> Reader:
    torch.manual_seed(0)
    model = Reader().double()
    return attach(model, LoraSpec(rank=2, dropout=dropout, **spec), seed=1).train()


def rows(count: int = 8) -> TokenTable:
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(count):
        ids = torch.randint(0, VOCABULARY, (3 + i,), generator=generator).int().numpy()
        weight = (torch.arange(3 + i) > i // 2).to(torch.uint8).numpy()
        made.append(Encoded(ids, weight, f"rows.jsonl:{i + 1}"))
    return TokenTable.build(made)


def run(
    model, *, steps=6, batch_tokens=10_000, loss=nll, spec=None, rate=0.05,
    folder=None, name="", resume=False, **observers,
):  # fmt: skip
    table = rows()
    return fit(
        model,
        lambda step: micro_batches(table, range(8), batch_tokens),
        Schedule(steps, rate, spec or TrainSpec(warmup=0.0, clip=0.0)),
        loss=lambda batch, *, training: loss(model, batch),
        observers=Observers(**observers),
        checkpoints=Checkpoints(folder, name, resume),
    )


def trained(model) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("dora", [False, True])
def test_one_batch_of_eight_equals_eight_of_one_with_uneven_lengths(dora):
    together, apart = adapted(dora=dora), adapted(dora=dora)
    run(together)
    run(apart, batch_tokens=1)
    assert len(micro_batches(rows(), range(8), 1)) == 8
    torch.testing.assert_close(trained(together), trained(apart), rtol=0, atol=1e-10)


def test_equals_a_plain_loop_with_torch_adamw():
    ours, theirs = adapted(), adapted()
    run(ours, spec=TrainSpec(warmup=0.0, clip=1.0, schedule="linear"))
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.0)
    table = rows()
    for step in range(6):
        total, count = 0.0, 0
        for row in table:
            ids = torch.tensor(row.ids).long()
            labels = [(t, int(ids[t + 1])) for t in range(len(ids) - 1) if row.weight[t + 1]]
            log_p = theirs(ids).log_softmax(-1)
            total = total - sum(log_p[t, label] for t, label in labels)
            count += len(labels)
        adam.zero_grad()
        (total / count).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in adam.param_groups:
            group["lr"] = 0.05 * (1 - step / 6)
        adam.step()
    torch.testing.assert_close(trained(ours), trained(theirs), rtol=0, atol=1e-8)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, second, third = adapted(0.5), adapted(0.5), adapted(0.5)
    run(first)
    run(second)
    run(third, spec=TrainSpec(warmup=0.0, clip=0.0, seed=5))
    assert torch.equal(trained(first), trained(second))
    assert not torch.equal(trained(first), trained(third))


def test_the_base_keeps_every_byte():
    model = adapted()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    run(model)
    after = dict(model.named_parameters())
    assert before
    assert all(torch.equal(after[name], old) for name, old in before.items())


class KilledError(Exception):
    pass


@pytest.mark.parametrize("dora", [False, True])
def test_killed_and_resumed_gives_the_same_bits(tmp_path, dora):
    spec = TrainSpec(warmup=0.0, checkpoint_every=2, eval_every=2)
    losses = iter([3.0, 2.0, 2.5, 1.0, 9.0])
    whole = adapted(0.3, dora=dora)
    expected = run(whole, spec=spec, evaluate=lambda: next(losses))

    seen = []

    def die_at_five(event):
        seen.append(event)
        if event["kind"] == "train" and event["step"] == 5:
            raise KilledError

    stopped, again = adapted(0.3, dora=dora), adapted(0.3, dora=dora)
    losses = iter([3.0, 2.0, 2.5])
    with pytest.raises(KilledError):
        run(stopped, spec=spec, evaluate=lambda: next(losses), folder=tmp_path, report=die_at_five)
    losses = iter([1.0, 9.0])
    result = run(again, spec=spec, evaluate=lambda: next(losses), folder=tmp_path, resume=True)
    assert torch.equal(trained(whole), trained(again))
    same = ("steps", "train_loss", "eval_loss", "eval_loss_before", "best_step", "tokens")
    assert [getattr(result, name) for name in same] == [getattr(expected, name) for name in same]


def test_the_best_parameters_are_kept_and_patience_ends_the_run():
    model, kept = adapted(), []
    losses = iter([9.0, 5.0, 6.0, 7.0, 1.0])

    def evaluate():
        kept.append(trained(model).clone())
        return next(losses)

    spec = TrainSpec(warmup=0.0, eval_every=1, patience=2)
    result = run(model, spec=spec, evaluate=evaluate)
    assert (result.best_step, result.eval_loss, result.eval_loss_before) == (1, 5.0, 9.0)
    assert result.stopped_early
    assert result.steps == 3
    assert torch.equal(trained(model), kept[1])


@pytest.mark.parametrize("losses", [[1.0, 5.0, 6.0, 7.0], [2.0, 2.0, 2.0, 2.0]])
def test_what_was_there_before_is_a_candidate(losses):
    model, waiting = adapted(), iter(losses)
    before = trained(model).clone()
    spec = TrainSpec(warmup=0.0, eval_every=1, patience=3)
    result = run(model, spec=spec, evaluate=lambda: next(waiting))
    assert (result.best_step, result.eval_loss) == (0, losses[0])
    assert result.stopped_early
    assert torch.equal(trained(model), before)


def test_moments_go_on_where_they_ended():
    """Six steps at once, and three and three with the moments between, against three and three without."""
    spec = TrainSpec(warmup=0.0, clip=0.0, schedule="constant", keep="last")

    def steps(model, count, first=0, moments=None, losses=None):
        table = rows()
        return fit(
            model,
            lambda step: micro_batches(table, [(first + step) % 8, (first + step + 3) % 8], 10_000),
            Schedule(count, 0.01, spec),
            loss=lambda batch, *, training: nll(model, batch),
            moments=moments,
            keep_moments=True,
        )

    whole, parts, anew = adapted(), adapted(), adapted()
    steps(whole, 6)
    half = steps(parts, 3)
    assert half.moments is not None
    assert (half.moments.steps, half.moments.learning_rate) == (3, 0.01)
    end = steps(parts, 3, first=3, moments=half.moments)
    assert end.moments is not None
    assert end.moments.steps == 6
    steps(anew, 3)
    steps(anew, 3, first=3)
    apart = [float((trained(m) - trained(whole)).norm()) for m in (parts, anew)]
    assert apart[0] < 0.01 * apart[1]  # moments are kept in bfloat16


def test_moments_are_those_of_the_step_that_was_kept(tmp_path):
    spec = TrainSpec(warmup=0.0, eval_every=1, checkpoint_every=1)

    def kept(model, until, losses, resume=False):
        waiting, table = iter(losses), rows()
        return fit(
            model,
            lambda step: micro_batches(table, range(8), 10_000),
            Schedule(5, 0.05, spec, until=until),
            loss=lambda batch, *, training: nll(model, batch),
            observers=Observers(evaluate=lambda: next(waiting)),
            checkpoints=Checkpoints(tmp_path / "run", "", resume),
            keep_moments=True,
        )

    first = kept(adapted(), 2, [9.0, 5.0, 4.0]).moments
    later = kept(adapted(), None, [6.0, 7.0, 8.0], resume=True).moments  # none of them is better
    assert first is not None
    assert later is not None
    assert (first.steps, later.steps) == (2, 2)
    for ours, theirs in zip(first.of.values(), later.of.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_loss_that_is_not_finite_stops_with_its_batch_saved(tmp_path):
    calls = []

    def breaks(model, batch):
        total, count = nll(model, batch)
        calls.append(count)
        return (total * math.nan if len(calls) == 3 else total), count

    model, good = adapted(), adapted()
    constant = TrainSpec(warmup=0.0, clip=0.0, schedule="constant")
    with pytest.raises(DivergedError, match=r"step 3: the loss is nan.*learning-rate"):
        run(model, loss=breaks, folder=tmp_path, spec=constant)
    saved = json.loads((tmp_path / "diverged-step-3.json").read_text())
    assert saved["rows"] == list(range(8))
    run(good, steps=2, spec=constant)
    assert torch.equal(trained(model), trained(good))


def test_a_base_that_changes_is_noticed_after_the_first_step():
    def writes_to_the_base(model, batch):
        with torch.no_grad():
            model.head.weight.add_(1.0)
        return nll(model, batch)

    with pytest.raises(DivergedError, match=r"frozen weight head\.weight has changed"):
        run(adapted(), loss=writes_to_the_base)


def test_a_gradient_that_reaches_nothing_is_noticed():
    def reaches_nothing(model, batch):
        return sum(0.0 * p.sum() for p in model.parameters() if p.requires_grad), 1

    with pytest.raises(DivergedError, match="nothing has moved"):
        run(adapted(), loss=reaches_nothing)


def test_an_interrupted_run_is_saved_and_goes_on(tmp_path):
    steps = []
    model = adapted()
    with pytest.raises(InterruptedRunError, match="after step 2 of 6"):
        run(
            model,
            folder=tmp_path,
            report=lambda e: steps.append(e["step"]) if e["kind"] == "train" else None,
            should_stop=lambda: len(steps) == 2,
        )
    again, whole = adapted(), adapted()
    run(again, folder=tmp_path, resume=True)
    run(whole)
    assert torch.equal(trained(again), trained(whole))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    spec = TrainSpec(checkpoint_every=1)
    run(adapted(), steps=2, spec=spec, folder=tmp_path, name="one")
    with pytest.raises(OutputError, match="other data, model or settings"):
        run(adapted(), steps=2, spec=spec, folder=tmp_path, name="two", resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    spec = TrainSpec(checkpoint_every=1)
    run(adapted(), steps=2, spec=spec, folder=tmp_path)
    (state,) = tmp_path.glob("checkpoints/step-*/state.safetensors")
    state.write_bytes(state.read_bytes()[:50])
    with pytest.raises(OutputError, match="damaged"):
        run(adapted(), steps=2, spec=spec, folder=tmp_path, resume=True)


def test_full_training_is_the_same_loop():
    torch.manual_seed(0)
    model = Reader().double()
    before = trained(model).clone()
    result = run(model)
    assert result.state_bytes == 2 * 8 * before.numel()
    assert float((trained(model) - before).abs().max()) > 0


def test_the_last_parameters_are_kept_where_they_are_asked_for(tmp_path):
    model, kept = adapted(), []
    losses = iter([9.0, 5.0, 6.0, 7.0])

    def evaluate():
        kept.append(trained(model).clone())
        return next(losses)

    spec = TrainSpec(warmup=0.0, eval_every=2, keep="last")
    result = run(model, spec=spec, evaluate=evaluate, folder=tmp_path)
    assert (result.best_step, result.eval_loss, result.eval_loss_before) == (6, 7.0, 9.0)
    assert torch.equal(trained(model), kept[-1])
    again = adapted()
    resumed = run(again, spec=spec, evaluate=lambda: 0.0, folder=tmp_path, resume=True)
    assert torch.equal(trained(again), kept[-1])
    assert resumed.eval_loss == 7.0


def test_a_first_step_lost_in_the_rounding_of_narrow_weights_is_no_standstill():
    torch.manual_seed(0)
    model = Reader().bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(8.0)  # where bfloat16 is 0.06 apart, and a step moves by the rate, 1e-4
    before = trained(model).clone()

    def loss(model, batch):
        total, count = nll(model, batch)
        return total.float(), count

    run(model, steps=1, spec=TrainSpec(warmup=0.0), loss=loss, rate=1e-4)
    assert torch.equal(trained(model), before)
