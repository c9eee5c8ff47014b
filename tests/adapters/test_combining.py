"""Combined adapters against the sum of the dense updates, and TIES and DARE written out."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from adapter_models import adapt, logits, tiny_llama
from lorakit.adapters import load_adapter, save_adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.pairs import Pair, read_stored, write_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.specs import CombineSpec
from lorakit.errors import AdapterError, BaseMismatchError, ConfigError
from lorakit.lora import lora_layers
from lorakit.models.fingerprint import BaseIdentity

IDENTITY = BaseIdentity("tiny-llama", None, "1" * 64, "2" * 64, "3" * 64)
WEIGHTS = {"a": 0.7, "b": -1.3, "c": 0.4}
D = torch.float64


def shaken(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.A.normal_(0.0, 0.2, generator=g)
            layer.B.normal_(0.0, 0.2, generator=g)
    return model


SPECS = {
    "a": {"rank": 4, "targets": ("q_proj", "up_proj")},
    "b": {"rank": 3, "rslora": True, "targets": ("up_proj", "embed_tokens")},
    "c": {"rank": 2, "alpha": 5.0, "rank_pattern": {"q_proj": 5}, "targets": ("all-linear",)},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Three adapters of one base, with other ranks, scales and modules."""
    place = tmp_path_factory.mktemp("adapters")
    made = {}
    for seed, (name, spec) in enumerate(SPECS.items()):
        model = shaken(adapt(tiny_llama(), **spec), seed)
        folder = save_adapter(
            model,
            place / name,
            identity=IDENTITY,
            provenance={"template": {"kind": "raw"}},
        )
        made[name] = read_stored(folder)
    return made


@pytest.fixture
def parts(stored):
    return [Part(stored[name], weight) for name, weight in WEIGHTS.items()]


def dense(pair):
    """s·B·A by a plain product, float64."""
    return pair.scale * pair.B.double().flatten(1) @ pair.A.double().flatten(1)


def total(parts, path):
    return sum(
        part.weight * dense(part.adapter.pairs[path])
        for part in parts
        if path in part.adapter.pairs
    )


def paths_of(parts):
    return {path for part in parts for path in part.adapter.pairs}


def equal_ranks(stored):
    """a beside itself with other numbers, so that factors can be added."""
    a = stored["a"]
    other = {
        path: Pair(pair.A.flip(1), pair.B.flip(0), pair.alpha, pair.scale * 0.5, pair.kind)
        for path, pair in a.pairs.items()
    }
    return [Part(a, 0.6), Part(replace(a, pairs=other), -0.9)]


class TestExact:
    @pytest.mark.parametrize("how", ["linear", "cat"])
    def test_the_sum_of_the_updates(self, parts, how):
        made = combine(parts, CombineSpec(how=how), dtype=D)
        assert set(made.adapter.pairs) == paths_of(parts)
        for path, pair in made.adapter.pairs.items():
            torch.testing.assert_close(dense(pair), total(parts, path), rtol=0, atol=1e-10)
        assert made.overall == 0.0

    def test_ranks_add_up(self, parts, stored):
        made = combine(parts, CombineSpec(how="cat"))
        for path, pair in made.adapter.pairs.items():
            assert pair.rank == sum(a.pairs[path].rank for a in stored.values() if path in a.pairs)

    def test_linear_takes_no_more_rank_than_the_sum_has(self, stored):
        a = stored["a"]
        made = combine([Part(a, 0.5), Part(a, 2.0)], CombineSpec(how="linear"))
        assert {pair.rank for pair in made.adapter.pairs.values()} == {4}

    def test_what_is_subtracted_from_itself_is_nothing(self, stored):
        a = stored["a"]
        made = combine([Part(a, 1.0), Part(a, -1.0)], CombineSpec(how="linear"), dtype=D)
        for pair in made.adapter.pairs.values():
            assert dense(pair).abs().max() <= 1e-12

    def test_weights_by_module(self, stored):
        pattern = {r"layers\.0\..*": 2.0, "up_proj": -0.25}
        made = combine(
            [Part(stored["a"], 0.5, pattern), Part(stored["b"])], CombineSpec(how="cat"), dtype=D
        )
        expected = {
            "model.layers.0.self_attn.q_proj": 2.0,
            "model.layers.0.mlp.up_proj": 2.0,
            "model.layers.1.mlp.up_proj": -0.25,
            "model.layers.1.self_attn.q_proj": 0.5,
        }
        for path, weight in expected.items():
            wanted = weight * dense(stored["a"].pairs[path])
            if path in stored["b"].pairs:
                wanted = wanted + dense(stored["b"].pairs[path])
            torch.testing.assert_close(dense(made.adapter.pairs[path]), wanted, rtol=0, atol=1e-10)

    def test_convolutions(self, tmp_path):
        made, folders = [], [tmp_path / "0", tmp_path / "1"]
        for seed, folder in enumerate(folders):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(3, 4, (3, 2)), nn.Flatten())
            save_adapter(shaken(adapt(model, rank=2, targets=("0",)), seed), folder)
            made.append(lora_layers(model)["0"])
        parts = [
            Part(read_stored(folder), w) for folder, w in zip(folders, (2.0, -1.0), strict=True)
        ]
        found = combine(parts, CombineSpec(how="cat"), dtype=D).adapter.pairs["0"]
        wanted = 2.0 * made[0].delta() - made[1].delta()
        torch.testing.assert_close(found.delta(), wanted.double(), rtol=0, atol=1e-6)


