"""A comparison of full fine-tuning with pairs on experts."""

from families import saved
from lorakit.adapters.pairs import read_stored


def test_pairs_on_experts_are_compared(small, compare, tmp_path):
    base = saved(tmp_path / "base", "gpt_oss")
    own = {
        "model": str(base),
        "target_parameters": ("experts",),
        "targets": ("q_proj",),
        "seeds": 1,
    }
    result = compare(tmp_path / "out", {**small, **own})
    full, lora = result["arms"]
    (adapter,) = (tmp_path / "out").rglob("adapter_model.safetensors")
    pairs = read_stored(adapter.parent).pairs
    assert {path.rsplit(".", 1)[-1] for path in pairs} == {"q_proj", "gate_up_proj", "down_proj"}
    assert lora["trainable_parameters"] == sum(pair.parameters for pair in pairs.values())
    assert full["trainable_parameters"] > 5 * lora["trainable_parameters"]
