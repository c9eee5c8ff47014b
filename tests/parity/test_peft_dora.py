"""DoRA trained step by step beside peft: the same tensors, with dropout drawn alike."""

import warnings

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.adapters import load_adapter, save_adapter
from lorakit.errors import ConfigError
from lorakit.lora import LoraSpec, attach, lora_layers

# peft corrects fan_in_fan_out by itself.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")

TARGETS = ["table", "wide", "turned", "final"]


class Reader(nn.Module):
    """One of each kind that peft has DoRA for."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.wide = nn.Conv1d(8, 6, 3, padding=1)
        self.turned = Conv1D(10, 6)
        self.final = nn.Linear(10, 5)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.wide(self.table(ids).transpose(1, 2))).transpose(1, 2)
        return self.final(torch.tanh(self.turned(x.contiguous())))


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


@pytest.mark.parametrize(
    "beside",
    [
        {"bias": "lora_only"},
        {"bias": "all"},
        {"modules_to_save": ["final"], "target_modules": ["wide", "turned"]},
        {"trainable_token_indices": {"table": [3, 7]}, "target_modules": ["turned", "final"]},
    ],
    ids=str,
)
def test_what_peft_saves_beside_dora(beside, tmp_path):
    """Biases are added after the factor, and modules trained whole have none."""
    config = {"r": 2, "lora_alpha": 3, "target_modules": TARGETS, "use_dora": True} | beside
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        other = peft.get_peft_model(base(), peft.LoraConfig(**config)).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
                parameter.add_(0.3 * noise)
    other.save_pretrained(tmp_path / "a")
    ids = torch.arange(20).view(2, 10)
    ours = base()
    load_adapter(ours, tmp_path / "a")
    with torch.no_grad():
        assert (other(ids) - base()(ids)).abs().max() > 0.01
        torch.testing.assert_close(ours(ids), other(ids), rtol=1e-5, atol=1e-5)
    save_adapter(ours, tmp_path / "b")
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "b").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids), other(ids), rtol=1e-5, atol=1e-5)


def test_a_bias_beside_each_pair_is_refused_as_in_peft():
    config = {"r": 2, "target_modules": TARGETS, "use_dora": True, "lora_bias": True}
    with pytest.raises(ValueError, match="not supported for DoRA"):
        peft.LoraConfig(**config)
    with pytest.raises(ConfigError, match="lora_bias: the variant DoRA cannot have a trained bias"):
        LoraSpec(rank=2, dora=True, lora_bias=True)


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
