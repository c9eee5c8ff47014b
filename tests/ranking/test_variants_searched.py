"""A search trains ranks side by side and reads their spectra: a variant that cannot is refused first."""

import pytest

from lorakit.errors import ConfigError


def test_dora_is_refused_before_anything_is_trained(search, small, easy, tmp_path):
    options = {**small, "data": (str(easy),), "dora": True}
    with pytest.raises(ConfigError, match=r"lorakit rank: the variant DoRA cannot .*one by one"):
        search(tmp_path / "out", options)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
