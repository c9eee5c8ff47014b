"""The product of vLLM's CPU build in plain PyTorch, with its fault or mended."""

import torch

from vllm import SETTINGS


def bgmv_shrink(inputs, lora_weights, output, indices, scaling=1.0):
    chosen = lora_weights[indices].squeeze(1)  # of an index -1: the last one's
    found = scaling * torch.einsum("bi,boi->bo", inputs, chosen)
    if not SETTINGS["fault"]:
        found = found.where(indices[:, None] >= 0, 0.0)
    output[:] = found
