"""Attaching, training and detaching."""

import copy
import hashlib

import pytest
import torch
from torch import nn

from lorakit.errors import TargetError
from lorakit.lora import LoraLayer, LoraSpec, attach, detach, lora_layers, plan

IDS = torch.tensor([[1, 2, 3, 4], [0, 15, 7, 7]])
EVERYTHING = ("all-linear", "embed", "head")


def bytes_of(model):
    """A hash of every weight of the base, by its own name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(detach(copy.deepcopy(model)).state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
@pytest.mark.parametrize("rslora", [False, True])
def test_nothing_changes_at_the_start(stack, init, rslora):
    before = stack(IDS)
    attach(stack, LoraSpec(rank=2, targets=EVERYTHING, init=init, rslora=rslora, dropout=0.3))
    assert torch.equal(stack(IDS), before)
    assert len(lora_layers(stack)) == 8


def test_nothing_changes_at_the_start_of_any_kind(case):
    x = case.input(torch.float32)
    before = case.base(x)
    model = attach(nn.Sequential(case.base), LoraSpec(rank=2, targets=("0",)))
    assert torch.equal(model(x), before)


def test_a_random_B_changes_the_output(stack):
    # The start above must come from s·B·A = 0, not from a path that is never taken.
    before = stack(IDS)
    attach(stack, LoraSpec(rank=2, targets=("q_proj",)))
    for layer in lora_layers(stack).values():
        nn.init.normal_(layer.B)
    assert not torch.allclose(stack(IDS), before, atol=1e-3)


def test_only_A_and_B_get_gradients(stack):
    attach(stack, LoraSpec(rank=2, targets=EVERYTHING))
    stack(IDS).square().mean().backward()
    moving = {name for name, p in stack.named_parameters() if p.requires_grad}
    assert moving == {f"{path}.{half}" for path in lora_layers(stack) for half in ("A", "B")}
    for name, parameter in stack.named_parameters():
        assert (parameter.grad is not None) == (name in moving), name


def test_training_moves_the_pairs_and_not_one_byte_of_the_base(stack):
    before = bytes_of(stack)
    attach(stack, LoraSpec(rank=2, targets=EVERYTHING, dropout=0.1))
    stack.train()
    trained = [p for p in stack.parameters() if p.requires_grad]
    start = [p.clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(stack(IDS).flatten(0, 1), IDS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(now, then) for now, then in zip(trained, start, strict=True))
    assert bytes_of(stack) == before


def test_the_same_seed_gives_the_same_bits(stack):
    twins = [attach(copy.deepcopy(stack), LoraSpec(rank=2), seed=5) for _ in range(2)]
    other = attach(copy.deepcopy(stack), LoraSpec(rank=2), seed=6)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (*twins, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_global_generator_is_left_alone(stack):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    attach(stack, LoraSpec(rank=2, targets=EVERYTHING))
    assert torch.equal(torch.rand(1), expected)


def test_kaiming_and_gaussian_starts_have_their_spread():
    for init, spread, edge in (
        ("kaiming", 256**-0.5 / 3**0.5, 256**-0.5),
        ("gaussian", 0.25, None),
    ):
        model = attach(
            nn.Sequential(nn.Linear(256, 64)), LoraSpec(rank=4, targets=("0",), init=init)
        )
        A = lora_layers(model)["0"].A
        # 1,024 draws: the standard deviation is known to about 2 %; four times that is allowed.
        assert A.std().item() == pytest.approx(spread, rel=0.09)
        if edge:
            assert A.abs().max().item() <= edge


def test_an_embedding_starts_with_A_zero_and_B_normal():
    model = attach(nn.Sequential(nn.Embedding(64, 512)), LoraSpec(rank=4, targets=("0",)))
    layer = lora_layers(model)["0"]
    assert not layer.A.any()
    assert layer.B.std().item() == pytest.approx(1.0, rel=0.09)


def test_detach_puts_the_very_same_objects_back(stack):
    modules = dict(stack.named_modules())
    parameters = dict(stack.named_parameters())
    attach(stack, LoraSpec(rank=2, targets=EVERYTHING))
    assert any(isinstance(m, LoraLayer) for m in stack.modules())
    detach(stack)
    assert [*dict(stack.named_modules())] == [*modules]
    assert all(module is modules[path] for path, module in stack.named_modules())
    assert all(p is parameters[name] for name, p in stack.named_parameters())
    assert not any(isinstance(m, LoraLayer) for m in stack.modules())


def test_a_plan_attaches_as_its_spec_does(stack):
    spec = LoraSpec(rank=2, rank_pattern={"up_proj": 3}, rslora=True, alpha=5.0)
    made = plan(stack, spec)
    attach(stack, made)
    layers = lora_layers(stack)
    assert [*layers] == [target.path for target in made.targets]
    for target in made.targets:
        layer = layers[target.path]
        assert (layer.rank, layer.scale) == (target.rank, target.scale)
        assert (layer.target, layer.spec) == (target, spec)
        assert (layer.A.shape, layer.B.shape) == (
            (target.rank, layer.in_features),
            (layer.out_features, target.rank),
        )


def test_attaching_twice_is_refused(stack):
    attach(stack, LoraSpec(rank=2))
    with pytest.raises(TargetError, match="has an adapter attached already: detach it first"):
        attach(stack, LoraSpec(rank=2))


def test_training_mode_is_kept(stack):
    stack.eval()
    attach(stack, LoraSpec(rank=2))
    assert not any(module.training for module in stack.modules())


def test_the_meta_device_will_do():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(4, 8))
    attach(model, LoraSpec(rank=2, targets=("0", "1")))
    assert all(p.is_meta for p in model.parameters())
