"""Makes the folders beside this file: one small Llama, packed by each library's own code.

    pip install bitsandbytes==0.50.2 compressed-tensors==0.20.0
    pip download --no-deps autoawq==0.2.9 gptqmodel==7.7.0     # and unpack both
    python tests/quantized/make.py AUTOAWQ_SOURCE GPTQMODEL_SOURCE

gptqmodel needs a dozen packages to be imported, so that its `pack_original` and `dequantize_weight` are
taken out of its source file and run as they are. In each folder `expected.safetensors` has the weights as
that library itself unpacks them, in float32.
"""

import ast
import contextlib
import json
import math
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
Packed = tuple[dict[str, Tensor], Tensor]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 264,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
GROUP = 16


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
    return made


def linears(of: nn.Module) -> dict[str, nn.Linear]:
    named = of.named_modules()
    return {n: m for n, m in named if isinstance(m, nn.Linear) and n != "lm_head"}


def write(name: str, settings: dict[str, Any], pack: Callable[[nn.Linear], Packed]) -> None:
    """The folder of one method."""
    base, folder = model(), HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = {k: v.clone() for k, v in base.state_dict().items() if k != "lm_head.weight"}
    expected = {}
    for path, layer in linears(base).items():
        packed, weight = pack(layer)
        del tensors[f"{path}.weight"]
        tensors |= {f"{path}.{part}": t.contiguous() for part, t in packed.items()}
        expected[f"{path}.weight"] = weight.float().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, folder / "expected.safetensors")
    config = base.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def asymmetric(weight: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor]:
    """Scales and zeros of each group: (out, groups). Zeros of 0 and of the largest are among them."""
    groups = weight.float().view(weight.shape[0], -1, size)
    low, high = groups.amin(-1), groups.amax(-1)
    low[::5], high[1::5] = low[::5].clamp(min=0.0), high[1::5].clamp(max=0.0)
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-3).half().float()
    return scales, (-low / scales).round().clamp(0, 2**bits - 1)


# --- bitsandbytes ---


