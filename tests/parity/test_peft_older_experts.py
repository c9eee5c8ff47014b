"""Adapters on experts that were modules once: peft 0.21 converts some of them, and lorakit reads those alike.

What peft gets wrong stands in docs/adapter-format.md, and is held here so that a change is seen.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from architectures import tiny_model
from lorakit.adapters import load_adapter
from older_adapters import FAMILIES, close, logits, merged, older_adapter, older_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
    pytest.mark.filterwarnings("ignore:target_modules=.* were set but no:RuntimeWarning"),
]


def three(
    family: str, folder: Path, **config: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of lorakit, of peft, and of the weights merged one by one."""
    model = tiny_model(family)
    held = older_checkpoint(model, folder / "base")
    names = ("q_proj", *FAMILIES[family][:3])
    pairs = older_adapter(held, folder / "a", names, **config)
    root = config.get("use_rslora", False)
    oracle = merged(folder / "base", held, pairs, lambda _, r: 6 / (r**0.5 if root else r))
    load_adapter(model, folder / "a")
    theirs = PeftModel.from_pretrained(tiny_model(family), str(folder / "a")).eval()
    return logits(model), logits(theirs), logits(oracle)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_lorakit_reads_what_peft_converts(family: str, tmp_path: Path) -> None:
    ours, theirs, expected = three(family, tmp_path)
    assert close(ours, expected)
    assert close(theirs, expected)


# rsLoRA: alpha and the rank are both doubled for two matrices in one, which leaves alpha/r and not
# alpha/sqrt(r) as it was. The other families have rules of their own, which peft's table does not name.
@pytest.mark.parametrize(
    ("family", "config"),
    [("mixtral", {"use_rslora": True}), ("phimoe", {}), ("jamba", {}), ("lfm2_moe", {})],
)
def test_where_peft_answers_otherwise_than_was_trained(
    family: str, config: dict[str, Any], tmp_path: Path
) -> None:
    ours, theirs, expected = three(family, tmp_path, **config)
    assert close(ours, expected)
    assert not close(theirs, expected)
