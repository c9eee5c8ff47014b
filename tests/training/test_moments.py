"""AdamW's moments in 8 bits, against the paper's arithmetic in float64 and bitsandbytes' AdamW8bit."""

import numpy as np
import pytest
import torch
from torch import nn

from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded, TokenTable
from lorakit.errors import InterruptedRunError
from lorakit.kernels.packed import dynamic
from lorakit.lora import LoraSpec, attach
from lorakit.training import Checkpoints, Observers, Schedule, TrainSpec, fit
from lorakit.training.moments import of_embeddings
from lorakit.training.optimizer import FlatAdamW

EIGHT = TrainSpec(moments="8bit", weight_decay=0.1)
RATE = 1e-2


def paper_levels(signed):
    """Section 2 of arXiv 2110.02861: zero bits count an exponent, the bits left are a linear fraction."""
    found = [0.0, 1.0]
    for exponent in range(7):
        count = 2**exponent * (1 if signed else 2)
        for at in range(count):
            level = 10.0 ** (exponent - 6) * (0.1 + 0.9 * (at + 0.5) / count)
            found += [level, -level] if signed else [level]
    return torch.tensor(sorted(found), dtype=torch.float64)


def paper_packed(numbers, signed):
    """Every block of 256 by brute force: its largest magnitude, and of each number the nearest level."""
    levels, found = paper_levels(signed), []
    for block in numbers.double().split(256):
        largest = block.abs().max()
        if largest == 0:
            found.append(block)
            continue
        apart = (block[:, None] / largest - levels).abs()
        if not signed:  # what is not zero never becomes it
            apart[block > 0, 0] = torch.inf
        found.append(levels[apart.argmin(1)] * largest)
    return torch.cat(found)


