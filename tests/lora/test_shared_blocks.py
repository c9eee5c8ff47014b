"""One block that stands at several places of a model: one pair, trained by every call, saved and merged once."""

import pytest
import torch
from peft import PeftModel
from torch import nn

from lorakit.adapters import save_adapter
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.merging import merged_model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Shared(nn.Module):
    """Three layers; the first and the last are the same block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = Block()
        self.layers = nn.ModuleList([block, Block(), block])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def adapted():
    model = attach(Shared(), LoraSpec(rank=2))
    generator = torch.Generator().manual_seed(2)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 16)
    return model


def test_one_pair_is_planned_at_the_first_place():
    made = plan(Shared(), LoraSpec(rank=2))
    assert [t.path for t in made.targets] == [
        *("layers.0.up", "layers.0.down"),
        *("layers.1.up", "layers.1.down"),
    ]
    model = adapted()
    assert model.layers[0] is model.layers[2]


def test_every_call_trains_it():
    model = adapted()
    model(X).sum().backward()
    # The oracle: plain tensors, the shared block written out at both places.
    own = Shared()
    pairs = {
        path: [x.detach().clone().requires_grad_() for x in (layer.A, layer.B)]
        for path, layer in lora_layers(model).items()
    }

    def product(number, name, x):
        linear = getattr(own.layers[number], name)
        A, B = pairs[f"layers.{number}.{name}"]
        scale = lora_layers(model)[f"layers.{number}.{name}"].scale
        return x @ (linear.weight + scale * B @ A).T + linear.bias

    x = X
    for number in (0, 1, 0):
        x = x + product(number, "down", torch.tanh(product(number, "up", x)))
    x.sum().backward()
    for path, layer in lora_layers(model).items():
        for tensor, oracle in zip((layer.A, layer.B), pairs[path], strict=True):
            apart = (tensor.grad - oracle.grad).abs().max()
            assert apart <= 1e-4 * oracle.grad.abs().max(), (path, apart, oracle.grad.abs().max())


# peft loads the one pair and misses the names of the other places.
@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_merged_and_read_by_peft(tmp_path):
    model = adapted()
    right = model(X).detach()
    merged = merged_model(model)
    assert merged.layers[0] is merged.layers[2]
    assert torch.allclose(merged(X), right, rtol=1e-4, atol=1e-4)
    save_adapter(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(Shared(), tmp_path / "adapter").eval()
    assert torch.allclose(theirs(X), right, rtol=1e-4, atol=1e-4)
