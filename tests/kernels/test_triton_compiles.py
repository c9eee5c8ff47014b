"""Each Triton kernel, as it is launched, compiled to machine code for GPUs that are not here.

Triton brings its compiler and the assembler: what a card would be given is made without one. The other half,
what the kernels compute, is test_triton.py's, in the interpreter.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: make test-triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("LORAKIT_TEST_TRITON") != "compile", reason="slow: make test-triton"
)

# Compute capability, and the shared memory of a block there, in bytes.
CARDS = {"A100": (80, 163 << 10), "L4, RTX 4090": (89, 99 << 10), "H100": (90, 227 << 10)}
NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
}


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """Launches compile for a card, and run nowhere; what was compiled, by the kernel's name."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = {}
    card = {"capability": 90}

    def run(self, *args, grid, warmup, **named):
        given = dict(zip(self.arg_names, args, strict=False))
        options = {name: named.pop(name) for name in list(named) if name not in self.arg_names}
        given |= named
        fixed = {self.arg_names[i] for i in self.constexprs}
        signature = {}
        for name in self.arg_names:
            value = given[name]
            if name in fixed:
                signature[name] = "constexpr"
            elif torch.is_tensor(value):
                signature[name] = f"*{NAMES[value.dtype]}"
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        assert all(1 <= size < 2**31 for size in grid)
        assert all(size < 65536 for size in grid[1:])  # what a card takes beside the first
        source = ASTSource(self, signature, {name: given[name] for name in fixed})
        target = GPUTarget("cuda", card["capability"], 32)
        compiled[self.fn.__name__] = triton.compile(source, target=target, options=options)

    monkeypatch.setattr(JITFunction, "run", run)
    return card, compiled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("card", CARDS)
def test_every_kernel_becomes_machine_code(launches, card, dtype, monkeypatch):
    from lorakit.kernels.gpu import gated, head, low_rank, norm, rotary

    if dtype == torch.float32 and card != "H100":
        pytest.skip("one card will do")
    target, compiled = launches
    target["capability"], most = CARDS[card]
    # Tensors are on the CPU here; the kernels are to be those of a GPU.
    monkeypatch.setattr(low_rank, "_precise", lambda x: x.dtype == torch.float32)
    rows, width, rank = 40, 4096, 16
    x, w = torch.zeros(rows, width, dtype=dtype), torch.zeros(width, dtype=dtype)
    A, B = torch.zeros(rank, width), torch.zeros(width, rank)
    _, rstd = norm.normed(x, w, 1e-5)
    norm.norm_again(x, w, rstd)
    norm.norm_gradients(x, x, w, rstd, x, True)
    heads, angles = torch.zeros(rows, 32, 128, dtype=dtype), torch.zeros(rows, 1, 64, dtype=dtype)
    rotary.turned(heads, angles, angles, -1.0)
    gated.gated(x, x)
    gated.gated_gradients(x, x, x)
    logits = torch.zeros(rows, 128256, dtype=dtype)
    head.nll_and_slope(logits, torch.zeros(rows, dtype=torch.int64), logits)
    h = low_rank.project(x, A, 1.0)
    low_rank.project(x, B.t(), 0.5)
    low_rank.expand(h, B.t(), 0.5, x)
    low_rank.outer(h, x, 0.5, True)
    found = {"_norm", "_input_gradient", "_weight_gradient", "_turn", "_gated", "_gradients"}
    assert set(compiled) == found | {"_label_nats", "_project", "_expand", "_outer"}
    for name, kernel in compiled.items():
        assert kernel.asm["cubin"][:4] == b"\x7fELF", name
        assert f".target sm_{target['capability']}" in kernel.asm["ptx"], name
        assert kernel.metadata.shared <= most, name
        # 16 bits are multiplied on tensor cores, float32 is not rounded for them.
        if name in ("_project", "_expand", "_outer"):
            on_cores = "mma" in kernel.asm["ptx"]
            assert on_cores == (dtype == torch.bfloat16), name
            assert "tf32" not in kernel.asm["ptx"], name