def numbers(count, signed, seed=0):
    """Of many magnitudes; a block of zeros, and zeros in others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    x *= torch.exp(3 * torch.randn(count, generator=generator))
    x[256:512] = 0.0
    x[::97] = 0.0
    return x if signed else x.square()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [256 * 40, 256 * 5 + 77, 3])
def test_numbers_take_the_nearest_level_of_the_paper(signed, count):
    x = numbers(count, signed)
    codes, scales = torch.empty(count, dtype=torch.uint8), torch.empty(dynamic.blocks_of(count))
    dynamic.pack(x, codes, scales, signed=signed)
    found = dynamic.unpack(codes, scales, signed=signed)
    expected = paper_packed(x, signed)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)
    assert ((found == 0) == (x == 0)).all() or signed


@pytest.mark.parametrize("signed", [True, False])
def test_levels_are_those_of_bitsandbytes(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    found = dynamic.levels(torch.device("cpu"), signed=signed).levels
    assert torch.equal(found, functional.create_dynamic_map(signed=signed))


class Gradients:
    """The same gradients for every optimizer: a matrix and a vector that ends within a block."""

    def __init__(self, *, wild):
        self.generator = torch.Generator().manual_seed(1)
        self.start = [0.02 * self.normal(64, 512), self.normal(5000)]
        self.scale = [0.5 + torch.rand(p.shape, generator=self.generator) for p in self.start]
        if wild:
            self.scale = [torch.exp(self.normal(*p.shape)) for p in self.start]

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def next(self):
        return [(self.normal(*scale.shape) + 0.3) * scale for scale in self.scale]


def ours(spec, *, wild, steps=60, dtype=torch.float32):
    given = Gradients(wild=wild)
    weights = [nn.Parameter(p.to(dtype)) for p in given.start]
    flat = FlatAdamW(weights, spec)
    for _ in range(steps):
        for weight, grad in zip(weights, given.next(), strict=True):
            weight.grad.copy_(grad)
        flat.step(RATE, divide_by=1.0, clip=0.0)
    return moved(weights, wild), flat


def moved(weights, wild):
    start = Gradients(wild=wild).start
    return torch.cat([(w.detach() - s).flatten() for w, s in zip(weights, start, strict=True)])


def paper_adamw8(*, wild, steps=60):
    """AdamW in float64 whose moments are packed after each step, tensor by tensor."""
    given = Gradients(wild=wild)
    weights = [p.double() for p in given.start]
    first, second = [torch.zeros_like(p) for p in weights], [torch.zeros_like(p) for p in weights]
    for step in range(1, steps + 1):
        for i, grad in enumerate(given.next()):
            m = 0.9 * first[i] + 0.1 * grad.double()
            v = 0.999 * second[i] + 0.001 * grad.double() ** 2
            weights[i] *= 1 - RATE * 0.1
            root = (v / (1 - 0.999**step)).sqrt() + 1e-8
            weights[i] -= RATE * (m / (1 - 0.9**step)) / root
            first[i] = paper_packed(m.flatten(), signed=True).view(m.shape)
            second[i] = paper_packed(v.flatten(), signed=False).view(v.shape)
    return moved(weights, wild).float()


@pytest.mark.parametrize("wild", [False, True])
def test_equals_the_paper_in_float64(wild):
    """But for numbers that lie between two levels so nearly that float32 takes the other one."""
    (found, flat), expected = ours(EIGHT, wild=wild), paper_adamw8(wild=wild)
    plain, _ = ours(TrainSpec(weight_decay=0.1), wild=wild)
    apart = (found - expected).abs()
    assert float((apart > 1e-5).float().mean()) < 0.02
    assert float(apart.norm() / expected.norm()) < 0.1 * float(
        (plain - expected).norm() / expected.norm()
    )
    assert flat.state_bytes == 2 * 37768 + 2 * 4 * (128 + 20)


def test_comes_near_bitsandbytes():
    """Its quantizer on a CPU takes the nearest level of large numbers only, so gradients are of one size."""
    optimizers = pytest.importorskip("bitsandbytes.optim")
    given = Gradients(wild=False)
    weights = [nn.Parameter(p.clone()) for p in given.start]
    theirs = optimizers.AdamW8bit(weights, lr=RATE, weight_decay=0.1)
    for _ in range(60):
        for weight, grad in zip(weights, given.next(), strict=True):
            weight.grad = grad
        theirs.step()
    expected = moved(weights, wild=False)
    plain, _ = ours(TrainSpec(weight_decay=0.1), wild=False)
    found, _ = ours(EIGHT, wild=False)
    apart, rounding = (float((x - expected).norm() / expected.norm()) for x in (found, plain))
    assert apart < 0.3 * rounding
    assert 1e-3 < rounding < 0.05


def test_gradients_of_many_sizes_do_not_run_away():
    """Second moments that become zero beside first ones that do not are steps of a thousand rates."""
    found, _ = ours(EIGHT, wild=True)
    plain, _ = ours(TrainSpec(weight_decay=0.1), wild=True)
    assert float((found - plain).norm() / plain.norm()) < 0.2


class Mixed(nn.Module):
    """Sizes above and below 4,096, one within a block, an embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(96, 64)  # 6,144 and 64
        self.odd = nn.Linear(67, 96)  # 6,432, no multiple of 256
        self.last = nn.Linear(64, 80, bias=False)
        self.table = nn.Embedding(128, 67)

    def forward(self, ids):
        return self.last(torch.tanh(self.wide(torch.tanh(self.odd(self.table(ids))))))


def trained(model, flat, steps):
    for step in steps:
        ids = torch.randint(0, 128, (40,), generator=torch.Generator().manual_seed(step))
        model(ids).float().square().mean().backward()
        flat.step(1e-3, divide_by=1.0, clip=1.0)