class TestCuts:
    @pytest.mark.parametrize("rank", [1, 3])
    def test_the_error_is_what_was_discarded(self, parts, rank):
        made = combine(parts, CombineSpec(how="svd", rank=rank), dtype=D)
        missed = wanted = 0.0
        for path, pair in made.adapter.pairs.items():
            whole = total(parts, path)
            values = torch.linalg.svdvals(whole)
            error = (dense(pair) - whole).norm()
            torch.testing.assert_close(error, values[rank:].norm(), rtol=0, atol=1e-10)
            assert made.lost[path] == pytest.approx(float(error / whole.norm()), abs=1e-9)
            missed, wanted = missed + float(error) ** 2, wanted + float(whole.norm()) ** 2
        assert made.overall == pytest.approx((missed / wanted) ** 0.5, abs=1e-9)

    def test_an_energy(self, parts):
        made = combine(parts, CombineSpec(how="svd", energy=0.9), dtype=D)
        for path, pair in made.adapter.pairs.items():
            squares = torch.linalg.svdvals(total(parts, path)).square()
            shares = squares.cumsum(0) / squares.sum()
            assert shares[pair.rank - 1] >= 0.9
            assert pair.rank == 1 or shares[pair.rank - 2] < 0.9


def best(matrix, rank):
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def trimmed(matrix, density):
    size = sorted((abs(x) for x in matrix.flatten().tolist()), reverse=True)
    least = size[max(int(density * len(size)), 1) - 1]
    return torch.where(matrix.abs() >= least, matrix, 0.0)


def elected(matrices):
    """TIES' election and disjoint mean, entry by entry."""
    out = torch.zeros_like(matrices[0])
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            values = [float(m[i, j]) for m in matrices]
            sign = 1 if sum(values) >= 0 else -1
            agreeing = [v for v in values if v * sign > 0]
            out[i, j] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


def dropped(matrix, density, seed, index, path):
    digest = hashlib.sha256(f"{seed}:{index}:{path}".encode()).digest()
    g = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)
    draw = torch.rand(matrix.numel(), generator=g, dtype=D).view_as(matrix)
    return torch.where(draw < density, matrix / density, 0.0)


