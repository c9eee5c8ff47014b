"""Pairs on fused experts: W_e + s·B_e A_e through the model's own code, for every layout of experts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lorakit.errors import ConfigError, TargetError
from lorakit.kernels.adapted_weight import AdaptedWeight, grouped_low_rank
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from mixtures import MIXTURES, mixture, rows


def adapted(family: str, rank: int = 2, **more: Any) -> Any:
    """A model with trained-looking pairs on its experts and attention."""
    dtype = more.pop("dtype", torch.float32)
    model = mixture(family, dtype=dtype, **more)
    spec = LoraSpec(rank=rank, target_parameters=("experts",), exclude=gates(family))
    attach(model, spec, seed=4)
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        draw = torch.empty(layer.B.shape).normal_(0, 0.3, generator=generator)
        layer.B.data.copy_(draw)
    return model


def gates(family: str) -> tuple[str, ...]:
    """Layers too narrow for the rank."""
    return ("shared_expert_gate",) if family == "qwen2_moe" else ()


def update_by_loop(A: Tensor, B: Tensor, s: float, experts: int, swapped: bool) -> Tensor:
    """ΔW expert by expert, from peft's layout: A's rows by expert, B's columns with the expert innermost."""
    rank = A.shape[0] // experts
    deltas = []
    for e in range(experts):
        A_e = A[e * rank : (e + 1) * rank]
        B_e = torch.stack([B[:, r * experts + e] for r in range(rank)], dim=1)
        deltas.append(s * (A_e.T @ B_e.T if swapped else B_e @ A_e))
    return torch.stack(deltas)


