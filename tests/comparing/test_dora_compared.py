"""A comparison whose LoRA arm is DoRA."""

import json


def test_the_adapters_of_a_comparison_are_dora(small, compare, tmp_path):
    out = tmp_path / "out"
    compare(out, {**small, "dora": True})
    configs = [json.loads(f.read_text()) for f in out.rglob("adapter_config.json")]
    assert configs
    assert all(config["use_dora"] for config in configs)