def bitsandbytes_four(**options: Any) -> Callable[[nn.Linear], Packed]:
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.functional import dequantize_blockwise, quantize_4bit

    def pack(layer: nn.Linear) -> Packed:
        data, state = quantize_4bit(layer.weight.data.float(), **options)
        parts = {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
        absmax = state.absmax
        if state.nested:
            absmax = dequantize_blockwise(absmax, state.state2) + state.offset
        # Its kernel for CPUs takes wrong scales where rows are no whole blocks (0.50.2).
        how = state.code, state.blocksize, state.shape, torch.float32
        return {"weight": data, **parts}, _dequantize_4bit_compute(data.reshape(-1), absmax, *how)

    return pack


def bitsandbytes_eight(layer: nn.Linear) -> Packed:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    data, scales, _ = int8_vectorwise_quant(layer.weight.data.half())
    layout = torch.tensor(0, dtype=torch.uint8)
    parts = {"weight": data, "SCB": scales, "weight_format": layout}
    return parts, int8_vectorwise_dequant(data, scales)


# --- compressed-tensors ---


def compressed(weights: dict[str, Any]) -> Callable[[nn.Linear], Packed]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    name = "pack" if args.num_bits == 4 else args.type
    compressor = BaseCompressor.get_value_from_registry(f"{name}-quantized")

    def pack(layer: nn.Linear) -> Packed:
        weight = layer.weight.data
        size = args.group_size or weight.shape[1]
        apart = weight.view(len(weight), -1, size)
        scale, zero = calculate_qparams(apart.amin(-1).float(), apart.amax(-1).float(), args)
        state = {"weight": weight, "weight_scale": scale.to(weight.dtype)}
        if not args.symmetric:
            state["weight_zero_point"] = zero
        done = compressor.compress(dict(state), scheme)
        return done, compressor.decompress(dict(done), scheme)["weight"]

    return pack


def compressed_settings(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


# --- AWQ ---


def awq(layer: nn.Linear) -> Packed:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    wide = nn.Linear(layer.in_features, layer.out_features, bias=False)
    wide.weight.data = layer.weight.data.float()
    scales, zeros = (t.t().contiguous() for t in asymmetric(wide.weight.data, 4, GROUP))
    # As autoawq does before it packs: the weight lies on the levels then, and in range.
    at = torch.arange(layer.in_features) // GROUP
    levels = (wide.weight.data / scales[at].t() + zeros[at].t()).round().clamp(0, 15)
    wide.weight.data = (levels - zeros[at].t()) * scales[at].t()
    made = WQLinear_GEMM.from_linear(wide, 4, GROUP, scales=scales, zeros=zeros)
    parts = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales}
    dense = dequantize_gemm(made.qweight, made.qzeros, made.scales.float(), 4, GROUP)
    return parts, dense.t()


# --- GPTQ ---


def method(source: Path, name: str, scope: dict[str, Any]) -> Any:
    """The last method of that name of a file, as it is written there."""
    tree = ast.parse(source.read_text())
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    for node in ast.walk(nodes[-1]):
        if isinstance(node, ast.FunctionDef):
            node.decorator_list, node.returns = [], None
            for argument in node.args.args:
                argument.annotation = None
    exec(compile(ast.Module([nodes[-1]], []), str(source), "exec"), scope)
    return scope[name]


def gptq(package: Path, bits: int, act_order: bool, first: bool) -> Callable[[nn.Linear], Packed]:
    file = package / "gptqmodel/nn_modules/qlinear/__init__.py"
    limits = types.SimpleNamespace(threadpool_limits=lambda n: contextlib.nullcontext())
    scope: dict[str, Any] = {
        "t": torch,
        "nn": nn,
        "np": np,
        "math": math,
        "transformers": transformers,
        "_ConvNd": nn.modules.conv._ConvNd,
        "THREADPOOLCTL": limits,
        "_torch_right_shift": torch.bitwise_right_shift,
        "_torch_left_shift": torch.bitwise_left_shift,
    }
    pack_original = method(file, "pack_original", scope)
    from_codes = method(file, "_dequantize_from_codes", scope)
    dequantize = method(file, "dequantize_weight", scope)

    def pack(layer: nn.Linear) -> Packed:
        weight = layer.weight.data.float()
        order = torch.arange(layer.in_features) // GROUP
        if act_order:
            torch.manual_seed(1)
            order = order[torch.randperm(layer.in_features)]
        by_group = torch.argsort(order, stable=True)
        scales, zeros = asymmetric(weight[:, by_group], bits, GROUP)
        made = nn.Module()
        made.bits, made.pack_dtype_bits, made.pack_factor = bits, 32, 32 // bits
        made.maxq, made.planar, made.in_features = 2**bits - 1, False, layer.in_features
        made.pack_np_math_dtype, made.pack_np_dtype = np.uint32, np.int32
        made.dequant_dtype = torch.int32
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight.data = weight
        pack_original(made, plain, scales, zeros, order.int())
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        made._init_wf_unsqueeze_buffers = lambda: None
        made.wf_unsqueeze_zero, made.wf_unsqueeze_neg_one = (
            shifts[None, None],
            shifts[None, :, None],
        )
        made._dequantize_from_codes = types.MethodType(from_codes, made)
        stored = made.scales
        made.scales = stored.float()
        dense = dequantize(made)
        if first:  # convert_gptq_v2_to_v1_format_module, for these bits
            made.qzeros -= {4: 0b00010001000100010001000100010001, 8: 0x01010101}[bits]
        parts = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": stored}
        return parts | {"g_idx": order.int()}, dense.t()

    return pack


def main() -> None:
    autoawq, gptqmodel = map(Path, sys.argv[1:])
    sys.path.insert(0, str(autoawq))
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    for name, kind, nested in (("nf4", "nf4", False), ("nf4_nested", "nf4", True)):
        settings = four | {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
        packer = bitsandbytes_four(quant_type=kind, blocksize=64, compress_statistics=nested)
        write(f"bitsandbytes_{name}", settings, packer)
    eight = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    write("bitsandbytes_int8", eight, bitsandbytes_eight)
    for name, bits, act_order, first in (
        ("gptq", 4, False, True),
        ("gptq_act_order", 4, True, True),
        ("gptq_v2_8bit", 8, False, False),
    ):
        settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": False}
        settings |= {"desc_act": act_order, "checkpoint_format": "gptq" if first else "gptq_v2"}
        write(name, settings, gptq(gptqmodel, bits, act_order, first))
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True}
    write("awq", settings | {"version": "gemm"}, awq)
    int4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    for name, form, weights in (
        ("w4a16", "pack-quantized", int4 | {"symmetric": True}),
        ("w4a16_asymmetric", "pack-quantized", int4 | {"symmetric": False}),
        ("int8", "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        ("fp8", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ):
        settings = compressed_settings(form, weights)
        write(f"compressed_{name}", settings, compressed(weights))


if __name__ == "__main__":
    main()
