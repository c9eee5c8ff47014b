"""Norms and overlaps against the dense matrices, and against a plain reading of the paper."""

import pytest
import torch

from adapter_models import adapt, tiny_llama
from lorakit.adapters import save_adapter
from lorakit.adapters.differences import differences, overlap, sizes
from lorakit.adapters.pairs import read_stored
from lorakit.lora import lora_layers

# float64 throughout; only the order of additions differs.
EXACT = {"rel": 1e-10, "abs": 1e-12}


@pytest.fixture
def two(tmp_path):
    """Two adapters with some modules in common, and their models."""
    models = [
        adapt(tiny_llama(), targets=("q_proj", "up_proj"), rank=3, alpha=6.0),
        adapt(tiny_llama(), targets=("q_proj", "v_proj"), rank=5, alpha=2.0),
    ]
    with torch.no_grad():
        for layer in lora_layers(models[1]).values():
            layer.B.mul_(-0.5)
    folders = [
        save_adapter(
            model,
            tmp_path / f"{n}",
            provenance={"data_sha256": str(n), "metrics": {"eval_loss": 1.5 - n}},
        )
        for n, model in enumerate(models)
    ]
    return models, [read_stored(folder) for folder in folders]


def dense(model):
    """ΔW of each module by its definition, float64."""
    return {
        path: layer.scale * layer.B.detach().double() @ layer.A.detach().double()
        for path, layer in lora_layers(model).items()
    }


def test_sizes_are_those_of_the_dense_update(two):
    models, stored = two
    found = sizes(stored[0])
    wanted = dense(models[0])
    assert {one.path for one in found} == set(wanted)
    assert [one.norm for one in found] == sorted((one.norm for one in found), reverse=True)
    for one in found:
        S = torch.linalg.svdvals(wanted[one.path])
        assert one.norm == pytest.approx(float(wanted[one.path].norm()), **EXACT)
        assert one.largest == pytest.approx(float(S[0]), **EXACT)
        share = S.square().cumsum(0) / S.square().sum()
        assert one.effective == next(k for k, s in enumerate(share.tolist(), 1) if s >= 0.9)


def test_differences_are_those_of_the_dense_updates(two):
    models, stored = two
    made = differences(*stored)
    a, b = map(dense, models)
    assert {one.path for one in made.layers} == {p for p in a if "q_proj" in p}
    assert set(made.only_a) == {p for p in a if "up_proj" in p}
    assert set(made.only_b) == {p for p in b if "v_proj" in p}
    for one in made.layers:
        x, y = a[one.path], b[one.path]
        assert one.norm_a == pytest.approx(float(x.norm()), **EXACT)
        assert one.norm_b == pytest.approx(float(y.norm()), **EXACT)
        assert one.norm_difference == pytest.approx(float((x - y).norm()), **EXACT)
        cosine = float((x * y).sum() / (x.norm() * y.norm()))
        assert one.cosine == pytest.approx(cosine, **EXACT)
        # By projectors: trace(P Q) / min(i, j), with P = X⁺X on inputs and X X⁺ on outputs.
        for share, p, q in [
            (one.overlap_in, torch.linalg.pinv(x) @ x, torch.linalg.pinv(y) @ y),
            (one.overlap_out, x @ torch.linalg.pinv(x), y @ torch.linalg.pinv(y)),
        ]:
            assert share == pytest.approx(float((p @ q).trace()) / 3, rel=1e-8)
    assert made.facts["rank"] == (3, 5)
    assert made.facts["alpha"] == (6.0, 2.0)
    assert made.facts["data_sha256"] == ("0", "1")
    assert made.metrics == {"eval_loss": (1.5, 0.5)}
    assert "dropout" not in made.facts


def test_an_adapter_does_not_differ_from_itself(two):
    made = differences(two[1][0], two[1][0])
    assert (made.facts, made.only_a, made.only_b) == ({}, (), ())
    for one in made.layers:
        # The difference of equal numbers: rounding of the QR of stacked pairs remains.
        assert one.norm_difference <= 1e-12 * one.norm_a
        assert one.cosine == pytest.approx(1.0, **EXACT)
        assert one.overlap_in == pytest.approx(1.0, **EXACT)


def test_an_update_of_zero_spans_nothing(tmp_path):
    from lorakit.lora import LoraSpec, attach

    fresh = attach(tiny_llama(), LoraSpec(rank=2, targets=("q_proj",)))
    stored = read_stored(save_adapter(fresh, tmp_path / "fresh"))
    assert {one.norm for one in sizes(stored)} == {0.0}
    for one in differences(stored, stored).layers:
        assert (one.norm_difference, one.cosine, one.overlap_in) == (0.0, None, None)


def test_random_subspaces_overlap_by_chance():
    """Appendix G's reference: φ of random directions is max(i, j) / n in the mean."""
    g = torch.Generator().manual_seed(0)
    n, i, j = 64, 4, 8
    drawn = [
        overlap(
            torch.linalg.qr(torch.randn(n, i, generator=g, dtype=torch.float64)).Q,
            torch.linalg.qr(torch.randn(n, j, generator=g, dtype=torch.float64)).Q,
        )
        for _ in range(400)
    ]
    assert sum(drawn) / 400 == pytest.approx(j / n, rel=0.05)