def loss_by_loop(model: Any, parts: dict[str, Any], ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The loss of the plain model with the weights W + ΔW, and the leaves that it depends on."""
    weights, leaves = {}, {}
    for path, (A, B, s, geometry) in parts.items():
        A, B = (x.detach().clone().requires_grad_() for x in (A, B))
        leaves[path] = (A, B)
        if geometry.experts:
            W = model.get_parameter(path)
            delta = update_by_loop(A, B, s, geometry.experts, geometry.swapped)
            weights[path] = W + (delta if W.dim() == 3 else delta[0])
        else:
            weights[f"{path}.weight"] = model.get_parameter(f"{path}.weight") + s * (B @ A)
    logits = torch.func.functional_call(model, weights, (), {"input_ids": ids}).logits
    return logits.square().sum(), leaves


@pytest.mark.parametrize("family", MIXTURES)
def test_loss_and_gradients_are_those_of_a_loop_over_experts_in_float64(family: str) -> None:
    # torch's grouped product takes no float64, so the model's own loop runs; another test has the rest.
    model = adapted(family, dtype=torch.float64)
    if family != "llama4_text" and family != "dbrx":
        model.set_experts_implementation("eager")
    ids = torch.tensor([rows()[1]])
    loss = model(ids).logits.square().sum()
    loss.backward()
    layers = lora_layers(model)
    parts = {p: (x.A, x.B, x.scale, x.geometry) for p, x in layers.items()}
    detach(model)
    expected, leaves = loss_by_loop(model, parts, ids)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert any(geometry.experts for *_, geometry in parts.values())
    for path, (A, B) in leaves.items():
        for mine, theirs in ((parts[path][0].grad, A.grad), (parts[path][1].grad, B.grad)):
            assert float((mine - theirs).abs().max()) <= 1e-9 * float(theirs.abs().max()), path


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_to_compute_experts_gives_the_same(family: str, way: str) -> None:
    model, ids = adapted(family, rank=3), torch.tensor([rows()[1]])
    model.set_experts_implementation(way)
    loss = model(ids).logits.square().sum()
    loss.backward()
    parts = {p: (x.A, x.B, x.scale, x.geometry) for p, x in lora_layers(model).items()}
    detach(model)
    model.set_experts_implementation("eager")
    expected, leaves = loss_by_loop(model, parts, ids)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for path, (A, B) in leaves.items():
        for mine, theirs in ((parts[path][0].grad, A.grad), (parts[path][1].grad, B.grad)):
            assert float((mine - theirs).abs().max()) <= 1e-3 * float(theirs.abs().max()), path


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_no_model_code_needs_the_sum_of_weight_and_update(
    family: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(weight: AdaptedWeight) -> Tensor:
        raise AssertionError(f"{tuple(weight.shape)} was formed")

    model = adapted(family)
    if family not in ("llama4_text", "dbrx"):
        model.set_experts_implementation(way)
    monkeypatch.setattr(AdaptedWeight, "formed", refuse)
    model(torch.tensor([rows()[1]])).logits.sum().backward()
    assert all(layer.A.grad is not None for layer in lora_layers(model).values())


@pytest.mark.parametrize("family", ["mixtral", "llama4_text"])
def test_attaching_changes_nothing_and_detaching_gives_the_model_back(family: str) -> None:
    model, ids = mixture(family), torch.tensor([rows()[1]])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        expected = model(ids).logits
        attach(model, LoraSpec(rank=2, target_parameters=("experts",)))
        assert torch.equal(model(ids).logits, expected)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{path}.{x}" for path in lora_layers(model) for x in "AB"}
    detach(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert [type(module) for module in model.modules()] == classes


def test_the_plan_counts_each_expert_and_says_what_is_left_out() -> None:
    model = mixture("qwen3_moe")
    experts = plan(model, LoraSpec(rank=2, targets=(), target_parameters=("experts",)))
    # Block 1 alone has experts: 6 of them, (2 · 12) x 16 and 16 x 12.
    assert [target.path.split(".", 2)[2] for target in experts.targets] == [
        "1.mlp.experts.gate_up_proj",
        "1.mlp.experts.down_proj",
    ]
    assert experts.trainable == 6 * 2 * (16 + 24) + 6 * 2 * (12 + 16)
    reasons = {skipped.reason for skipped in plan(model, LoraSpec(rank=2)).skipped}
    assert any("--target-parameters experts" in reason for reason in reasons)


@pytest.mark.parametrize("family", ["dbrx", "mixtral"])
def test_routers_stay_frozen_unless_named(family: str) -> None:
    model = mixture(family)
    made = plan(model, LoraSpec(rank=2, target_parameters=("experts",)))
    assert not [t.path for t in made.targets if "router" in t.path or ".gate." in t.path]
    assert any(skipped.reason.startswith("router") for skipped in made.skipped)
    if family == "dbrx":  # transformers 5.24 runs it without gradient
        with pytest.raises(TargetError, match="without gradient"):
            plan(model, LoraSpec(rank=2, targets=("re:.*router.*",)))
        return
    named = plan(model, LoraSpec(rank=2, targets=(), target_parameters=("mlp.gate.weight",)))
    assert len(named.targets) == 2


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target_parameters": ("gate_up",)}, TargetError, "gate_up_proj"),
        ({"target_parameters": ("experts",), "dropout": 0.1}, ConfigError, "dropout"),
        ({"target_parameters": ("experts",), "rank": 16}, TargetError, "rank_pattern"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan(mixture("olmoe"), LoraSpec(**{"rank": 2, **options}))


def test_a_model_without_fused_experts_says_so() -> None:
    from families import tiny

    with pytest.raises(TargetError, match="keeps no experts in bare parameters"):
        plan(tiny("llama"), LoraSpec(target_parameters=("experts",)))


def test_layers_and_exclude_choose_among_experts() -> None:
    model = mixture("mixtral")
    one = LoraSpec(rank=2, targets=(), target_parameters=("experts",), layers="1")
    assert all(".1." in target.path for target in plan(model, one).targets)
    no_down = LoraSpec(rank=2, targets=(), target_parameters=("experts",), exclude=("down_proj",))
    assert {t.path.rsplit(".", 1)[-1] for t in plan(model, no_down).targets} == {"gate_up_proj"}


def test_anything_unknown_is_done_with_the_whole_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    W, L, R = (torch.randn(*s, generator=generator) for s in ((3, 4, 5), (3, 4, 2), (3, 2, 5)))
    lazy, whole = AdaptedWeight.of(W, L, R, 0.5), W + 0.5 * L @ R
    x = torch.randn(3, 6, 5, generator=generator)
    torch.testing.assert_close(torch.einsum("eti,eoi->eto", x, lazy), x @ whole.mT)
    torch.testing.assert_close(lazy.sum(0), whole.sum(0))
    torch.testing.assert_close(x @ lazy.transpose(-1, -2), x @ whole.mT)
    torch.testing.assert_close(torch.nn.functional.linear(x[0], lazy[1]), x[0] @ whole[1].T)
    torch.testing.assert_close(lazy[torch.tensor([2, 0])] @ x[:2].mT, whole[[2, 0]] @ x[:2].mT)
    torch.testing.assert_close(lazy[1:] @ x[1:].mT, whole[1:] @ x[1:].mT)
    torch.testing.assert_close(lazy[0, 1:3], whole[0, 1:3])
    assert lazy.shape == whole.shape
    assert lazy.dtype == whole.dtype
    with pytest.raises(TypeError, match="frozen"):
        lazy.zero_()


def test_grouped_products_take_empty_groups_and_any_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    x, L, R = (
        torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True)
        for s in ((7, 5), (4, 5, 3), (4, 3, 6))
    )
    ends = (2, 2, 6, 6)

    def grouped(x: Tensor, L: Tensor, R: Tensor) -> Tensor:
        return grouped_low_rank(x, L, R, 0.7, ends)

    y = grouped(x, L, R)
    torch.testing.assert_close(y[:2], 0.7 * x[:2] @ L[0] @ R[0])
    torch.testing.assert_close(y[2:6], 0.7 * x[2:6] @ L[2] @ R[2])
    assert not y[6:].any()
    assert torch.autograd.gradcheck(grouped, (x, L, R))


def test_grouped_products_are_those_of_a_loop_with_groups_that_have_no_rows() -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    W, L, R = numbers(4, 5, 7), numbers(4, 2, 5).mT.requires_grad_(), numbers(4, 2, 7)
    x, R = numbers(9, 5).requires_grad_(), R.requires_grad_()
    ends = torch.tensor([3, 3, 8, 8], dtype=torch.int32)  # the last row belongs to nobody

    def grouped(x: Tensor, L: Tensor, R: Tensor) -> Tensor:
        weight: Any = AdaptedWeight.of(W, L, R, 0.5)
        return torch.nn.functional.grouped_mm(x, weight, offs=ends)

    def by_loop(x: Tensor, L: Tensor, R: Tensor) -> Tensor:
        groups = [0, 0, 0, 2, 2, 2, 2, 2]
        rows = [x[i] @ (W[e] + 0.5 * L[e] @ R[e]) for i, e in enumerate(groups)]
        return torch.stack([*rows, torch.zeros(7, dtype=torch.float64)])

    torch.testing.assert_close(grouped(x, L, R), by_loop(x, L, R))
    assert torch.autograd.gradcheck(grouped, (x, L, R))
    for first, second in zip(
        torch.autograd.grad(grouped(x, L, R).square().sum(), (x, L, R)),
        torch.autograd.grad(by_loop(x, L, R).square().sum(), (x, L, R)),
        strict=True,
    ):
        torch.testing.assert_close(first, second)
