"""Every initialisation begins at the base model, is what its paper says, and has the gradients of its equation."""

import copy
import hashlib
import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.errors import ConfigError, TargetError
from lorakit.kernels.packed.counting import count_parameters
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from lorakit.lora.initialisations import INITIALISATIONS
from lorakit.lora.initialising import is_changed, trained_elements
from lorakit.lora.jobs import Jobs

IDS = torch.tensor([[1, 2, 3, 4], [0, 15, 7, 7]])
SPLIT = ("pissa", "pissa_niter_3", "olora")
NO_ROWS = ("orthogonal", "mica", *SPLIT)


def bytes_of(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(detach(copy.deepcopy(model)).state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("init", [*INITIALISATIONS, "pissa_niter_3"])
@pytest.mark.parametrize("rslora", [False, True])
def test_nothing_changes_at_the_start_and_the_base_keeps_its_bytes(stack, init, rslora):
    before, bytes_before = stack(IDS), bytes_of(stack)
    attach(stack, LoraSpec(rank=2, alpha=6.0, init=init, rslora=rslora, dropout=0.4))
    assert bytes_of(stack) == bytes_before
    assert torch.allclose(stack.train()(IDS), before, rtol=0, atol=1e-5)  # dropout is on
    assert not any(is_changed(layer) for layer in lora_layers(stack).values())


def one(base, init, dtype=torch.float64, **spec):
    model = attach(
        nn.Sequential(base.to(dtype)), LoraSpec(rank=2, targets=("0",), init=init, **spec)
    )
    return lora_layers(model)["0"]


def linear(out_features=7, in_features=5):
    torch.manual_seed(3)
    return nn.Linear(in_features, out_features)


def test_pissa_is_the_best_approximation_of_rank_r():
    layer = one(linear(), "pissa", alpha=3.0)
    W, s, A, B = layer.base.weight.double(), 3.0 / 2, layer.A[:2], layer.B[:, :2]
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    best = U[:, :2] @ torch.diag(S[:2]) @ Vh[:2]
    assert torch.allclose(s * B @ A, best, atol=1e-10)
    # In equal parts: A Aᵀ and Bᵀ B are the singular values over s.
    assert torch.allclose(A @ A.T, torch.diag(S[:2] / s), atol=1e-10)
    assert torch.allclose(B.T @ B, torch.diag(S[:2] / s), atol=1e-10)


def test_the_fast_svd_nears_the_exact_one():
    exact, fast = one(linear(40, 30), "pissa"), one(linear(40, 30), "pissa_niter_40")
    ours, best = (x.B[:, :2] @ x.A[:2] for x in (fast, exact))
    assert torch.allclose(ours, best, atol=1e-4)
    few = one(linear(40, 30), "pissa_niter_0")
    assert not torch.allclose(few.B[:, :2] @ few.A[:2], best, atol=1e-2)


def test_olora_is_the_beginning_of_qr():
    layer = one(linear(), "olora")
    Q, R = torch.linalg.qr(layer.base.weight.double())
    assert torch.equal(layer.A[:2], R[:2])
    assert torch.equal(layer.B[:, :2], Q[:, :2])


def test_mica_is_the_minor_vectors_and_trains_a_alone():
    layer = one(linear(), "mica")
    U, _, _ = torch.linalg.svd(layer.base.weight.double(), full_matrices=False)
    assert torch.allclose(layer.B, U[:, -2:])
    assert not layer.A.any()
    masks = trained_elements(layer)
    assert list(masks) == [layer.B]
    assert not masks[layer.B].any()


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_orthogonal_pairs_begin_away_from_zero_and_cancel(rank):
    model = nn.Sequential(linear(9, 8).double())
    layer = lora_layers(attach(model, LoraSpec(rank=rank, targets=("0",), init="orthogonal")))["0"]
    assert layer.A.any()
    assert rank == 1 or layer.B.any()
    assert torch.allclose(layer.delta(), torch.zeros(9, 8).double(), atol=1e-12)


@pytest.mark.parametrize("init", [*SPLIT, "lora_ga"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_pair_is_held_with_its_beginning(init, transposed):
    base = Conv1D(7, 5) if transposed else linear()
    gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spec = LoraSpec(rank=2, alpha=3.0, targets=("0",), init=init)
    layer = lora_layers(attach(nn.Sequential(base.double()), spec, evidence={"0": gradient}))["0"]
    assert layer.A.shape == (4, 5)
    assert layer.B.shape == (7, 4)
    assert layer.scale == 1.5
    assert layer.target.alpha == 6.0
    assert layer.target.rank == 4
    assert torch.equal(layer.A[:2], layer.A[2:])
    assert torch.equal(layer.B[:, :2], -layer.B[:, 2:])
    assert layer.A.any()
    assert layer.B.any()
    masks = trained_elements(layer)
    assert masks[layer.A].sum(1).tolist() == [5, 5, 0, 0]
    assert masks[layer.B].sum(0).tolist() == [7, 7, 0, 0]


@pytest.mark.parametrize("init", ["orthogonal", "mica", *SPLIT])
def test_gradients_are_those_of_the_equation(init):
    layer = one(linear(), init, alpha=3.0)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from the start, the copies excepted
        for tensor in (layer.A[:2], layer.B[:, :2]):
            tensor += torch.randn(tensor.shape, generator=g, dtype=torch.float64) / 3
    x = torch.randn(4, 5, generator=g, dtype=torch.float64)
    held = layer.target.trained_rank < layer.target.rank
    A0, B0 = (layer.A[2:], -layer.B[:, 2:]) if held else (torch.zeros(2, 5), torch.zeros(7, 2))
    A = layer.A[:2].detach().clone().requires_grad_()
    B = layer.B[:, :2].detach().clone().requires_grad_()
    W, bias = layer.base.weight.double(), layer.base.bias
    y = x @ (W + 1.5 * (B @ A - B0.detach().double() @ A0.detach().double())).T + bias
    assert torch.allclose(layer(x), y, atol=1e-12)
    y.square().sum().backward()
    layer(x).square().sum().backward()
    assert torch.allclose(layer.A.grad[:2], A.grad, atol=1e-10)
    assert torch.allclose(layer.B.grad[:, :2], B.grad, atol=1e-10)


def test_lora_ga_is_of_the_gradients_singular_vectors():
    gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spec = LoraSpec(rank=2, targets=("0",), init="lora_ga")
    model = attach(nn.Sequential(linear().double()), spec, evidence={"0": gradient})
    layer = lora_layers(model)["0"]
    U, _, Vh = torch.linalg.svd(gradient)
    c = 7**0.25 / 16**0.5
    assert torch.allclose(layer.A[:2], c * Vh[:2])
    assert torch.allclose(layer.B[:, :2], c * U[:, 2:4])


def test_what_is_trained_and_what_is_held_is_counted(stack):
    spec = LoraSpec(rank=2, init="pissa", rank_pattern={"up_proj": 4}, alpha_pattern={"q_proj": 8})
    plain = plan(stack, LoraSpec(rank=2, rank_pattern={"up_proj": 4}))
    split = plan(stack, spec)
    assert split.trainable == plain.trainable
    assert split.held == 2 * plain.held
    mica = plan(stack, LoraSpec(rank=2, init="mica"))
    assert mica.trainable == sum(2 * t.geometry.in_features for t in mica.targets)
    attach(stack, spec)
    layers = lora_layers(stack)
    masks = {p: mask for layer in layers.values() for p, mask in trained_elements(layer).items()}
    assert sum(int(mask.sum()) for mask in masks.values()) == split.trainable
    assert {path.rsplit(".")[-1]: (x.rank, x.scale) for path, x in layers.items()} == {
        "q_proj": (4, 4.0),
        "up_proj": (8, 8.0),
        "down_proj": (4, 16.0),
    }
    # What is saved describes the pairs as they are held, and needs no initialisation.
    held = next(iter(layers.values())).spec
    assert (held.rank, held.alpha, held.init) == (4, 64.0, "kaiming")
    assert held.rank_pattern == {"up_proj": 8}
    assert held.alpha_pattern == {"q_proj": 16.0}
    assert count_parameters(detach(stack)) == plain.total_parameters


@pytest.mark.parametrize("init", NO_ROWS)
def test_jobs_begin_as_each_alone(stack, init):
    specs = [LoraSpec(rank=2, init=init), LoraSpec(rank=3)]
    alone = copy.deepcopy(stack)
    kept = {path: layer.tensors for path, layer in lora_layers(attach(alone, specs[0])).items()}
    jobs = Jobs(stack, [plan(stack, spec) for spec in specs], [0, 1])
    for path, layer in jobs.layers[0].items():
        assert all(torch.equal(x, kept[path][name]) for name, x in layer.tensors.items())


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_jobs_refuse_what_begins_from_rows(stack, init):
    with pytest.raises(TargetError, match=f"init {init} begins from the training rows of one run"):
        Jobs(stack, [plan(stack, LoraSpec(rank=2, init=init))], [0])


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("pisa", "did you mean 'pissa'"),
        ("pissa_niter_", "write pissa_niter_N"),
        ("pissa_niter_-1", "write pissa_niter_N"),
        ("pissa_niter_x", "write pissa_niter_N"),
        ("corda", "must be one of kaiming"),
    ],
)
def test_an_unknown_name_is_refused(init, message):
    with pytest.raises(ConfigError, match=message):
        LoraSpec(init=init)


def test_what_an_initialisation_is_not_for_is_refused(stack):
    with pytest.raises(TargetError, match=r"init olora is for linear layers.* embed"):
        plan(stack, LoraSpec(rank=2, targets=("embed",), init="olora"))
    with pytest.raises(TargetError, match="init lora_ga needs 2 times the rank 5 within"):
        plan(stack, LoraSpec(rank=5, init="lora_ga"))
    for rho in (0.5, math.inf, math.nan):
        with pytest.raises(ConfigError, match="eva_rho must be at least 1"):
            LoraSpec(init="eva", eva_rho=rho)


def test_a_trained_pair_is_known_as_changed(stack):
    attach(stack, LoraSpec(rank=2, init="pissa"))
    layer = next(iter(lora_layers(stack).values()))
    with torch.no_grad():
        layer.A[0, 0] += 1e-3
    assert is_changed(layer)
