"""Linear layers that share an input, with pairs, as plain functions: no autograd.

    y_i = W_i n + b_i + s·B_i (A_i n)           `LinearGroup.forward`, h = A n for all pairs at once
    dn  = Σ_i W_iᵀ dy_i + Aᵀ dh                 `LinearGroup.gradient_input`, in one buffer

Pairs that read the same rows are one part: their A's stand under one another, so that one product
gives every h. Most often there is one part, of all rows; several jobs that share a pass are a part
each (lora/jobs.py). The blocks of block.py are made of these.

Where ranks differ by layer there are hundreds of shapes of products, and oneDNN, which computes the
16-bit ones on a CPU, compiles each shape anew that its cache does not hold. There every pair takes a
multiple of 8 columns of h, the spare ones with zeros in A and in B (docs/performance.md has figures).

Longer than 300 lines: the forward and the backward of one product stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, addmm, bfloat16, cat, float16, float32, float64
from torch.nn.functional import pad

from lorakit.errors import ModelError
from lorakit.kernels.gpu import dispatch, pairs
from lorakit.kernels.weights import DenseWeight, FrozenWeight

_COLUMNS = 8


@dataclass(frozen=True)
class LowRank:
    """A pair s·B·A beside a linear layer, and the rows that it works on.

    Attributes:
        A: (rank, in_features).
        B: (out_features, rank).
        scale: s.
        rows: first and one past the last of the T rows; None for all of them.
        unlike: whether the pairs of other layers have other ranks.
        on: (T,) bool, the rows that it acts on; (1,) where they are all alike, None for all of its rows.
    """

    A: Tensor
    B: Tensor
    scale: float
    rows: tuple[int, int] | None = None
    unlike: bool = False
    on: Tensor | None = None

    def columns(self, weight: FrozenWeight) -> int:
        """Columns of h that it takes beside such a weight: its rank, or more."""
        rank = self.A.shape[0]
        compiled = weight.device.type == "cpu" and weight.dtype in (bfloat16, float16)
        return -(-rank // _COLUMNS) * _COLUMNS if self.unlike and compiled else rank


@dataclass(frozen=True)
class Linear:
    """The tensors of one linear layer, with or without pairs.

    Attributes:
        weight: (out_features, in_features): a tensor, which may want a gradient, or whatever
            else can do what a `FrozenWeight` must.
        bias: (out_features,) or None.
        pairs: one for all rows, or several for rows that do not overlap.
    """

    weight: Tensor | FrozenWeight
    bias: Tensor | None = None
    pairs: tuple[LowRank, ...] = ()

    @property
    def frozen(self) -> FrozenWeight:
        """The weight as the products take it."""
        return DenseWeight(self.weight) if isinstance(self.weight, Tensor) else self.weight


@dataclass(frozen=True)
class LinearLayout:
    """What has no gradient in a linear layer: a weight that is no tensor, and scale, rows, unlike and
    on of each pair."""

    weight: FrozenWeight | None
    pairs: tuple[tuple[float, tuple[int, int] | None, bool, Tensor | None], ...]


GroupLayout = tuple[LinearLayout, ...]


def flat(linears: Sequence[Linear]) -> tuple[GroupLayout, list[Tensor | None]]:
    """The layout, and the tensors one after another, as autograd wants them.

    Of each linear: weight (None where it is no tensor), bias, and A and B of each pair.
    """
    tensors: list[Tensor | None] = []
    layout = []
    for each in linears:
        dense = isinstance(each.weight, Tensor)
        tensors += [each.weight if isinstance(each.weight, Tensor) else None, each.bias]
        tensors += [tensor for pair in each.pairs for tensor in (pair.A, pair.B)]
        pairs = tuple((p.scale, p.rows, p.unlike, p.on) for p in each.pairs)
        layout.append(LinearLayout(None if dense else each.frozen, pairs))
    return tuple(layout), tensors


def size_of(layout: GroupLayout) -> int:
    """How many tensors `flat` gives for linears of this layout."""
    return sum(2 + 2 * len(linear.pairs) for linear in layout)


class _RowPart:
    """The pairs that read the same rows of a group's input: those of one adapter.

    Attributes:
        rows: of the T rows.
        on: those of the T rows that they act on, None for all.
        pairs: by the place of their linear in the group.
        columns: of h that belong to each: its rank and what it is filled up with.
    """

    def __init__(
        self, rows: tuple[int, int] | None, pairs: dict[int, LowRank], weight: FrozenWeight
    ) -> None:
        self.rows = slice(None) if rows is None else slice(*rows)
        self.on = next(iter(pairs.values())).on
        self.pairs = pairs
        self.columns: dict[int, slice] = {}
        start = 0
        for i, pair in pairs.items():
            self.columns[i] = slice(start, start + pair.columns(weight))
            start = self.columns[i].stop

    def kept_A(self) -> Tensor:
        """All A's under one another, (R, in_features), as they are kept."""
        return cat([_filled(pair.A.t(), self.columns[i]).t() for i, pair in self.pairs.items()])

    def acting(self, h_TR: Tensor, rows: int) -> Tensor:
        """h, or its gradient, with zeros for the rows that the pairs do not act on, in its place.

        Args:
            h_TR: of the rows of this part.
            rows: T.
        """
        if self.on is None:
            return h_TR
        if len(self.on) not in (1, rows):
            raise ModelError(
                f"{rows} rows come to a layer with an activated pair, and of {len(self.on)} tokens it was "
                "said whether it acts on them: call the whole model with input_ids"
            )
        on_T = self.on if len(self.on) == 1 else self.on[self.rows]
        return h_TR.mul_(on_T[:, None])

    def A(self, like: Tensor) -> Tensor:
        """The same in the dtype of the activations."""
        return self.kept_A().to(like.dtype)

    def scaled(self, i: int, like: Tensor, *, rows_of_rank: bool = False) -> Tensor:
        """s·B in the dtype of the activations, (out, R), or laid out as (R, out): which a CPU multiplies faster."""
        pair = self.pairs[i]
        sB_OR = _filled((pair.scale * pair.B).to(like.dtype), self.columns[i])
        return sB_OR.t().contiguous() if rows_of_rank else sB_OR


