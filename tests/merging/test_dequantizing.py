"""Quantized folders against numbers unpacked in plain loops, and against bitsandbytes itself."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_models import adapt
from families import tiny, tokenizer
from lorakit.adapters import save_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.config import RunConfig
from lorakit.errors import ModelError
from lorakit.merging.dequantize import dequantize
from lorakit.models import ModelSpec
from lorakit.run.commands.merging import run_merge
from quantized_folders import FOLDERS

NAME = "model.layers.0.self_attn.q_proj"


pytestmark = pytest.mark.usefixtures("own_cache")


def folder_with(tmp_path, settings, tensors, drop=f"{NAME}.weight"):
    """A tiny model folder with one of its weights replaced by quantized tensors."""
    folder = tmp_path / "quantized"
    tiny("llama").to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    del weights[drop]
    save_file({**weights, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


def made(tmp_path, settings, tensors):
    """The dequantized weight; everything else has to be as it was."""
    folder = folder_with(tmp_path, settings, tensors)
    out = tmp_path / "plain"
    out.mkdir()
    done = dequantize(folder, out)
    assert (done.weights, done.dtype) == (1, torch.bfloat16)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    weight = after.pop(f"{NAME}.weight")
    assert after.keys() == before.keys() - tensors.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert weight.dtype == torch.float32
    return weight


def random(*shape, low=0, high=256, dtype=torch.uint8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=g).to(dtype)


def int8():
    q = random(48, 48, low=-127, high=128, dtype=torch.int8)
    SCB = torch.rand(48, generator=torch.Generator().manual_seed(1)) + 0.1
    wanted = [[q[i, j].item() * SCB[i].item() / 127 for j in range(48)] for i in range(48)]
    return {f"{NAME}.weight": q, f"{NAME}.SCB": SCB}, torch.tensor(wanted)


def test_int8(tmp_path):
    tensors, wanted = int8()
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    found = made(tmp_path, settings, tensors)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def four_bits(nested):
    count, block, outer_block = 48 * 48, 64, 16
    packed = random(count // 2, 1)
    codes = torch.linspace(-1, 1, 16)
    blocks = count // block
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [48, 48]}
    tensors = {f"{NAME}.weight": packed, f"{NAME}.weight.quant_map": codes}
    if nested:
        small, outer_codes = random(blocks, seed=2), torch.linspace(-0.2, 1, 256)
        outer = torch.rand(math.ceil(blocks / outer_block)) + 0.5
        state |= {"nested_blocksize": outer_block, "nested_offset": 0.7, "nested_dtype": "float32"}
        scales = [
            outer_codes[int(small[b])].item() * outer[b // outer_block].item() + 0.7
            for b in range(blocks)
        ]
        tensors |= {
            f"{NAME}.weight.absmax": small,
            f"{NAME}.weight.nested_absmax": outer,
            f"{NAME}.weight.nested_quant_map": outer_codes,
        }
    else:
        absmax = torch.rand(blocks) + 0.5
        scales = absmax.tolist()
        tensors[f"{NAME}.weight.absmax"] = absmax
    text = json.dumps(state).encode()
    tensors[f"{NAME}.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(
        list(text), dtype=torch.uint8
    )
    wanted = []
    for i in range(count):
        byte = packed[i // 2, 0].item()
        nibble = byte // 16 if i % 2 == 0 else byte % 16
        wanted.append(codes[nibble].item() * scales[i // block])
    return tensors, torch.tensor(wanted).view(48, 48)


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits(tmp_path, nested):
    torch.manual_seed(5)
    tensors, wanted = four_bits(nested)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    torch.testing.assert_close(made(tmp_path, settings, tensors), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_against_bitsandbytes(tmp_path, quant_type, nested):
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    # Of rows that end within a block its own CPU kernel (0.50.2) dequantizes other numbers.
    W = torch.randn(48, 64)
    packed, state = functional.quantize_4bit(
        W, blocksize=64, compress_statistics=nested, quant_type=quant_type
    )
    parts = {f"{NAME}.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    found = made(tmp_path, settings, {f"{NAME}.weight": packed, **parts})
    wanted = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", [False, True])
def test_gptq(tmp_path, bits, version, order):
    word, size, top = 32 // bits, 16, 2**bits
    q = random(48, 48, high=top, dtype=torch.int64)
    zeros = random(3, 48, low=1, high=top, dtype=torch.int64, seed=1)
    scales = (torch.rand(3, 48) + 0.1).half()
    groups = torch.arange(48) // size
    if order:
        groups = groups[torch.randperm(48)]
    stored = zeros - (1 if version == "gptq" else 0)

    def pack(numbers):
        """Consecutive numbers of a list into one 32-bit word, the first in its lowest bits."""
        total = sum(int(n) << (bits * k) for k, n in enumerate(numbers))
        return total - 2**32 if total >= 2**31 else total

    qweight = [[pack(q[i : i + word, j]) for j in range(48)] for i in range(0, 48, word)]
    qzeros = [[pack(stored[g, j : j + word]) for j in range(0, 48, word)] for g in range(3)]
    tensors = {
        f"{NAME}.qweight": torch.tensor(qweight, dtype=torch.int32),
        f"{NAME}.qzeros": torch.tensor(qzeros, dtype=torch.int32),
        f"{NAME}.scales": scales,
    }
    if order:
        tensors[f"{NAME}.g_idx"] = groups.to(torch.int32)
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "checkpoint_format": version,
    }
    wanted = torch.zeros(48, 48)
    for i in range(48):
        for o in range(48):
            g = int(groups[i])
            wanted[o, i] = scales[g, o].item() * (int(q[i, o]) - int(zeros[g, o]))
    torch.testing.assert_close(made(tmp_path, settings, tensors), wanted, rtol=1e-6, atol=0)


def merge(folder, tmp_path, name="merged", **options):
    model = adapt(tiny("llama"), targets=("q_proj",))
    adapter = save_adapter(model, tmp_path / f"adapter of {name}")
    config = RunConfig(model=ModelSpec(model=str(folder)))
    options = {"dtype": "base", "certify": "auto"} | options
    certificate = run_merge(config, adapters=[(adapter, 1.0)], out=tmp_path / name, **options)
    return certificate, read_stored(adapter)


def test_merging_onto_a_quantized_base(tmp_path):
    tensors, wanted = int8()
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    folder = folder_with(tmp_path, settings, tensors)
    certificate, adapter = merge(folder, tmp_path)
    assert certificate.passed
    assert len(certificate.comparisons) == 2
    assert certificate.notes[0].startswith(
        "the base is quantized (bitsandbytes int8): 1 weights were dequantized to float32 first"
    )
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert not any(name.endswith("SCB") for name in found)
    pair = adapter.pairs[NAME]
    exact = wanted.double() + pair.scale * pair.B.double() @ pair.A.double()
    got = found[f"{NAME}.weight"]
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("tmp")] == []


class TestRefusals:
    def test_another_method(self, tmp_path):
        folder = folder_with(tmp_path, {"quant_method": "hqq"}, {})
        with pytest.raises(ModelError, match=r"is quantized by 'hqq', which lorakit does not read"):
            merge(folder, tmp_path)

    def test_three_bits(self, tmp_path):
        words = {f"{NAME}.qweight": torch.zeros(48 * 3 // 32, 48, dtype=torch.int32)}
        folder = folder_with(tmp_path, {"quant_method": "gptq", "bits": 3}, words)
        with pytest.raises(ModelError, match="GPTQ with 3 bits is not read here"):
            merge(folder, tmp_path)

    def test_nothing_is_quantized(self, tmp_path):
        settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        folder = folder_with(tmp_path, settings, {})
        with pytest.raises(ModelError, match=r"says that it is quantized .* but no tensor is"):
            merge(folder, tmp_path)

    def test_a_missing_part(self, tmp_path):
        tensors, _ = int8()
        del tensors[f"{NAME}.SCB"]
        settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        folder = folder_with(tmp_path, settings, tensors)
        with pytest.raises(ModelError, match=rf"the quantized weights lack {NAME}\.SCB"):
            merge(folder, tmp_path)

    def test_a_tiled_layout(self, tmp_path):
        tensors, _ = int8()
        tensors[f"{NAME}.weight_format"] = torch.tensor(1, dtype=torch.uint8)
        settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        folder = folder_with(tmp_path, settings, tensors)
        with pytest.raises(ModelError, match="is kept in a tiled layout"):
            merge(folder, tmp_path)


@pytest.mark.parametrize("source", FOLDERS, ids=lambda p: p.name)
def test_what_each_library_wrote(source, tmp_path):
    """Whole folders, with the weights that the libraries unpack themselves."""
    done = dequantize(source, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    expected = load_file(source / "expected.safetensors")
    assert done.weights == 7
    plain = {n for n in load_file(source / "model.safetensors") if n in found and n not in expected}
    assert found.keys() == expected.keys() | plain
    rounded = 2**-8 if source.name.startswith("compressed") else 2e-7
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=rounded, atol=1e-9)
