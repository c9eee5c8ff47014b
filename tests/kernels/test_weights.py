"""A frozen weight that is no tensor goes through the kernels as a dense one does."""

import torch

from lorakit.kernels.block import linear
from lorakit.kernels.groups import Linear, LowRank
from lorakit.kernels.weights import DenseWeight


class Halves:
    """A weight kept as two halves of its rows: what another storage format must do."""

    def __init__(self, weight_OI):
        self.top, self.bottom = (part.clone() for part in weight_OI.chunk(2))
        self.shape, self.dtype, self.device = (
            tuple(weight_OI.shape),
            weight_OI.dtype,
            weight_OI.device,
        )

    def product(self, x_TI, onto_TO=None):
        y_TO = torch.cat([x_TI @ self.top.t(), x_TI @ self.bottom.t()], dim=1)
        return y_TO if onto_TO is None else onto_TO + y_TO

    def add_product(self, y_TO, x_TI):
        y_TO += self.product(x_TI)

    def input_gradient(self, grad_TO):
        top, bottom = grad_TO.chunk(2, dim=1)
        return top @ self.top + bottom @ self.bottom

    def add_input_gradient(self, grad_TI, grad_TO):
        grad_TI += self.input_gradient(grad_TO)

    def rows(self, start, stop):
        return torch.cat([self.top, self.bottom])[start:stop].float()


def test_another_storage_gives_the_values_and_gradients_of_autograd():
    draw = torch.Generator().manual_seed(0)
    x, W, A, B = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((7, 5), (6, 5), (2, 5), (6, 2))
    )
    for pairs in (True, False):
        inputs = [t.clone().requires_grad_() for t in ((x, A, B) if pairs else (x,))]
        low = (LowRank(inputs[1], inputs[2], 0.5),) if pairs else ()
        linear(inputs[0], Linear(Halves(W), None, low)).sin().sum().backward()
        wanted = [t.clone().requires_grad_() for t in ((x, A, B) if pairs else (x,))]
        y = wanted[0] @ W.t()
        if pairs:
            y = y + 0.5 * wanted[0] @ wanted[1].t() @ wanted[2].t()
        y.sin().sum().backward()
        for ours, theirs in zip(inputs, wanted, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_rows_of_a_dense_weight_are_float32_at_least():
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    rows = DenseWeight(weight).rows(2, 5)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, weight[2:5].float())