class LinearGroup:
    """Linears that share an input n: (T, in_features); forward and backward as plain functions.

    h is one tensor a part: (rows of the part, sum of its ranks).
    """

    def __init__(self, layout: GroupLayout, tensors: Sequence[Tensor | None]) -> None:
        rest: Any = iter(tensors)
        self.linears = []
        for static in layout:
            dense, bias = next(rest), next(rest)
            pairs = tuple(LowRank(next(rest), next(rest), *pair) for pair in static.pairs)
            self.linears.append(Linear(static.weight or dense, bias, pairs))
        self._weights = [each.frozen for each in self.linears]
        found: dict[tuple[int, int] | None, dict[int, LowRank]] = {}
        for i, each in enumerate(self.linears):
            for pair in each.pairs:
                found.setdefault(pair.rows, {})[i] = pair
        weight = self._weights[0]
        self.parts = [_RowPart(rows, pairs, weight) for rows, pairs in found.items()]
        self._place = {rows: place for place, rows in enumerate(found)}

    def low(self, n_TI: Tensor) -> list[Tensor]:
        """h = n Aᵀ for all pairs of a part together."""
        if dispatch.suits(n_TI):
            hs = [pairs.project(n_TI[part.rows], part.kept_A()) for part in self.parts]
        else:
            hs = [n_TI[part.rows] @ part.A(n_TI).t() for part in self.parts]
        return [part.acting(h_TR, len(n_TI)) for part, h_TR in zip(self.parts, hs, strict=True)]

    def forward(self, n_TI: Tensor, hs: Sequence[Tensor], i: int, onto: Tensor | None) -> Tensor:
        """L_i(n), or onto + L_i(n): (T, out_i).

        The low-rank product comes first and the base's is added to it in the matmul. In 16 bits it
        would be lost the other way round: what is less than half a unit in the last place of a
        number that is rounded already changes nothing, and of the residual stream, whose numbers
        are large, that is nearly all of it.
        """
        each = self.linears[i]
        here = [(part, h) for part, h in zip(self.parts, hs, strict=True) if i in part.pairs]
        if not here:
            y_TO = self._weights[i].product(n_TI, onto)
        else:
            before = onto if n_TI.dtype in (float32, float64) else None
            (part, h_TR), pair = here[0], here[0][0].pairs[i]
            if len(here) == 1 and len(h_TR) == len(n_TI) and dispatch.suits(n_TI):
                h_TR = h_TR[:, part.columns[i]][:, : pair.B.shape[1]]
                y_TO = pairs.expand(h_TR, pair.B.t(), pair.scale, before)
            else:
                factors = [
                    (part.rows, h_TR[:, part.columns[i]], part.scaled(i, n_TI).t())
                    for part, h_TR in here
                ]
                y_TO = _products(factors, n_TI.shape[0], before)
            self._weights[i].add_product(y_TO, n_TI)
            if before is None and onto is not None:
                y_TO.add_(onto)
        if each.bias is not None:
            y_TO.add_(each.bias)
        return y_TO

    def gradient_h(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Gradient of each h."""
        found = []
        for part in self.parts:
            if dispatch.suits(grads[0]):
                pieces = [
                    pairs.project(
                        grads[i][part.rows], _filled(pair.B, part.columns[i]).t(), pair.scale
                    )
                    for i, pair in part.pairs.items()
                ]
            else:
                pieces = [
                    grads[i][part.rows] @ part.scaled(i, grads[i], rows_of_rank=True).t()
                    for i in part.pairs
                ]
            h_TR = pieces[0] if len(pieces) == 1 else cat(pieces, dim=1)
            found.append(part.acting(h_TR, len(grads[0])))
        return found

    def gradient_input(self, grads: Sequence[Tensor], grad_hs: Sequence[Tensor]) -> Tensor:
        """Σ_i grad_i W_i + grad_h A: (T, in_features), accumulated in one buffer."""
        if not self.parts:
            grad_TI = self._weights[0].input_gradient(grads[0])
        else:  # the low-rank products first, as in the forward
            whole = len(grad_hs) == 1 and len(grad_hs[0]) == len(grads[0])
            if whole and dispatch.suits(grads[0]):
                grad_TI = pairs.expand(grad_hs[0], self.parts[0].kept_A())
            else:
                factors = [
                    (part.rows, grad_h_TR, part.A(grad_h_TR))
                    for part, grad_h_TR in zip(self.parts, grad_hs, strict=True)
                ]
                grad_TI = _products(factors, grads[0].shape[0], None)
            self._weights[0].add_input_gradient(grad_TI, grads[0])
        for weight, grad_TO in zip(self._weights[1:], grads[1:], strict=True):
            weight.add_input_gradient(grad_TI, grad_TO)
        return grad_TI

    def gradients(
        self,
        grads: Sequence[Tensor],
        n_TI: Tensor,
        hs: Sequence[Tensor],
        grad_hs: Sequence[Tensor],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """Gradients in the order of `flat`, None where nobody wants one."""
        wanted = iter(needs)
        grads_A: dict[int, Tensor] = {}
        out: list[Tensor | None] = []
        for i, (each, grad_TO) in enumerate(zip(self.linears, grads, strict=True)):
            out.append(grad_TO.t() @ n_TI if next(wanted) else None)
            out.append(grad_TO.sum(0) if next(wanted) else None)
            for pair in each.pairs:
                place = self._place[pair.rows]
                part, rank = self.parts[place], pair.A.shape[0]
                grad_A = grad_B = None
                fast = dispatch.suits(grad_TO)
                if next(wanted):
                    if place not in grads_A:  # of all linears of the part at once
                        rows = n_TI[part.rows]
                        grad_h_TR = grad_hs[place]
                        grads_A[place] = (
                            pairs.outer(grad_h_TR, rows) if fast else grad_h_TR.t() @ rows
                        )
                    grad_A = grads_A[place][part.columns[i]][:rank].to(pair.A.dtype)
                if next(wanted):
                    h_TR = hs[place][:, part.columns[i]]
                    if fast:
                        grad_B = pairs.outer(h_TR, grad_TO[part.rows], pair.scale, turn=True)
                        grad_B = grad_B[:, :rank].to(pair.B.dtype)
                    else:
                        grad_B_RO = (h_TR.t() @ grad_TO[part.rows])[:rank]
                        grad_B = grad_B_RO.t().to(pair.B.dtype).mul(pair.scale)
                out += [grad_A, grad_B]
        return out


def _products(
    factors: Sequence[tuple[slice, Tensor, Tensor]], rows: int, onto: Tensor | None
) -> Tensor:
    """Each left @ right on rows of its own, zero on the others, and onto them: a new (rows, out)."""
    _, left, right = factors[0]
    if len(factors) == 1 and left.shape[0] == rows:
        return left @ right if onto is None else addmm(onto, left, right)
    y_TO = left.new_zeros(rows, right.shape[1]) if onto is None else onto.clone()
    for place, left, right in factors:
        y_TO[place].addmm_(left, right)
    return y_TO


def _filled(matrix_NR: Tensor, columns: slice) -> Tensor:
    """The matrix with zeros up to this many columns; itself where it has as many."""
    spare = columns.stop - columns.start - matrix_NR.shape[1]
    return pad(matrix_NR, (0, spare)) if spare else matrix_NR
