"""A folder that another library quantized is trained on in its own packing.

The folders of tests/quantized were made by the libraries themselves (tests/quantized/make.py), with the
weights as they unpack them beside.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations.finegrained_fp8 import Fp8Quantize, _dequantize_fp8_weight
from transformers.utils.quantization_config import FineGrainedFP8Config

from families import saved, tiny
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.packing import whole
from lorakit.lora.attaching import attach, detach, lora_layers
from lorakit.lora.spec import LoraSpec
from lorakit.models.load import load_model
from quantized_folders import FOLDERS, IDS, UP, dense, digest, edited, folder_of, packed_layers


@pytest.mark.parametrize("source", FOLDERS, ids=lambda p: p.name)
def test_it_stays_packed_and_gives_the_logits_of_its_library(source, tmp_path, caplog, capfd):
    folder = folder_of(tmp_path, source)
    model, _ = load_model(str(folder), dtype="float32", device="cpu")
    layers = packed_layers(model)
    assert len(layers) == 7
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in layers]
    assert linear == ["lm_head"]
    assert not any(p.requires_grad for p in model.parameters())
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")
    stored = load_file(source / "model.safetensors")
    for path, layer in layers.items():
        shape = layer.weight.shape
        assert layer.packed_bytes < 0.56 * shape[0] * shape[1] * 4
        held = [t for n, t in stored.items() if n.startswith(f"{path}.") and t.dim() == 2]
        large = max(held, key=torch.Tensor.numel)
        kept = [t for t in layer.packing.tensors.values() if t.numel() == large.numel()]
        assert any(
            torch.equal(t.view(torch.uint8).flatten(), large.view(torch.uint8).flatten())
            for t in kept
        )
    with torch.no_grad():
        expected, found = dense(source, torch.float32)(IDS).logits, model(IDS).logits
    step = 2**-6 if "compressed" in source.name else 1e-5  # unpacked to bfloat16 by itself
    assert (found - expected).abs().max() < step * expected.abs().max()
    # The same bytes as bfloat16 products take them.
    small, _ = load_model(str(folder), dtype="bfloat16", device="cpu")
    assert digest(small) == digest(model)
    with torch.no_grad():
        expected, found = dense(source, torch.bfloat16)(IDS).logits, small(IDS).logits
    assert (found - expected).abs().max() <= 2**-6 * expected.abs().max()
    with pytest.raises(Exception, match="is not serializable"):
        model.save_pretrained(tmp_path / "saved")
    assert not hasattr(model.config, "quantization_config")


def loss(model, dtype):
    logits = model(IDS).logits[0, :-1].to(dtype)
    return nn.functional.cross_entropy(logits, IDS[0, 1:])


@pytest.mark.parametrize("source", FOLDERS, ids=lambda p: p.name)
def test_gradients_of_the_pairs_are_those_through_the_dequantized_weight(source, tmp_path):
    """Against float64 autograd through W x + s·B (A x) with the weights that the library unpacks."""
    folder = folder_of(tmp_path, source)
    model, _ = load_model(str(folder), dtype="float32", device="cpu")
    before = digest(model)
    plain = dense(source, torch.float64)
    with torch.no_grad():  # what compressed-tensors rounds to bfloat16 is not what is compared here
        for path, layer in packed_layers(model).items():
            plain.get_submodule(path).weight.copy_(whole(layer.packing, torch.float64))
    attach(model, LoraSpec(rank=3, targets=("all-linear",)), seed=1)
    pairs = lora_layers(model)
    assert len(pairs) == 7
    leaves = {}
    for path, layer in pairs.items():
        torch.manual_seed(len(path))
        layer.B.data.normal_(std=0.1)
        A, B = (t.detach().double().requires_grad_() for t in (layer.A, layer.B))
        leaves[path] = A, B
        base = plain.get_submodule(path)
        base.forward = lambda x, W=base.weight, A=A, B=B, s=layer.scale: (
            x @ W.T + s * (x @ A.T @ B.T)
        )
    for mode in (True, False):  # bitsandbytes' own layers lose gradients in the second
        model.train(mode)
        found, expected = loss(model, torch.float32), loss(plain, torch.float64)
        assert abs(found.item() - expected.item()) < 1e-5 * abs(expected.item())
        model.zero_grad()
        found.backward()
        grads = torch.autograd.grad(expected, [t for pair in leaves.values() for t in pair])
        ours = [t.grad for layer in pairs.values() for t in (layer.A, layer.B)]
        for mine, due in zip(ours, grads, strict=True):
            assert (mine - due).abs().max() < 2e-5 * due.abs().max()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.sub_(parameter.grad)
    for layer in pairs.values():
        assert isinstance(layer.base, PackedLinear)
    assert digest(detach(model)) == before


def test_the_unpacked_head_is_told(tmp_path, caplog):
    """A head of its own that is packed: the loss reads it as a plain matrix."""
    source = next(p for p in FOLDERS if p.name == "gptq")
    folder = folder_of(tmp_path, source)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(3)
    embedding = tensors["model.embed_tokens.weight"]
    values = (embedding.float() / 0.01).round().clamp(-127, 127).to(torch.int8)
    tensors |= {"lm_head.weight": values, "lm_head.weight_scale": torch.full((264, 1), 0.01)}
    stems = {n.rpartition(".")[0] for n in tensors if n.endswith(".qweight")}
    expected = load_file(source / "expected.safetensors")
    for stem in stems:
        tensors = {n: t for n, t in tensors.items() if not n.startswith(f"{stem}.")}
        tensors[f"{stem}.weight"] = expected[f"{stem}.weight"]
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {}}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    model, _ = load_model(str(folder), dtype="float32", device="cpu")
    assert caplog.messages == [
        "the output head is unpacked from int8 to float32: the loss reads it as a plain matrix"
    ]
    assert torch.equal(model.lm_head.weight, values.float() * torch.tensor(0.01))
    assert type(model.lm_head) is nn.Linear


def test_a_bias_of_zeros_for_a_layer_without_one_is_left_out(tmp_path, caplog):
    """AutoGPTQ wrote one for every layer."""
    folder = folder_of(tmp_path, next(p for p in FOLDERS if p.name == "gptq"))
    edited(folder, lambda t: t.update({f"{UP}.bias": torch.zeros(64)}))
    model, _ = load_model(str(folder))
    assert model.get_submodule(UP).bias is None
    assert caplog.messages == []


def test_a_bias_is_kept(tmp_path):
    folder = folder_of(tmp_path, next(p for p in FOLDERS if p.name == "awq"))
    bias = torch.arange(64) / 16
    edited(folder, lambda t: t.update({f"{UP}.bias": bias}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mlp_bias": True}))
    edited(folder, lambda t: t.update({UP.replace("up", "gate") + ".bias": bias}))
    edited(folder, lambda t: t.update({UP.replace("up", "down") + ".bias": bias[:32].clone()}))
    model, _ = load_model(str(folder), dtype="bfloat16")
    assert torch.equal(model.get_submodule(UP).bias, bias.bfloat16())
    assert not model.get_submodule(UP).bias.requires_grad


def test_scales_of_activations_are_known_and_not_used(tmp_path, caplog):
    folder = folder_of(tmp_path, next(p for p in FOLDERS if p.name == "compressed_fp8"))
    edited(folder, lambda t: t.update({f"{UP}.input_scale": torch.ones(1)}))
    load_model(str(folder))
    assert caplog.messages == []


@pytest.mark.parametrize("sides", [(136, 144), (128, 256)])
def test_a_fine_grained_float8_folder(tmp_path, sides):
    """Blocks of 128 by 128, written by transformers' own quantizer where they are whole."""
    hidden, inner = sides
    model = tiny(
        "llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=hidden // 8 // 2 * 2,
    )
    saved(tmp_path)
    model.config.save_pretrained(tmp_path)
    tensors, plain = {}, {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("proj.weight"):
            tensors[name] = tensor.clone()
            continue
        tiles = [-(-side // 128) for side in tensor.shape]
        scales = torch.rand(tiles) / 100 + 0.001
        values = (tensor / 0.002).clamp(-448, 448).to(torch.float8_e4m3fn)
        if hidden == 128 and not any(side % 128 for side in tensor.shape):
            quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config())
            done = Fp8Quantize(quantizer).convert({name: tensor})
            values, scales = done[name], done[f"{name}_scale_inv"]
        tensors |= {name: values, f"{name}_scale_inv": scales}
        plain[name] = _dequantize_fp8_weight(values, scales, [128, 128], torch.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, _ = load_model(str(tmp_path), dtype="float32")
    layers = packed_layers(loaded)
    assert len(layers) == 14
    assert sum(layer.packed_bytes for layer in layers.values()) < 1.02 * sum(
        layer.elements for layer in layers.values()
    )
    model.load_state_dict(plain, strict=False)
    with torch.no_grad():
        expected, found = model(IDS).logits, loaded(IDS).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
