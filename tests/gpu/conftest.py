"""The device that these tests use: a GPU. LORAKIT_TEST_DEVICE names another, to try the tests."""

import os
import sys
from pathlib import Path

import pytest
import torch

# The engines that are driven step by step are those of the serving tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))


@pytest.fixture(scope="session")
def device() -> str:
    named = os.environ.get("LORAKIT_TEST_DEVICE")
    if named is None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return named or "cuda"
