"""Products taken in parts are the products."""

import pytest
import torch

from lorakit.kernels import products
from lorakit.kernels.products import add_product, product


@pytest.fixture
def sizes(monkeypatch):
    monkeypatch.setattr(products, "_ROWS", 4)
    monkeypatch.setattr(products, "_FEW_COLUMNS", 8)


@pytest.mark.parametrize("rows", [3, 5, 11, 30])
@pytest.mark.parametrize("transposed", [True, False])
def test_parts_are_the_whole(sizes, rows, transposed):
    x = torch.randn(rows, 16).bfloat16()
    w = torch.randn(6, 16).bfloat16().t() if transposed else torch.randn(16, 6).bfloat16()
    onto = torch.randn(rows, 6).bfloat16()
    exact = x.double() @ w.double()
    assert (len(products._parts(x, w)) > 1) == (4 < rows < 12)
    assert torch.allclose(product(x, w).double(), exact, rtol=1e-2, atol=1e-2)
    assert torch.allclose(product(x, w, onto).double(), onto + exact, rtol=1e-2, atol=2e-2)
    y = onto.clone()
    add_product(y, x, w)
    assert torch.allclose(y.double(), onto + exact, rtol=1e-2, atol=2e-2)


def test_wide_products_and_float32_stay_whole(sizes):
    x = torch.randn(5, 16)
    assert len(products._parts(x, torch.randn(16, 6))) == 1
    assert len(products._parts(x.bfloat16(), torch.randn(16, 20).bfloat16())) == 1