class TestSparse:
    """On the attention's q alone: the loops above are slow."""

    PATH = "model.layers.0.self_attn.q_proj"

    @pytest.fixture
    def few(self, stored):
        return [
            Part(replace(stored[name], pairs={self.PATH: stored[name].pairs[self.PATH]}), weight)
            for name, weight in (("a", 0.7), ("c", -1.3), ("a", -0.2))
        ]

    def updates(self, few):
        return [part.weight * dense(part.adapter.pairs[self.PATH]) for part in few]

    def wanted(self, few, how, density, seed):
        updates = self.updates(few)
        if how == "ties":
            return elected([trimmed(update, density) for update in updates])
        thin = [dropped(u, density, seed, i, self.PATH) for i, u in enumerate(updates)]
        return sum(thin) if how == "dare" else elected(thin)

    @pytest.mark.parametrize("how", ["ties", "dare", "dare_ties"])
    @pytest.mark.parametrize("density", [0.2, 0.65])
    def test_against_a_dense_one(self, few, how, density):
        wanted = self.wanted(few, how, density, seed=5)
        spec = CombineSpec(how=how, rank=6, density=density, seed=5)
        made = combine(few, spec, dtype=D)
        found = dense(made.adapter.pairs[self.PATH])
        torch.testing.assert_close(found, best(wanted, 6), rtol=0, atol=1e-10)
        rest = torch.linalg.svdvals(wanted)[6:].norm() / wanted.norm()
        assert made.overall == pytest.approx(float(rest), abs=1e-9)

    @pytest.mark.parametrize("how", ["ties", "dare", "dare_ties"])
    def test_a_full_rank_loses_nothing(self, few, how):
        made = combine(few, CombineSpec(how=how, rank=32, density=0.5), dtype=D)
        wanted = self.wanted(few, how, 0.5, seed=0)
        found = dense(made.adapter.pairs[self.PATH])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)

    def test_a_density_of_one_makes_dare_the_sum(self, few):
        made = combine(few, CombineSpec(how="dare", rank=32, density=1.0), dtype=D)
        found = dense(made.adapter.pairs[self.PATH])
        torch.testing.assert_close(found, sum(self.updates(few)), rtol=0, atol=1e-10)

    def test_dare_keeps_the_mean(self, few):
        # Over 400 seeds the mean of an entry departs by its own size / sqrt(400) in one sigma.
        one = few[:1]
        total = sum(self.wanted(one, "dare", 0.5, seed) for seed in range(400)) / 400
        (update,) = self.updates(one)
        assert ((total - update).abs() <= 6 * update.abs() / 20 + 1e-12).all()

    def test_seeds(self, few):
        made = [
            combine(few, CombineSpec(how="dare", rank=4, seed=seed)).adapter.pairs[self.PATH].A
            for seed in (0, 0, 1)
        ]
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])


def test_factors_add_the_matrices(stored):
    parts = equal_ranks(stored)
    made = combine(parts, CombineSpec(how="factors"), dtype=D)
    for path, pair in made.adapter.pairs.items():
        one, two = (part.adapter.pairs[path] for part in parts)
        s, t = 0.6 * one.scale, 0.9 * two.scale
        A = s**0.5 * one.A.double() - t**0.5 * two.A.double()
        B = s**0.5 * one.B.double() + t**0.5 * two.B.double()
        torch.testing.assert_close(dense(pair), B @ A, rtol=0, atol=1e-10)
        gap = (B @ A - total(parts, path)).norm() / total(parts, path).norm()
        assert made.lost[path] == pytest.approx(float(gap), rel=1e-9)
        assert gap > 0.1


class TestFolder:
    @pytest.mark.parametrize("how", ["linear", "cat"])
    def test_it_loads_and_answers_like_the_sum(self, parts, tmp_path, how):
        made = combine(parts, CombineSpec(how=how))
        folder = write_stored(tmp_path / "both", made.adapter)
        model = tiny_llama()
        info = load_adapter(model, folder, identity=IDENTITY)
        assert info.notes == ()
        summed = tiny_llama()
        with torch.no_grad():
            for path in paths_of(parts):
                update = total(parts, path).float()
                weight = summed.get_submodule(path).weight
                weight += update.T if path.endswith("embed_tokens") else update
        assert (logits(model) - logits(summed)).abs().max() <= 1e-4

    def test_reading_gives_what_was_written(self, parts, tmp_path):
        made = combine(parts, CombineSpec(how="cat")).adapter
        again = read_stored(write_stored(tmp_path / "both", made))
        assert set(again.pairs) == set(made.pairs)
        for path, pair in made.pairs.items():
            assert torch.equal(again.pairs[path].A, pair.A)
            assert torch.equal(again.pairs[path].B, pair.B)
            assert again.pairs[path].scale == 1.0

    def test_the_record_names_the_parents(self, stored, tmp_path):
        parts = [Part(stored["a"], 0.7, name="a@2"), Part(stored["b"], 0.3, {"up_proj": 1.0})]
        folder = write_stored(
            tmp_path / "x", combine(parts, CombineSpec(how="ties", rank=4)).adapter
        )
        record = read_stored(folder).record
        assert record.base == IDENTITY.to_dict()
        told = record.provenance
        assert told["template"] == {"kind": "raw"}
        assert told["parents"] == [
            {
                "name": "a@2",
                "tensors_sha256": stored["a"].record.tensors_sha256,
                "weight": 0.7,
                "weight_pattern": {},
            },
            {
                "name": str(stored["b"].source),
                "tensors_sha256": stored["b"].record.tensors_sha256,
                "weight": 0.3,
                "weight_pattern": {"up_proj": 1.0},
            },
        ]
        assert (
            told["method"].items()
            >= {
                "name": "combine",
                "how": "ties",
                "rank": 4,
                "density": 0.2,
            }.items()
        )

    def test_different_templates_are_said(self, stored):
        b = stored["b"]
        other = replace(b, record=replace(b.record, provenance={"template": {"kind": "chat"}}))
        made = combine([Part(stored["a"]), Part(other)], CombineSpec(how="cat"))
        assert "template" not in made.adapter.record.provenance
        assert "different templates: none is recorded" in made.notes[-1]


