"""Singular values of a pair against those of its product, and cuts against Eckart and Young."""

import pytest
import torch

from lorakit.errors import ConfigError
from lorakit.lora.spectrum import cut, global_threshold, kept, spectrum

SHAPES = {
    "wide": ((3, 40), (7, 3)),
    "tall": ((3, 7), (40, 3)),
    "rank above a side": ((6, 4), (9, 6)),
    "convolution": ((3, 5, 2, 2), (8, 3, 1, 1)),
}


@pytest.fixture(params=list(SHAPES))
def pair(request):
    g = torch.Generator().manual_seed(3)
    shape_A, shape_B = SHAPES[request.param]
    A = torch.randn(shape_A, generator=g, dtype=torch.float64)
    B = torch.randn(shape_B, generator=g, dtype=torch.float64)
    return A, B, -0.7


def product(A, B, s=1.0):
    return s * B.flatten(1) @ A.flatten(1)


def test_it_is_the_svd_of_the_product(pair):
    U, S, Vh = spectrum(*pair)
    whole = product(*pair)
    torch.testing.assert_close(U * S @ Vh, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(S, torch.linalg.svdvals(whole)[: len(S)], rtol=0, atol=1e-12)
    for basis in (U.T @ U, Vh @ Vh.T):
        torch.testing.assert_close(
            basis, torch.eye(len(S), dtype=torch.float64), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("rank", [1, 2, 9])
def test_a_cut_misses_exactly_the_discarded_values(pair, rank):
    A, B = cut(*pair, rank=rank)
    values = torch.linalg.svdvals(product(*pair))
    error = (product(A, B) - product(*pair)).norm()
    torch.testing.assert_close(error, values[rank:].norm(), rtol=0, atol=1e-12)
    assert A.shape[1:] == pair[0].shape[1:]
    assert B.shape[0] == pair[1].shape[0]
    assert B.shape[2:] == pair[1].shape[2:]


def test_small_values_beside_large_ones_are_not_lost():
    # 1e-9 beside 1 is below float32's resolution of the product.
    A = torch.diag(torch.tensor([1.0, 1e-9]))
    assert spectrum(A, torch.eye(2), 1.0)[1].tolist() == pytest.approx([1.0, 1e-9], rel=1e-6)


@pytest.mark.parametrize(
    ("energy", "count"), [(0.5, 1), (9 / 14, 1), (0.65, 2), (13 / 14, 2), (0.95, 3), (1.0, 3)]
)
def test_energy(energy, count):
    # Squares 9, 4, 1 of 14; a share that is met exactly needs no further value.
    assert kept(torch.tensor([3.0, 2.0, 1.0]), energy=energy - 1e-12) == count


def test_rank_and_energy_together():
    S = torch.tensor([3.0, 2.0, 1.0])
    assert kept(S, rank=1, energy=1.0) == 1
    assert kept(S, rank=3, energy=0.5) == 1
    assert kept(torch.zeros(3), rank=3, energy=0.9) == 1


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "give a rank or an energy"),
        ({"rank": 0}, "rank must be at least 1; it is 0"),
        ({"energy": 0.0}, r"energy is a share in \(0, 1\]; it is 0.0"),
        ({"energy": 1.5}, "it is 1.5"),
    ],
)
def test_limits(limits, message):
    with pytest.raises(ConfigError, match=message):
        kept(torch.ones(2), **limits)


SPECTRA = {
    "a": torch.tensor([9.0, 8.0, 7.0, 1.0]),
    "b": torch.tensor([2.0, 1.5, 0.5, 0.1]),
    "c": torch.tensor([0.3, 0.2, 0.1]),
}


class TestGlobalThreshold:
    def error(self, ranks):
        return sum(float(S[ranks[name] :].square().sum()) for name, S in SPECTRA.items())

    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_no_other_ranks_of_the_same_sum_lose_less(self, rank):
        found = global_threshold(SPECTRA, rank=rank)
        assert sum(found.values()) == 3 * rank
        best = min(
            self.error({"a": a, "b": b, "c": 3 * rank - a - b})
            for a in range(1, 5)
            for b in range(1, 5)
            if 1 <= 3 * rank - a - b <= 3
        )
        assert self.error(found) == pytest.approx(best, abs=1e-6)

    @pytest.mark.parametrize("energy", [0.3, 0.9, 0.99, 0.9999, 1.0])
    def test_energy_is_reached_with_the_fewest(self, energy):
        found = global_threshold(SPECTRA, energy=energy)
        total = self.error(dict.fromkeys(SPECTRA, 0))
        assert self.error(found) <= (1 - energy) * total + 1e-5
        if sum(found.values()) > 3:
            kept_values = [
                S[r - 1] for S, r in zip(SPECTRA.values(), found.values(), strict=True) if r > 1
            ]
            assert self.error(found) + float(min(kept_values)) ** 2 > (1 - energy) * total

    def test_every_module_keeps_one(self):
        assert global_threshold(SPECTRA, rank=1) == {"a": 1, "b": 1, "c": 1}
