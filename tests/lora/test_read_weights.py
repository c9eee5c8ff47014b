"""Layers of torch whose weight is read and not called: a pair works, or is one clear error."""

import pytest
import torch
from torch import nn

from lorakit.errors import TargetError
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from lorakit.merging import merged_model


class Picture(nn.Module):
    """An encoder of torch's own layers, as towers for images have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        x = self.blocks(x)
        return self.out(self.cross(x, x, x)[0])


X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


def moved(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.B.normal_(generator=generator)
    return model


@pytest.mark.parametrize("target", ["out_proj", "cross.out_proj", "re:.*self_attn.out_proj"])
def test_the_output_of_attention_is_refused(target):
    with pytest.raises(
        TargetError, match=r"MultiheadAttention reads its weight and never calls it"
    ):
        plan(Picture(), LoraSpec(rank=2, targets=(target,)))


def test_it_is_left_out_of_what_is_more_than_it():
    made = plan(Picture(), LoraSpec(rank=2, targets=("re:.*(out|proj|linear.)",)))
    assert not [t.path for t in made.targets if t.path.endswith("out_proj")]
    reasons = {s.path: s.reason for s in made.skipped}
    assert "never calls it" in reasons["blocks.layers.0.self_attn.out_proj"]


def test_pairs_on_the_others_count_in_evaluation_too():
    """torch's fast path, which reads weights, is on without gradients alone: both ways must agree."""
    model = Picture().eval()
    with torch.no_grad():
        plain = model(X)
    moved(attach(model, LoraSpec(rank=2, targets=("linear1", "linear2"))))
    with_gradient = model(X).detach()
    with torch.no_grad():
        without = model(X)
        merged = merged_model(model)(X)
    assert float((without - plain).abs().max()) > 0.1
    torch.testing.assert_close(without, with_gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged, with_gradient, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(detach(model)(X), plain)
