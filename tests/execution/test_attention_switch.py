"""A model whose attention cannot be switched attends as before, in all of its parts."""

from typing import Any

import pytest
import torch

from architectures import tiny_model
from lorakit.execution import attention


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_switch_that_fails_half_way_is_undone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    ids = torch.arange(9)[None]
    loaded, wanted = model.config._attn_implementation, model(input_ids=ids).logits
    switch = model.set_attn_implementation

    def fails_after(name: str, *more: Any, **options: Any) -> None:
        switch(name, *more, **options)
        if name != loaded:
            raise ValueError("a tower has no such attention")

    monkeypatch.setattr(model, "set_attn_implementation", fails_after)
    with pytest.raises(ValueError, match="no such attention"):
        attention.switch(model)
    assert model.config._attn_implementation == loaded
    torch.testing.assert_close(model(input_ids=ids).logits, wanted)
