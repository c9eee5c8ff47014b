"""Bases that are packed while their files are read."""

import pytest
import torch

import lorakit
from families import saved, tiny, tokenizer
from lorakit.errors import ConfigError, ModelError
from lorakit.execution.runnable import Packed, Runnable
from lorakit.kernels.packed.counting import count_parameters, packing_of, weight_bytes
from lorakit.kernels.packed.held import HoldsPacked
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.packing import whole
from lorakit.models import identify, load_model
from lorakit.models.packable import packed_as
from lorakit.models.spec import BASE_DTYPES

PACKED = [name for name in BASE_DTYPES if name != "full"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PACKED)
def test_every_weight_of_a_block_is_packed_from_the_file(tmp_path, name, dtype):
    folder = saved(tmp_path / "base")
    full, _ = load_model(str(folder), dtype=dtype)
    model, _ = load_model(str(folder), dtype=dtype, base_dtype=name)
    assert packing_of(model) == name
    dense = dict(full.named_modules())
    for path, module in model.named_modules():
        if not isinstance(dense[path], torch.nn.Linear):
            continue
        if path == "lm_head":
            assert torch.equal(module.weight, dense[path].weight)
        else:
            want = whole(packed_as(name, dense[path].weight), torch.float32)
            assert torch.equal(whole(module.packing, torch.float32), want), path
    assert count_parameters(model) == sum(p.numel() for p in full.parameters())
    assert weight_bytes(model) < weight_bytes(full)
    assert identify(str(folder)) == lorakit.models.fingerprint.identify_loaded(model, None)
    assert model.generation_config.to_dict() == full.generation_config.to_dict()
    assert model.config.to_dict() == full.config.to_dict()
    assert model.name_or_path == full.name_or_path
    assert not [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", PACKED)
def test_packed_sequences_and_fused_blocks_are_right(tmp_path, name):
    folder = saved(tmp_path / "base", family="qwen2")  # biases, tied or not
    model, _ = load_model(str(folder), dtype="float32", base_dtype=name)
    runnable = Runnable(model)
    assert runnable.packs
    assert len(runnable.fused_blocks) == model.config.num_hidden_layers
    ids = torch.arange(9) + 3
    rows = Packed(ids, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4]), [4, 5])
    twin = tiny("qwen2")
    twin.load_state_dict(load_model(str(folder), dtype="float32")[0].state_dict())
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear):
            twin.get_submodule(path).weight.data = whole(module.packing, torch.float32)
    twin.eval()
    with torch.no_grad():
        got = runnable.logits(rows, torch.arange(9))
        want = torch.cat([twin(part[None]).logits[0] for part in ids.split([4, 5])])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_model_with_many_shards_and_another_format(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    tokenizer().save_pretrained(tmp_path / "base")
    packed, _ = load_model(str(tmp_path / "base"), dtype="bfloat16", base_dtype="int8")
    assert packing_of(packed) == "int8"


def test_routers_stay(tmp_path):
    folder = saved(tmp_path / "base", family="phimoe")
    model, _ = load_model(str(folder), dtype="float32", base_dtype="nf4")
    names = {
        path.rpartition(".")[2] for path, m in model.named_modules() if isinstance(m, HoldsPacked)
    }
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="base_dtype 'nf3' is unknown"):
        load_model("smollm2-135m", base_dtype="nf3")
    tiny("llama", num_hidden_layers=0).save_pretrained(tmp_path / "no-blocks")
    tokenizer().save_pretrained(tmp_path / "no-blocks")
    with pytest.raises(ModelError, match="no layer of LlamaForCausalLM can be held in nf4"):
        load_model(str(tmp_path / "no-blocks"), base_dtype="nf4")


def test_transformers_refuses_to_save_it(tmp_path):
    model, _ = load_model(str(saved(tmp_path / "base")), base_dtype="nf4")
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "out")


def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "base")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    whole_one = tensors.pop(name)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"lack 1 tensors of the model: {name}"):
        load_model(str(folder), base_dtype="int8")
    save_file(tensors | {name: whole_one[:-1].contiguous()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"other shapes than config.json says: {name} is not"):
        load_model(str(folder), base_dtype="int8")
