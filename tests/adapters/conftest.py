"""A tiny base, the same with pairs, and its adapter folder."""

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from adapter_models import adapt, tiny_llama
from lorakit.adapters import save_adapter


@pytest.fixture
def base() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def adapted() -> LlamaForCausalLM:
    return adapt(tiny_llama(), targets=("q_proj", "up_proj"))


@pytest.fixture
def folder(adapted: LlamaForCausalLM, tmp_path: Path) -> Path:
    return save_adapter(adapted, tmp_path / "adapter")


@pytest.fixture
def foreign(folder: Path) -> Path:
    """The same adapter as peft would leave it: without lorakit.json."""
    (folder / "lorakit.json").unlink()
    return folder
