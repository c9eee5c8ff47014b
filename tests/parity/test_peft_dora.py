"""DoRA trained step by step beside peft: the same tensors, with dropout drawn alike."""

import warnings

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.lora import LoraSpec, attach, lora_layers

TARGETS = ["table", "wide", "turned", "out"]


class Reader(nn.Module):
    """One of each kind that peft has DoRA for."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.wide = nn.Conv1d(8, 6, 3, padding=1)
        self.turned = Conv1D(10, 6)
        self.out = nn.Linear(10, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.wide(self.table(ids).transpose(1, 2))).transpose(1, 2)
        return self.out(torch.tanh(self.turned(x.contiguous())))


def base() -> Reader:
    torch.manual_seed(0)
    model = Reader().double()
    with torch.no_grad():
        model.turned.bias.normal_()
    return model


def theirs(dropout: float):
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=TARGETS, use_dora=True, lora_dropout=dropout
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it sets fan_in_fan_out for Conv1D
        return peft.get_peft_model(base(), config).train()


def tensors_of_peft(model, path):
    layer = model.base_model.model.get_submodule(path)
    if path == "table":
        A, B = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    else:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return A, B, layer.lora_magnitude_vector["default"].weight


def steps(model, parameters):
    ids = torch.arange(20).view(2, 10)
    optimizer = torch.optim.AdamW(parameters, lr=3e-2, weight_decay=0.0)
    torch.manual_seed(5)
    for _ in range(10):
        y = model(ids)
        loss = nn.functional.cross_entropy(y.flatten(0, 1), ids.flatten() % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_ten_steps_are_pefts(dropout):
    other = theirs(dropout)
    ours = attach(
        base(),
        LoraSpec(rank=2, alpha=3.0, targets=tuple(TARGETS), dora=True, dropout=dropout),
    ).train()
    for path, layer in lora_layers(ours).items():
        for mine, his in zip(layer.tensors.values(), tensors_of_peft(other, path), strict=True):
            assert mine.shape == his.shape
            with torch.no_grad():
                if mine is layer.magnitude:
                    torch.testing.assert_close(mine.data, his.data.to(mine.dtype))
                his.copy_(mine)
    trained = [p for layer in lora_layers(ours).values() for p in layer.tensors.values()]
    before = [p.detach().clone() for p in trained]
    his = [p for p in other.parameters() if p.requires_grad]
    assert len(his) == len(trained) == 12
    assert steps(ours, trained) == pytest.approx(steps(other, his), rel=1e-9)
    for path, layer in lora_layers(ours).items():
        for mine, theirs_now in zip(
            layer.tensors.values(), tensors_of_peft(other, path), strict=True
        ):
            torch.testing.assert_close(mine.data, theirs_now.data, rtol=1e-7, atol=1e-9)
    assert all(not torch.equal(old, p) for old, p in zip(before, trained, strict=True))
