"""What a vLLM says of itself; run by that vLLM's own python, prints one line of JSON.

Besides its version and what it computes on: whether a row without an adapter stays without one when
others of its batch have one. In the product of its CPU build such a row has the index -1, and
`weights[-1]` is the last slot's (`vllm/lora/ops/torch_ops/lora_ops.py` of 0.32); its kernels for
CUDA leave rows of index -1 out. So the product is tried; what cannot be tried is not trusted.
"""

import json


def _rows_stay_apart() -> bool:
    """Whether the second of two rows, which has no adapter, comes out of the product as zero."""
    import torch
    from vllm.lora.ops.torch_ops import bgmv_shrink

    x, A, y = torch.ones(2, 4), torch.ones(2, 1, 3, 4), torch.zeros(2, 3)
    bgmv_shrink(x, A, y, torch.tensor([0, -1]), 1.0)
    return bool(y[0].all()) and not bool(y[1].any())


def _has_command() -> bool:
    """Whether a package called vllm is installed, whose version the `vllm` command asks for."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm")
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    """Print it."""
    import vllm
    from vllm.platforms import current_platform

    device = str(current_platform.device_type)
    if device == "cpu":
        try:
            apart = _rows_stay_apart()
        except Exception:
            apart = False
    else:
        apart = device == "cuda"
    said = {"version": vllm.__version__, "device": device, "apart": apart}
    print("\n" + json.dumps({**said, "has_command": _has_command()}))


if __name__ == "__main__":
    main()