class TestRefusals:
    def test_another_base(self, stored):
        b = stored["b"]
        base = {**IDENTITY.to_dict(), "name": "other", "weights_sha256": "9" * 64}
        parts = [Part(stored["a"]), Part(replace(b, record=replace(b.record, base=base)))]
        with pytest.raises(BaseMismatchError) as caught:
            combine(parts, CombineSpec())
        message = str(caught.value)
        assert f"{b.source} was trained on 'other' and {stored['a'].source} on 'tiny-llama'" in (
            message
        )
        assert f"(weights 999999999999… there, 111111111111… in {stored['a'].source})" in message
        assert combine(parts, CombineSpec(), force=True).adapter.pairs

    def test_an_unknown_base_is_said(self, stored):
        parts = [Part(stored["a"]), Part(replace(stored["b"], record=None))]
        made = combine(parts, CombineSpec())
        assert "b does not record its base: only the shapes of its modules" in made.notes[0]

    def test_other_shapes(self, stored):
        a = stored["a"]
        path, pair = "model.layers.0.mlp.up_proj", a.pairs["model.layers.0.mlp.up_proj"]
        wide = Pair(torch.zeros(4, 33), pair.B, pair.alpha, pair.scale)
        with pytest.raises(AdapterError, match=r"is linear \(48, 32\) in .* and linear \(48, 33\)"):
            combine([Part(a), Part(replace(a, pairs={path: wide}))], CombineSpec())

    def test_unequal_ranks(self, stored):
        with pytest.raises(AdapterError, match=r"whose ranks are \[3, 4\]: take linear or svd"):
            combine([Part(stored["a"]), Part(stored["b"])], CombineSpec(how="factors"))

    def test_groups(self, tmp_path):
        model = adapt(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), rank=2, targets=("0",))
        part = Part(read_stored(save_adapter(model, tmp_path / "a")))
        with pytest.raises(AdapterError, match="0 is a convolution with groups"):
            combine([part, part], CombineSpec())

    @pytest.mark.parametrize(
        ("weight", "pattern", "message"),
        [
            (float("nan"), {}, "is nan"),
            (1.0, {"k_proj": 2.0}, "is for 'k_proj', which means none of its modules; did you"),
        ],
    )
    def test_weights(self, stored, weight, pattern, message):
        with pytest.raises(ConfigError, match=message):
            combine([Part(stored["a"], weight, pattern)], CombineSpec())

    def test_nothing(self):
        with pytest.raises(AdapterError, match="nothing to combine"):
            combine([], CombineSpec())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"how": "tie"}, "how is 'tie': did you mean 'ties'"),
            ({"how": "svd"}, "svd needs a rank or an energy"),
            ({"how": "ties"}, "ties needs a rank or an energy"),
            ({"how": "cat", "rank": 4}, "cat cuts nothing: leave rank and energy out"),
            ({"how": "svd", "rank": 0}, "rank must be at least 1"),
            ({"how": "svd", "energy": 2.0}, "energy is a share"),
            ({"how": "svd", "rank": 2, "density": 0.5}, "svd keeps every entry"),
            ({"how": "ties", "rank": 2, "density": 0.0}, "density is the share"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ConfigError, match=message):
            CombineSpec(**options)
