"""Steps by graphs: shapes, buffers, what is captured anew and what is left, with recorders that are no GPU.

A recorder that "captures" a step runs it again on the same buffers: all that a graph does but the launching.
Attention is a stand-in of a varlen kernel, which reads the bounds of the sequences when it runs.
"""

import logging
import math

import pytest
import torch

from families import tiny
from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded, TokenTable
from lorakit.kernels import attention_varlen
from lorakit.kernels.gpu import dispatch
from lorakit.kernels.layout import OpenLayout
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.training import CausalLoss, Schedule, TrainSpec, fit, loop
from lorakit.training.graph_shapes import GraphShape, StaticBatch
from lorakit.training.graphs import StepGraphs, gradients_of, plain_gradients
from varlen_stand_in import StandIn


class Repeating:
    """A recorder whose graphs run what was recorded; it counts, and its clock says how long things take."""

    def __init__(self, *, fails=False, wrong=0.0, slow=False, room=True):
        self.fails, self.wrong, self.slow, self.room = fails, wrong, slow, room
        self.recorded = self.replayed = self._timed = 0
        self.parameters = []

    def record(self, run):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        self.recorded += 1

        def replay():
            self.replayed += 1
            run()
            for parameter in self.parameters:
                parameter.grad *= 1 + self.wrong

        return replay

    def seconds(self, run):
        self._timed += 1
        run()
        plain = self._timed % 2 == 1  # the plain step comes first
        return 1.0 if plain or self.slow else 0.1

    def has_room(self):
        return self.room


@pytest.fixture(autouse=True)
def varlen(monkeypatch):
    # Neither kernels that are compiled for a CPU, nor plain torch alone.
    monkeypatch.setenv("LORAKIT_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    formats = (torch.float32,)
    found = StandIn(formats)
    monkeypatch.setattr(attention_varlen, "_at_home", lambda device: True)
    monkeypatch.setattr(attention_varlen, "FORMATS", formats)
    monkeypatch.setattr(attention_varlen, "_right", {})
    monkeypatch.setattr(attention_varlen, "_torch_kernel", lambda: kernel)

    def kernel(q, k, v, bounds, s, window, softcap):
        starts, longest = bounds.starts, bounds.longest
        left = -1 if window is None else window - 1
        return found.varlen_attn(
            *(q, k, v, starts, starts, longest, longest),
            scale=s,
            window_size=(left, 0),
            enable_gqa=True,
        )

    return found


def model_of(family="llama", **changed):
    model = attach(tiny(family, **changed), LoraSpec(rank=3), seed=0)
    generator = torch.Generator().manual_seed(5)
    for layer in lora_layers(model).values():
        layer.B.data.normal_(0, 0.1, generator=generator)
    return model


def batches(*lengths, seed=0):
    """One batch of rows of these lengths, their second halves supervised."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for n in lengths:
        ids = torch.randint(5, 250, (n,), generator=g).int().numpy()
        rows.append(Encoded(ids, (torch.arange(n) >= n // 2).to(torch.uint8).numpy(), "r:1"))
    return micro_batches(TokenTable.build(rows), range(len(rows)), 10_000)


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def begin(model):
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)


def alone(model, loss, batch):
    """Loss and gradients of the batch by autograd; the model's gradients are as they were."""
    kept = gradients(model)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()  # in its place: graphs know it by its address
    nats, _ = plain_gradients(loss, batch)
    found = gradients(model)
    for p, old in zip((p for p in model.parameters() if p.requires_grad), kept, strict=True):
        p.grad.copy_(old)
    return nats, found


def close(ours, theirs):
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max() + 1e-6))
        for a, b in zip(ours, theirs, strict=True)
    )


# ---- shapes


@pytest.mark.parametrize(
    ("lengths", "supervised", "expected"),
    [
        ((5,), 2, GraphShape(64, 8, 64, 64)),
        ((64,), 64, GraphShape(64, 8, 64, 64)),
        ((65,), 65, GraphShape(128, 8, 128, 128)),
        ((60, 70, 80), 100, GraphShape(256, 8, 128, 128)),
        ((100,) * 9, 600, GraphShape(960, 16, 128, 640)),
        ((2048,), 2047, GraphShape(2048, 8, 2048, 2048)),
        ((1,) * 1000, 0, GraphShape(1024, 1024, 64, 0)),
    ],
)
def test_a_shape_holds_its_batch(lengths, supervised, expected):
    assert GraphShape.of(lengths, supervised) == expected


