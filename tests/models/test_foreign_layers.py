"""Layers of other libraries are believed where their gradient is right in both modes, and refused by name."""

import pytest
import torch
from torch import nn

from families import saved
from lorakit.errors import ModelError
from lorakit.models import load_model
from lorakit.models.foreign import check_gradients


class Packed(nn.Linear):
    """A layer as quantization libraries have them: right, or with one of the faults they have had."""

    fault = ""

    def __init__(self, fault=""):
        super().__init__(16, 24)
        self.fault, self.repacked = fault, False

    def forward(self, x):
        y = nn.functional.linear(x, self.weight, self.bias)
        if not self.training:
            self.repacked = True
        if self.fault == "no gradient":
            return y.detach()
        if self.fault == "lost in evaluation" and not self.training:
            return y.detach() + 0 * x.sum()
        if self.fault == "lost after evaluation" and self.training and self.repacked:
            return y.detach() + 0 * x.sum()
        if self.fault == "wrong":
            return y + 2 * (x - x.detach()).sum()
        return y


Packed.__module__ = "bitsandbytes.nn.modules"


def test_a_right_layer_is_believed_and_left_as_it_was():
    model = nn.Sequential(Packed())
    check_gradients(model)
    assert not model[0].repacked


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no gradient", "in training mode its input gradient cannot be computed"),
        ("lost in evaluation", "in evaluation mode its input gradient is wrong by 100%"),
        ("lost after evaluation", "in training mode its input gradient is wrong by 100%"),
        ("wrong", "in training mode its input gradient is wrong"),
    ],
)
def test_faults_are_refused_by_name(fault, words):
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(3, 3), Packed(fault))})
    with pytest.raises(ModelError, match=rf"^block\.1 is bitsandbytes's Packed, and {words}"):
        check_gradients(model)


def test_ordinary_models_are_not_asked(monkeypatch):
    monkeypatch.setattr("lorakit.models.foreign._check", lambda *_: pytest.fail("asked"))
    check_gradients(nn.Sequential(nn.Linear(3, 4), nn.Embedding(3, 4), nn.ReLU()))


@pytest.mark.parametrize("layer", ["Linear4bit", "Linear8bitLt"])
def test_real_layers_of_bitsandbytes(layer):
    reason = "bitsandbytes is not installed: pip install 'lorakit[dev]' has it on Linux x86"
    library = pytest.importorskip("bitsandbytes", reason=reason)
    options = (
        {"compute_dtype": torch.float32} if layer == "Linear4bit" else {"has_fp16_weights": False}
    )
    made = getattr(library.nn, layer)(64, 128, **options)
    model = nn.Sequential(made).to("cpu")
    check_gradients(model)  # where its kernels for inference are not installed: nothing is repacked
    x = torch.randn(2, 64, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_load_model_asks(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("lorakit.models.reading.check_gradients", asked.append)
    model, _ = load_model(str(saved(tmp_path / "base")))
    assert asked == [model]