def made(dtype, spec=EIGHT):
    model = Mixed().to(dtype)
    return model, FlatAdamW(model.parameters(), spec, of_embeddings(model.modules()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_and_small_tensors_keep_32_bits(dtype):
    model, flat = made(dtype)
    state = flat.state()
    wide = 64 + 96 + 128 * 67
    packed = 96 * 64 + 67 * 96 + 64 * 80
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
    assert len(state["exp_avg"]) == len(state["exp_avg_sq"]) == wide
    assert len(state["exp_avg_codes"]) == len(state["exp_avg_sq_codes"]) == packed
    # A tensor that ends within a block has a short one: no block lies in two tensors.
    assert len(state["exp_avg_scales"]) == 24 + 26 + 20
    other, plain = made(dtype, TrainSpec(weight_decay=0.1))
    for each, its in ((model, flat), (other, plain)):
        for parameter in each.parameters():  # the same gradients, whatever the others do
            g = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
            parameter.grad.copy_(g)
        its.step(1e-3, divide_by=1.0, clip=0.0)
        for parameter in each.parameters():
            parameter.grad.fill_(0.01)
        its.step(1e-3, divide_by=1.0, clip=0.0)
    same = {
        n: torch.equal(p, dict(other.named_parameters())[n]) for n, p in model.named_parameters()
    }
    assert {name for name, equal in same.items() if equal} >= {
        "wide.bias",
        "odd.bias",
        "table.weight",
    }
    assert not torch.equal(flat.master_of(model.wide.weight), plain.master_of(other.wide.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [256, 512, 100])
def test_parts_change_nothing(dtype, piece, monkeypatch):
    model, flat = made(dtype)
    trained(model, flat, range(4))
    monkeypatch.setattr("lorakit.training.moments._PIECE", piece)
    other, parted = made(dtype)
    trained(other, parted, range(4))
    for name, tensor in flat.state().items():
        assert torch.equal(tensor, parted.state()[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_goes_on_to_the_same_bits(dtype):
    whole, straight = made(dtype)
    trained(whole, straight, range(6))
    first, stopped = made(dtype)
    trained(first, stopped, range(3))
    state = {name: tensor.clone() for name, tensor in stopped.state().items()}
    second, gone_on = made(dtype)
    gone_on.load_state(state)
    trained(second, gone_on, range(3, 6))
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, gone_on.state()[name]), name


def test_no_tensor_of_the_state_is_a_whole_moment_in_float32():
    _, flat = made(torch.bfloat16)
    held = {n: t for n, t in vars(flat._moments).items() if isinstance(t, torch.Tensor)}
    assert all(t.data_ptr() == flat.master.data_ptr() for t in held.values())


@pytest.mark.parametrize("spec", [EIGHT, TrainSpec()])
def test_moments_go_over_to_another_run(spec):
    model, flat = made(torch.float32)
    trained(model, flat, range(5))
    narrow = flat.by_parameter(flat.narrow_moments())
    other, child = made(torch.float32, spec)
    theirs = dict(other.named_parameters())
    given = {theirs[name]: narrow[p] for name, p in model.named_parameters()}
    child.take_moments(flat.steps, given)
    assert child.steps == 5
    for name, parameter in model.named_parameters():
        kept = child.by_parameter(child.narrow_moments())[theirs[name]]
        for a, b in zip(narrow[parameter], kept, strict=True):
            assert a.dtype == b.dtype == torch.bfloat16
            # Rounding to bfloat16 in between may move a number to the next level, 1.4 % away.
            torch.testing.assert_close(a, b, rtol=2e-2, atol=0)
            assert a.abs().sum() > 0


class Reader(nn.Module):
    """Predicts the next token from this one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.block, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11)

    def forward(self, ids_T):
        x = self.table(ids_T)
        return self.head(x + torch.tanh(self.block(x)))


def nll(model, batch):
    logits = model(batch.ids_T)[batch.predict_L]
    return nn.functional.cross_entropy(logits, batch.labels_L, reduction="sum"), batch.token_count


def loop(folder=None, *, moments=None, stop_after=None, resume=False, losses=(), spec=None):
    model = attach(Reader(), LoraSpec(rank=2), seed=1).train()
    rows = TokenTable.build(
        Encoded(np.arange(2 + i, dtype=np.int32) % 11, np.ones(2 + i, np.uint8), f"r:{i}")
        for i in range(6)
    )
    given, seen = iter(losses), []
    result = fit(
        model,
        lambda step: micro_batches(rows, range(6), 1000),
        Schedule(6, 0.05, spec or TrainSpec(moments="8bit", eval_every=1)),
        loss=lambda batch, training=False: nll(model, batch),
        observers=Observers(
            (lambda: next(given)) if losses else None,
            seen.append,
            lambda: sum(event["kind"] == "train" for event in seen) == stop_after,
        ),
        checkpoints=Checkpoints(folder, "", resume),
        moments=moments,
        keep_moments=True,
    )
    return result, [p.detach().clone() for p in model.parameters() if p.requires_grad]


def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.training.optimizer.SMALL", 1)
    losses = [9.0, 8.0, 7.0, 6.0, 6.5, 6.6, 6.7]  # the fourth evaluation is the best one
    straight, weights = loop(losses=losses)
    with pytest.raises(InterruptedRunError):
        loop(tmp_path / "run", losses=losses, stop_after=4)
    resumed, again = loop(tmp_path / "run", losses=losses[5:], resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert straight.moments.steps == resumed.moments.steps == 3
    for a, b in zip(straight.moments.of.values(), resumed.moments.of.values(), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    # 8 bits it is: the same run in 32 bits ends elsewhere.
    _, wide = loop(losses=losses, spec=TrainSpec(eval_every=1))
    assert not all(torch.equal(a, b) for a, b in zip(weights, wide, strict=True))