def test_every_shape_holds_its_batch_and_little_more():
    for tokens in range(1, 5000, 7):
        shape = GraphShape.of((tokens,), tokens)
        assert tokens <= shape.tokens == shape.supervised < max(tokens * 1.13, tokens + 64)
        assert shape.longest >= max(tokens, shape.tokens - tokens)
    assert len({GraphShape.of((n,), n) for n in range(2048, 4097)}) <= 10


def test_buffers_are_filled_whole_whatever_was_in_them():
    static = StaticBatch(GraphShape.of((30, 20), 40), torch.device("cpu"))
    static.fill(batches(31, 20, 9)[0])
    (batch,) = batches(4, 7)
    static.fill(batch)
    tokens, supervised = batch.tokens, batch.token_count
    assert static.starts.tolist() == [0, 4, 11, *[static.shape.tokens] * 6]
    assert torch.equal(static.ids_T[:tokens], batch.ids_T)
    assert not static.ids_T[tokens:].any()
    assert not static.positions_T[tokens:].any()
    assert torch.equal(static.predict_L[:supervised], batch.predict_L)
    assert (static.labels_L[supervised:] == -1).all()


def test_an_open_layout_has_no_groups():
    where = OpenLayout((64,), torch.device("cpu"), starts=torch.zeros(3, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="padded groups"):
        where.groups  # noqa: B018


# ---- steps


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "mistral"]
)  # mistral: a window in every layer
def test_replayed_steps_are_the_steps_of_autograd(family):
    model = model_of(family)
    loss, recorder = CausalLoss(model), Repeating()
    step = StepGraphs(loss, recorder)
    begin(model)
    for i, lengths in enumerate([(9, 14, 3), (7, 8), (20, 11), (5,), (12, 12, 12)]):
        (batch,) = batches(*lengths, seed=i)
        before = gradients(model)
        nats, expected = alone(model, loss, batch)
        got, tokens = step(batch)
        assert tokens == batch.token_count
        assert got == pytest.approx(nats, rel=1e-5)
        # They are added to what was there: several batches make one step.
        added = [new - old for new, old in zip(gradients(model), before, strict=True)]
        assert close(added, expected), i
    assert step.left is None
    assert recorder.recorded == 1  # all of these have one shape
    assert recorder.replayed == 2 + 3  # the check, its timing, and three batches


def test_a_run_by_graphs_is_the_run_without(monkeypatch):
    """Accumulation, clipping, the optimizer, and the best parameters put back at the end."""

    def trained(by_graphs):
        model, recorder = model_of(), Repeating()
        monkeypatch.setattr(
            loop,
            "gradients_of",
            (lambda loss, device: StepGraphs(loss, recorder)) if by_graphs else gradients_of,
        )
        losses = []
        result = fit(
            model,
            lambda i: [*batches(9, 14 + i, seed=i), *batches(30, 3, seed=50 + i)],
            Schedule(6, 0.01, TrainSpec(warmup=0.0, clip=0.5)),
            loss=CausalLoss(model),
        )
        losses.append(result.train_loss)
        return losses, [p.detach().clone() for p in model.parameters() if p.requires_grad], recorder

    (theirs, expected, _), (ours, found, recorder) = trained(False), trained(True)
    assert recorder.replayed > 6
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(found, expected, strict=True))


def test_shapes_are_captured_when_they_come_again_and_few_are_held():
    model = model_of()
    recorder = Repeating()
    step = StepGraphs(CausalLoss(model), recorder, most=2)
    begin(model)
    sizes = [20, 100, 180, 250]
    for _ in range(4):
        for size in sizes:
            step(batches(size)[0])
    assert recorder.recorded == 2
    assert recorder.replayed == 2 * 2 + 2 * 2


# ---- what is captured anew


def _new_a(model, step):
    layer = next(iter(lora_layers(model).values()))
    layer.A.data = layer.A.data.clone() * 2


def _new_gradients(model, step):
    begin(model)


def _new_frozen_weight(model, step):
    linear = model.model.layers[0].mlp.down_proj.base
    linear.weight = torch.nn.Parameter(linear.weight.detach() * 2, requires_grad=False)


def _another_module(model, step):
    block = model.model.layers[1]
    wider = type(block.input_layernorm)(block.input_layernorm.weight.shape[0])
    wider.weight.data.fill_(1.5)
    block.input_layernorm = wider.requires_grad_(False)


@pytest.mark.parametrize("change", [_new_a, _new_gradients, _new_frozen_weight, _another_module])
def test_what_is_replaced_is_captured_anew(change):
    model = model_of()
    loss, recorder = CausalLoss(model), Repeating()
    step = StepGraphs(loss, recorder)
    begin(model)
    for _ in range(3):
        step(batches(9, 14)[0])
    assert recorder.recorded == 1
    change(model, step)
    (batch,) = batches(8, 13, seed=3)
    before = gradients(model)
    nats, expected = alone(model, loss, batch)
    assert step(batch)[0] == pytest.approx(nats, rel=1e-5)
    assert close([n - o for n, o in zip(gradients(model), before, strict=True)], expected)
    assert recorder.recorded == 2


