"""A search for the rank of pairs on experts."""

import pytest

from families import saved
from lorakit.adapters.pairs import read_stored
from lorakit.errors import ConfigError
from lorakit.ranking.pairs import spectra_of


@pytest.fixture(scope="module")
def options(small, easy, tmp_path_factory):
    base = saved(tmp_path_factory.mktemp("mixture") / "base", "gpt_oss")
    own = {"model": str(base), "data": (str(easy),), "target_parameters": ("experts",)}
    return {**small, **own, "targets": (), "max_rank": 2, "max_steps": 4, "noise_seeds": 2}


def test_a_rank_for_experts_is_searched(search, options, tmp_path):
    result = search(tmp_path / "out", options)
    folder = tmp_path / "out" / "adapter"
    pairs = read_stored(folder).pairs
    assert pairs
    assert all(
        pair.experts == 4 and pair.rank == result["recommended_rank"] for pair in pairs.values()
    )
    # What a rank more would add is the energy of all experts: none of ΔW is lost.
    for path, values in spectra_of(folder).items():
        energy = float(pairs[path].delta().double().square().sum())
        assert sum(value**2 for value in values) == pytest.approx(energy, rel=1e-4)
        assert len(values) == result["recommended_rank"]


@pytest.mark.parametrize("method", ["heal", "nested"])
def test_methods_that_truncate_say_so_before_anything_is_trained(search, options, method, tmp_path):
    with pytest.raises(ConfigError, match=f"method {method} truncates .*bracket or halving"):
        search(tmp_path / "out", {**options, "method": method})


def test_halving_searches_too(search, options, tmp_path):
    assert search(tmp_path / "out", {**options, "method": "halving"})["recommended_rank"] in (1, 2)
