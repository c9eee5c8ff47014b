"""Small modules of every kind that can be adapted."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.lora import LoraSpec, attach, lora_layers


@dataclass
class Case:
    """One adaptable module and an input that fits it."""

    base: nn.Module
    x: torch.Tensor
    rank: int = 2

    def layer(self, dtype: torch.dtype = torch.float64, **spec: Any) -> Any:
        """The module adapted, in `dtype`, A and B random so that nothing is trivially zero."""
        spec = {"rank": self.rank, "alpha": 3.0, "targets": ("0",)} | spec
        model = attach(nn.Sequential(self.base.to(dtype)), LoraSpec(**spec)).eval()
        layer = lora_layers(model)["0"]
        g = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for half in (layer.A, layer.B):
                half.copy_(torch.randn(half.shape, generator=g, dtype=torch.float64))
        return layer

    def input(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return self.x.to(dtype) if self.x.is_floating_point() else self.x


def _cases() -> dict[str, Any]:
    ids = torch.tensor([[0, 3, 3], [10, 1, 0]])
    return {
        "linear": lambda: Case(nn.Linear(6, 5), torch.randn(2, 3, 6)),
        "linear, no bias": lambda: Case(nn.Linear(6, 5, bias=False), torch.randn(4, 6)),
        "Conv1D of GPT-2": lambda: Case(Conv1D(5, 6), torch.randn(2, 3, 6)),
        "embedding": lambda: Case(nn.Embedding(11, 4), ids),
        "embedding, padding": lambda: Case(nn.Embedding(11, 4, padding_idx=3), ids),
        "conv1d": lambda: Case(nn.Conv1d(3, 4, 3, stride=2, padding=1), torch.randn(1, 3, 5)),
        "conv2d": lambda: Case(nn.Conv2d(3, 4, (3, 2), padding=1), torch.randn(1, 3, 3, 4)),
        "conv2d, no bias": lambda: Case(nn.Conv2d(3, 4, 1, bias=False), torch.randn(1, 3, 3, 2)),
        "conv2d, dilation": lambda: Case(
            nn.Conv2d(3, 4, 3, dilation=2, padding="same"), torch.randn(1, 3, 4, 3)
        ),
        "conv2d, groups": lambda: Case(
            nn.Conv2d(4, 6, 3, groups=2, padding=1), torch.randn(1, 4, 3, 3)
        ),
        "conv3d": lambda: Case(nn.Conv3d(2, 3, 2), torch.randn(1, 2, 2, 3, 2)),
    }


@pytest.fixture(params=list(_cases()))
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return _cases()[request.param]()


@pytest.fixture
def stack() -> nn.Module:
    """Two blocks of linear layers between an embedding and a head, on whole numbers."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(8, 8)
            self.up_proj = nn.Linear(8, 12)
            self.down_proj = nn.Linear(12, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down_proj(torch.relu(self.up_proj(self.q_proj(x))))

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.layers = nn.ModuleList([Block(), Block()])
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 16, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    torch.manual_seed(0)
    return Stack()