def test_what_changes_in_its_place_needs_nothing():
    """As the optimizer moves parameters and clears gradients, and as the best parameters come back."""
    model = model_of()
    loss, recorder = CausalLoss(model), Repeating()
    step = StepGraphs(loss, recorder)
    begin(model)
    for i in range(5):
        step(batches(9, 14)[0])
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.01 * (i + 1))
                    p.grad.zero_()
    (batch,) = batches(9, 14, seed=2)
    nats, _ = alone(model, loss, batch)
    assert step(batch)[0] == pytest.approx(nats, rel=1e-5)
    assert recorder.recorded == 1


# ---- what is left


@pytest.mark.parametrize(
    ("recorder", "says"),
    [
        (Repeating(fails=True), "cannot be captured: operation not permitted when stream is"),
        (Repeating(wrong=0.02), "loss or gradients differ by"),
        (Repeating(wrong=math.nan), "loss or gradients differ by nan"),
    ],
    ids=["cannot be captured", "wrong", "not a number"],
)
def test_a_graph_that_is_not_right_is_left_with_one_line(recorder, says, caplog):
    model = model_of()
    loss = CausalLoss(model)
    recorder.parameters = [p for p in model.parameters() if p.requires_grad]
    step = StepGraphs(loss, recorder)
    begin(model)
    with caplog.at_level(logging.WARNING, "lorakit.training"):
        for i in range(5):
            (batch,) = batches(9, 14 + i, seed=i)
            before = gradients(model)
            nats, expected = alone(model, loss, batch)
            assert step(batch)[0] == pytest.approx(nats, rel=1e-6)
            added = [new - old for new, old in zip(gradients(model), before, strict=True)]
            assert close(added, expected)
    assert len(caplog.records) == 1
    assert says in caplog.text


def test_a_graph_that_is_no_faster_is_not_used_nor_a_larger_one():
    model = model_of()
    recorder = Repeating(slow=True)
    step = StepGraphs(CausalLoss(model), recorder)
    begin(model)
    for _ in range(3):
        step(batches(100)[0])
        step(batches(200)[0])
    assert recorder.recorded == 1
    assert step.left is None


def test_without_room_nothing_is_captured():
    model = model_of()
    recorder = Repeating(room=False)
    step = StepGraphs(CausalLoss(model), recorder)
    begin(model)
    for _ in range(3):
        step(batches(9)[0])
    assert not recorder.recorded


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda: CausalLoss(model_of(), recompute=True),
        lambda: CausalLoss(model_of("gemma2")),  # its blocks are its own, and it caps its logits
        lambda: CausalLoss(model_of("gpt2")),
        lambda: CausalLoss(model_of(attention_dropout=0.5)),
    ],
    ids=["recomputed", "gemma2", "gpt2", "dropout"],
)
def test_steps_with_code_of_others_in_them_are_not_captured(loss_of):
    loss, recorder = loss_of(), Repeating()
    step = StepGraphs(loss, recorder)
    begin(loss.runnable.model)
    for _ in range(3):
        step(batches(9, 14)[0])
    assert not recorder.recorded
    assert step.left is None


def test_attention_by_padded_groups_is_left_with_the_reason(monkeypatch, caplog):
    model = model_of()
    loss = CausalLoss(model)
    step = StepGraphs(loss, Repeating())
    begin(model)
    monkeypatch.setattr(attention_varlen, "_at_home", lambda device: False)
    for _ in range(3):
        step(batches(9, 14)[0])
    assert "padded groups" in step.left
    assert len(caplog.records) == 1


def test_only_a_gpu_has_graphs_and_who_asks_for_none_gets_none(monkeypatch):
    loss = CausalLoss(model_of())
    made = []
    monkeypatch.setattr("lorakit.training.graphs.CudaRecorder", lambda device: made.append(device))
    assert not isinstance(gradients_of(loss, torch.device("cpu")), StepGraphs)
    assert isinstance(gradients_of(loss, torch.device("cuda:0")), StepGraphs)
    for name, value in (("LORAKIT_CUDA_GRAPHS", "0"), ("LORAKIT_KERNELS", "plain")):
        with monkeypatch.context() as within:
            within.setenv(name, value)
            assert not isinstance(gradients_of(loss, torch.device("cuda:0")), StepGraphs)
    assert len(made) == 1
