"""Every tensor accounted for; every foreign, damaged or mismatched folder refused by name."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_models import edit_config, edit_tensors, logits, tiny_llama
from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.errors import AdapterError, BaseMismatchError, TargetError
from lorakit.lora import lora_layers
from lorakit.models.fingerprint import BaseIdentity

P = "base_model.model.model.layers"
IDENTITY = BaseIdentity("tiny-llama", None, "1" * 64, "2" * 64, "3" * 64)


def refused(folder, model=None, error=AdapterError, **options):
    """The message of a refusal, after which the model has to be as it was."""
    model = model or tiny_llama()
    before = [(path, module) for path, module in model.named_modules()]
    with pytest.raises(error) as caught:
        load_adapter(model, folder, **options)
    assert all(a is b for (_, a), (_, b) in zip(before, model.named_modules(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    return str(caught.value)


def test_the_same_logits(adapted, folder, base):
    info = load_adapter(base, folder)
    assert torch.equal(logits(base), logits(adapted))
    assert info.folder == folder
    assert info.paths == tuple(lora_layers(adapted))
    assert info.trainable_parameters == 2 * 4 * (64 + 80)
    assert (info.spec.rank, info.spec.alpha, info.notes) == (4, 8.0, ())


def test_frozen_unless_asked(folder):
    model = tiny_llama()
    load_adapter(model, folder)
    assert not any(p.requires_grad for p in model.parameters())
    model = tiny_llama()
    load_adapter(model, folder, trainable=True)
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving == {f"{path}.{half}" for path in lora_layers(model) for half in "AB"}


def test_narrow_tensors_are_widened(foreign):
    edit_tensors(foreign, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    model = tiny_llama()
    load_adapter(model, foreign)
    layer = next(iter(lora_layers(model).values()))
    assert layer.A.dtype == torch.float32
    assert torch.equal(layer.A, layer.A.bfloat16().float())


def test_a_model_that_has_pairs(adapted, folder):
    with pytest.raises(TargetError, match="has an adapter attached already: detach it first"):
        load_adapter(adapted, folder)


class TestFiles:
    def test_no_folder(self, tmp_path):
        assert refused(tmp_path / "none") == f"there is no adapter folder {tmp_path / 'none'}"

    def test_a_folder_of_something_else(self, tmp_path):
        assert "is no adapter: it has no adapter_config.json" in refused(tmp_path)

    def test_a_named_adapter_inside(self, folder):
        assert f"an adapter lies inside it: name {folder}" in refused(folder.parent)

    def test_checkpoints_inside(self, folder):
        for step in (500, 1000, 90):
            shutil.copytree(folder, folder.parent / "run" / f"checkpoint-{step}")
        message = refused(folder.parent / "run")
        assert f"name {folder.parent / 'run' / 'checkpoint-1000'} (or one of 2 others)" in message

    def test_a_model_folder(self, base, tmp_path):
        base.save_pretrained(tmp_path / "model")
        assert "it is a model (config.json): name it with --model" in refused(tmp_path / "model")

    def test_a_hub_id(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert "`lorakit pull some/adapter --out adapter` brings it" in refused("some/adapter")

    @pytest.mark.parametrize(
        ("file", "what"),
        [
            ("adapters.safetensors", "`lorakit import {} --base BASE --out NEW` converts it"),
            ("pytorch_lora_weights.safetensors", "diffusers' layout"),
            ("adapter.nemo", "a checkpoint of NeMo"),
            ("__0_0.distcp", "a distributed checkpoint in parts"),
            ("lora.gguf", "a GGUF adapter"),
            ("adapter_model-00001-of-00002.safetensors", "its tensors are in 1 files"),
        ],
    )
    @pytest.mark.parametrize("configured", [True, False])
    def test_other_programs(self, folder, file, what, configured):
        (folder / "adapter_model.safetensors").rename(folder / file)
        if not configured:
            (folder / "adapter_config.json").unlink()
        assert what.format(folder) in refused(folder)

    def test_a_file(self, folder):
        message = refused(folder / "adapter_model.safetensors")
        assert "is a file; give the folder that holds adapter_config.json" in message

    @pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
    def test_a_pickle(self, folder, name):
        (folder / "adapter_model.safetensors").unlink()
        torch.save({}, folder / name)
        for path in (folder, folder / name):
            message = refused(path)
            assert f"{name} is a pickle, and reading one can run code; convert it once" in message

    def test_the_advice_for_a_pickle(self, adapted, foreign):
        tensors = load_file(foreign / "adapter_model.safetensors")
        (foreign / "adapter_model.safetensors").unlink()
        torch.save(tensors, foreign / "adapter_model.bin")
        python, flag, code = shlex.split(refused(foreign).split("runs none: ")[1])
        assert (python, flag) == ("python", "-c")
        exec(code)
        model = tiny_llama()
        load_adapter(model, foreign)
        assert torch.equal(logits(model), logits(adapted))

    def test_a_pickle_under_another_name(self, foreign):
        torch.save({}, foreign / "adapter_model.safetensors")
        assert "is a pickle (torch.save) under another name" in refused(foreign)
        with pytest.raises(AdapterError, match=r"is a pickle \(torch.save\) under another name"):
            read_adapter(foreign)

    def test_no_tensors(self, folder):
        (folder / "adapter_model.safetensors").unlink()
        assert refused(folder) == f"{folder} lacks adapter_model.safetensors"

    @pytest.mark.parametrize("kept", [0, 7, 100, 5_000])
    def test_truncated(self, foreign, kept):
        file = foreign / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:kept])
        expected = f"({kept:,} bytes) is truncated or no safetensors file"
        assert expected in refused(foreign)
        with pytest.raises(AdapterError) as caught:
            read_adapter(foreign)
        assert expected in str(caught.value)

    def test_one_changed_byte(self, folder):
        file = folder / "adapter_model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert "is not the file that lorakit.json was written for" in refused(folder)

    def test_a_foreign_safetensors(self, foreign):
        save_file({"weight": torch.zeros(2)}, foreign / "adapter_model.safetensors")
        message = refused(foreign)
        assert "holds weight: its name does not start with 'base_model.model.'" in message

    def test_an_empty_safetensors(self, foreign):
        save_file({}, foreign / "adapter_model.safetensors")
        assert "holds no pair: 0 tensors" in refused(foreign)

    @pytest.mark.parametrize("name", ["adapter_config.json", "lorakit.json"])
    def test_broken_json(self, folder, name):
        (folder / name).write_text('{"r": 8,')
        assert f"{name} is broken JSON: " in refused(folder)
        (folder / name).write_text("[1]")
        assert f"{name} holds a list, not a JSON object" in refused(folder)

    def test_a_record_of_another_format(self, folder):
        path = folder / "lorakit.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"format": 9}))
        assert "is of another format than 1; use a newer lorakit" in refused(folder)
        path.write_text(json.dumps(record | {"more": 1}))
        assert "has other keys than lorakit writes" in refused(folder)
        path.write_text(json.dumps(record | {"base": "x"}))
        assert "base must be an object; it is 'x'" in refused(folder)


class TestTensors:
    def test_one_missing(self, foreign):
        edit_tensors(foreign, lambda t: t.pop(f"{P}.1.mlp.up_proj.lora_B.weight"))
        message = refused(foreign)
        assert f"lacks {P}.1.mlp.up_proj.lora_B.weight; did you mean " in message
        assert f"'{P}.1.mlp.up_proj.lora_A.weight'" in message
        with pytest.raises(AdapterError, match=r"lacks .*up_proj\.lora_B\.weight; its pair is"):
            read_adapter(foreign)

    def test_a_pair_missing(self, foreign):
        def drop(tensors):
            for half in "AB":
                tensors.pop(f"{P}.1.mlp.up_proj.lora_{half}.weight")

        edit_tensors(foreign, drop)
        message = refused(foreign)
        assert f"lacks {P}.1.mlp.up_proj.lora_A.weight and " in message
        assert "(1 of the modules that adapter_config.json names have no tensors)" in message

    def test_a_pair_too_many(self, foreign):
        def add(tensors):
            tensors[f"{P}.0.self_attn.v_proj.lora_A.weight"] = torch.zeros(4, 32)
            tensors[f"{P}.0.self_attn.v_proj.lora_B.weight"] = torch.zeros(16, 4)

        edit_tensors(foreign, add)
        expected = "has a pair for model.layers.0.self_attn.v_proj, which adapter_config.json does"
        assert expected in refused(foreign)
        with pytest.raises(AdapterError) as caught:
            read_adapter(foreign)
        assert expected in str(caught.value)

    def test_a_module_that_the_model_lacks(self, foreign):
        def rename(tensors):
            for half in "AB":
                name = f"{P}.1.mlp.up_proj.lora_{half}.weight"
                tensors[name.replace("layers.1", "layers.7")] = tensors.pop(name)

        edit_tensors(foreign, rename)
        message = refused(foreign)
        assert "a pair for model.layers.7.mlp.up_proj, and the model has no such module" in message
        assert "did you mean 'model.layers.1.mlp.up_proj'" in message

    @pytest.mark.parametrize(
        ("half", "shape", "expected"),
        [("A", (4, 31), "4 x 31"), ("A", (2, 32), "2 x 32"), ("B", (32, 4, 1), "32 x 4 x 1")],
    )
    def test_misshapen(self, foreign, half, shape, expected):
        name = f"{P}.0.self_attn.q_proj.lora_{half}.weight"
        edit_tensors(foreign, lambda t: t.update({name: torch.zeros(shape)}))
        right = "4 x 32" if half == "A" else "32 x 4"
        message = refused(foreign)
        assert f"{name} is {expected}, and the model and adapter_config.json make it {right}" in (
            message
        )

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("lora_B.bias", "a LoRA bias (lora_bias); lorakit trains no biases"),
            ("token_adapter.trainable_tokens_delta", "rows for new tokens"),
            ("lora_A.default.weight", "a whole weight"),
            ("lora_C", "not a name of peft's LoRA format"),
        ],
    )
    def test_a_tensor_of_a_variant(self, foreign, name, reason):
        full = f"{P}.0.self_attn.q_proj.{name}"
        edit_tensors(foreign, lambda t: t.update({full: torch.zeros(4)}))
        message = refused(foreign)
        assert full in message
        if reason != "a whole weight":
            assert f"holds {full}: {reason}" in message

    def test_a_magnitude_that_the_configuration_does_not_mean(self, foreign):
        full = f"{P}.0.self_attn.q_proj.lora_magnitude_vector"
        edit_tensors(foreign, lambda t: t.update({full: torch.zeros(32)}))
        assert f"{full}, which has no place in the model" in refused(foreign)

    def test_a_whole_weight_that_is_the_bases_own(self, foreign):
        model = tiny_llama()
        own = model.model.embed_tokens.weight.detach().clone()
        name = "base_model.model.model.embed_tokens.weight"
        edit_tensors(foreign, lambda t: t.update({name: own}))
        info = load_adapter(model, foreign)
        assert info.notes == (f"{name} is a copy of the base's own weight and was set aside",)

    def test_a_whole_weight_that_is_not(self, foreign):
        name = "base_model.model.model.embed_tokens.weight"
        edit_tensors(foreign, lambda t: t.update({name: torch.zeros(70, 32)}))
        message = refused(foreign)
        assert f"{name} 70 x 32, a whole weight that is not the base's own 64 x 32" in message

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, foreign, value):
        name = f"{P}.0.self_attn.q_proj.lora_A.weight"
        edit_tensors(foreign, lambda t: t[name].view(-1)[3].fill_(value))
        assert f"{name} holds a NaN or an infinity; train it again" in refused(foreign)

    def test_integers(self, foreign):
        name = f"{P}.0.self_attn.q_proj.lora_A.weight"
        edit_tensors(foreign, lambda t: t.update({name: t[name].to(torch.int8)}))
        assert f"{name} is torch.int8, not a floating-point tensor" in refused(foreign)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; lorakit reads 'LORA'"),
            ({"peft_type": "DELETE"}, "peft_type is None; lorakit reads 'LORA'"),
            ({"use_dora": True}, "lora_magnitude_vector"),
            ({"bias": "some"}, "bias must be 'none', 'all' or 'lora_only'"),
            ({"modules_to_save": "norm"}, "modules_to_save must be a list of names"),
            ({"trainable_token_indices": ["a"]}, "trainable_token_indices must hold token ids"),
            ({"trainable_token_indices": [1, 1]}, "trainable_token_indices names a token twice"),
            ({"target_parameters": "experts.w"}, "target_parameters must be a list of names"),
            ({"layer_replication": [[0, 1]]}, "layer_replication is [[0, 1]]"),
            ({"use_qalora": True}, "use_qalora is True"),
            ({"alora_invocation_tokens": "call"}, "alora_invocation_tokens must be a list"),
            ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is "),
            ({"arrow_config": {"top_k": 2}}, "arrow_config is "),
            ({"kasa_config": {"a": 1}}, "kasa_config is "),
            ({"megatron_config": {"a": 1}}, "megatron_config is "),
            ({"init_lora_weights": "pissa_niter_16"}, "is 'pissa_niter_16' (PiSSA moves part"),
            ({"init_lora_weights": "olora"}, "is 'olora' (OLoRA moves part"),
            ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
            ({"init_lora_weights": "loftq"}, "is 'loftq' (LoftQ replaces the base"),
            ({"init_lora_weights": "newest"}, "is 'newest' (unknown)"),
            ({"use_moonlight": 3}, "the key 'use_moonlight' (3) is unknown, and may change"),
            ({"use_moonlight": 0}, "the key 'use_moonlight' (0) is unknown, and may change"),
            ({"r": 0}, "rank must be a whole number of at least 1; it is 0"),
            ({"r": "8"}, "rank must be a whole number of at least 1; it is '8'"),
            ({"r": "DELETE"}, "r is missing"),
            ({"lora_alpha": None}, "lora_alpha is missing"),
            ({"lora_alpha": -2}, "alpha must be above 0"),
            ({"lora_alpha": "much"}, "could not convert string to float: 'much'"),
            ({"target_modules": []}, "target_modules is missing"),
            ({"target_modules": [3]}, "target_modules must be a list of names or a regular"),
            ({"target_modules": "("}, "missing ), unterminated subpattern"),
            ({"use_rslora": "yes"}, "use_rslora must be true or false; it is 'yes'"),
            ({"lora_dropout": 2.0}, "dropout must lie in [0, 1); it is 2.0"),
            ({"rank_pattern": {"q_proj": 0}}, "rank_pattern['q_proj'] must be a whole number"),
            ({"rank_pattern": {"(": 2}}, "'(.*\\\\.)?(()$' is not a regular expression"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_refused(self, foreign, changes, message):
        edit_config(foreign, **changes)
        for read in (refused, read_refused):
            found = read(foreign)
            assert message in found
            assert str(foreign) in found

    def test_unknown_keys_at_rest_are_let_through(self, foreign):
        edit_config(foreign, new_a=None, new_b=False, new_c={}, new_d=[], new_e="")
        load_adapter(tiny_llama(), foreign)

    def test_keys_of_older_versions_may_be_absent(self, foreign):
        kept = ("peft_type", "r", "lora_alpha", "target_modules", "lora_dropout", "task_type")
        config = json.loads((foreign / "adapter_config.json").read_text())
        edit_config(foreign, **{key: "DELETE" for key in config if key not in kept})
        load_adapter(tiny_llama(), foreign)

    def test_starts_that_leave_the_base_alone(self, adapted, foreign):
        for init in (True, False, "gaussian", "eva", "orthogonal"):
            edit_config(foreign, init_lora_weights=init)
            model = tiny_llama()
            load_adapter(model, foreign)
            assert torch.equal(logits(model), logits(adapted))

    def test_a_rank_above_the_module(self, foreign):
        edit_config(foreign, r=33)
        message = refused(foreign)
        assert (
            "q_proj.lora_A.weight is 4 x 32, and the model and adapter_config.json make" in message
        )

    def test_what_means_nothing_here_is_set_aside_aloud(self, foreign):
        edit_config(
            foreign, target_modules=["q_proj", "up_proj", "c_attn"], rank_pattern={"c_attn": 2}
        )
        info = load_adapter(tiny_llama(), foreign)
        assert info.notes == (
            "rank_pattern 'c_attn' means none of the adapted modules; it is left out",
            "target_modules names 'c_attn', which this model does not have",
        )


def read_refused(folder):
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder)
    return str(caught.value)


class TestBase:
    @pytest.fixture
    def known(self, adapted, tmp_path):
        return save_adapter(adapted, tmp_path / "known", identity=IDENTITY)

    def test_the_same_base(self, known):
        load_adapter(tiny_llama(), known, identity=IDENTITY)

    def test_a_name_alone_does_not_matter(self, known):
        other = replace(IDENTITY, name="elsewhere/tiny", revision="abc")
        load_adapter(tiny_llama(), known, identity=other)

    @pytest.mark.parametrize("part", ["weights", "tokenizer", "template"])
    def test_another_base(self, known, part):
        other = replace(IDENTITY, name="other-llama", **{f"{part}_sha256": "9" * 64})
        message = refused(known, error=BaseMismatchError, identity=other)
        assert "was trained on 'tiny-llama', and this base is 'other-llama'" in message
        word = "chat template" if part == "template" else part
        assert (
            f"({word} {getattr(IDENTITY, part + '_sha256')[:12]}… there, 999999999999… here)"
            in (message)
        )
        assert "--force" in message
        model = tiny_llama()
        load_adapter(model, known, identity=other, force=True)
        assert lora_layers(model)

    def test_unknown_on_either_side(self, known, folder):
        load_adapter(tiny_llama(), known)
        load_adapter(tiny_llama(), folder, identity=IDENTITY)

    def test_other_shapes_are_refused_even_by_force(self, known):
        model = tiny_llama()
        model.model.layers[0].mlp.up_proj = torch.nn.Linear(32, 50, bias=False)
        message = refused(known, model, force=True)
        assert "lora_B.weight is 48 x 4, and the model and adapter_config.json make it 50 x 4" in (
            message
        )
