"""What is written, and that it appears whole or not at all."""

import errno
import json
import math
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from adapter_models import adapt, logits, tiny_llama
from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.errors import AdapterError, ConfigError, OutputError
from lorakit.files.whole import write_folder
from lorakit.lora import lora_layers
from lorakit.models.fingerprint import BaseIdentity

IDENTITY = BaseIdentity("tiny-llama", "abc123", "1" * 64, "2" * 64, "3" * 64)
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "lorakit.json"]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextmanager
def no_file_above(size):
    """Let the system refuse to write more than `size` bytes into a file: a real short disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_files(folder):
    assert sorted(contents(folder)) == FILES


def test_the_tensors_are_A_and_B_in_float32(adapted, folder):
    saved = load_file(folder / "adapter_model.safetensors")
    expected = {}
    for path, layer in lora_layers(adapted).items():
        expected[f"base_model.model.{path}.lora_A.weight"] = layer.A
        expected[f"base_model.model.{path}.lora_B.weight"] = layer.B
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        assert saved[name].dtype == torch.float32
        assert torch.equal(saved[name], tensor)


def test_pairs_over_a_bfloat16_base_are_saved_in_float32(tmp_path):
    model = adapt(tiny_llama().bfloat16(), targets=("q_proj",))
    save_adapter(model, tmp_path / "a")
    saved = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    again = tiny_llama().bfloat16()
    load_adapter(again, tmp_path / "a")
    assert torch.equal(logits(again), logits(model))


def test_the_same_adapter_gives_the_same_bytes(adapted, tmp_path):
    one = save_adapter(adapted, tmp_path / "one", identity=IDENTITY)
    two = save_adapter(adapted, tmp_path / "two", identity=IDENTITY)
    assert contents(one) == contents(two)


def test_the_record(adapted, tmp_path):
    provenance = {
        "template": {"kind": "chat"},
        "data_sha256": "d" * 64,
        "config": {"rank": 4, "data": ["rows.jsonl"]},
        "metrics": {"eval_loss": 1.25, "perplexity": math.inf, "scores": {"f1": 0.5}},
    }
    save_adapter(adapted, tmp_path / "a", identity=IDENTITY, provenance=provenance)
    record = json.loads((tmp_path / "a" / "lorakit.json").read_text())
    assert record["base"] == {
        "name": "tiny-llama",
        "revision": "abc123",
        "weights_sha256": "1" * 64,
        "tokenizer_sha256": "2" * 64,
        "template_sha256": "3" * 64,
    }
    assert record["spec"]["targets"] == ["q_proj", "up_proj"]
    assert record["versions"].keys() == {"lorakit", "torch", "safetensors", "python"}
    # JSON has no infinity: the word for it is kept instead of a file that other readers refuse.
    metrics = provenance["metrics"] | {"perplexity": "inf"}
    assert record["provenance"] == provenance | {"metrics": metrics}
    info = read_adapter(tmp_path / "a")
    assert info.base == record["base"]
    assert info.provenance == record["provenance"]
    assert info.base_name == "tiny-llama"
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["revision"] == "abc123"


def test_the_card(adapted, tmp_path):
    save_adapter(
        adapted,
        tmp_path / "a",
        identity=IDENTITY,
        provenance={"metrics": {"eval_loss": 1.25, "note": "text"}, "data_sha256": "d" * 64},
    )
    card = (tmp_path / "a" / "README.md").read_text()
    assert card.startswith("---\nbase_model: 'tiny-llama'\nlibrary_name: peft\n")
    # q_proj is 32 x 32, up_proj 48 x 32, rank 4, two layers.
    assert f"{2 * 4 * (64 + 80):,} trained parameters" in card
    assert "- rank 4, alpha 8, scale alpha / rank" in card
    assert "| eval_loss | 1.25 |" in card
    assert "# LoRA adapter for `tiny-llama`" in card
    assert 'lorakit.load_adapter(model, ".")' in card
    assert "PeftModel.from_pretrained" in card
    assert "BASE stands for the folder or the hub id of the base model, `tiny-llama`." in card


def test_the_card_says_task_data_and_every_runtime(adapted, tmp_path):
    config = {
        "data": ["/home/someone/secret/rows.jsonl"],
        "prompt": "{question} `now`",
        "learning_rate": 1,
    }
    template = {"kind": "chat", "source": "…", "system": "Be brief.\nAlways."}
    save_adapter(
        adapted,
        tmp_path / "a",
        identity=IDENTITY,
        provenance={"config": config, "template": template, "metrics": {"scores": {"bleu": 3.5}}},
    )
    card = (tmp_path / "a" / "README.md").read_text()
    for part in (
        *(
            "- trained on: `rows.jsonl`",
            "- asked with: `` {question} `now` ``",
            "| scores.bleu | 3.5 |",
        ),
        *("- system prompt: `Be brief. Always.`", "--enable-lora --max-lora-rank 8 "),
        *(
            "lorakit export . --to gguf --model BASE",
            "llama-cli -m base.gguf --lora",
        ),
    ):
        assert part in card, part
    assert "someone" not in card, "a card is published, the paths of the machine are not"


@pytest.mark.parametrize(
    ("name", "shown", "own"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        # A folder of this machine is another one elsewhere, and nobody else's business.
        ("/home/someone/*mine*", "BASE", "BASE"),
    ],
)
def test_other_programs_are_told_of_a_base_by_its_id(adapted, tmp_path, name, shown, own):
    identity = replace(IDENTITY, name=name, revision="sha256:1" if own == "smollm2-135m" else None)
    save_adapter(adapted, tmp_path / "a", identity=identity)
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"AutoModelForCausalLM.from_pretrained({shown!r})" in card
    assert f"vllm serve {shown} --enable-lora" in card
    assert f"lorakit.load_model({own!r})" in card
    assert f"lorakit export . --to gguf --model {own} --out" in card
    assert "someone" not in card
    if "mine" in name:
        assert "# LoRA adapter for `*mine*`" in card
    else:
        assert f"base_model: '{shown}'" in card
        config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == shown
        assert config["revision"] is None
    # What is written again of it says the same.
    write_stored(tmp_path / "b", read_stored(tmp_path / "a"))
    assert (tmp_path / "b" / "README.md").read_text() == card


def test_a_card_promises_no_runtime_that_would_refuse(tmp_path):
    model = adapt(torch.nn.Sequential(torch.nn.Conv1d(8, 8, 3)), targets=("0",), rank=2)
    card = (save_adapter(model, tmp_path / "a") / "README.md").read_text()
    assert "vLLM and llama.cpp adapt no convolutions (0)" in card
    assert "vllm serve" not in card


def test_targets_by_name_path_or_expression(tmp_path):
    def written(**spec):
        folder = save_adapter(adapt(tiny_llama(), **spec), tmp_path / "a", overwrite=True)
        return json.loads((folder / "adapter_config.json").read_text())["target_modules"]

    assert written(targets=("v_proj", "k_proj")) == ["k_proj", "v_proj"]
    assert written(targets=("v_proj",), layers="1") == ["model.layers.1.self_attn.v_proj"]


def test_a_path_that_ends_another_is_written_as_an_expression(tmp_path):
    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q = torch.nn.Linear(4, 4)
            self.inner = torch.nn.ModuleDict({"q": torch.nn.Linear(4, 4)})

    model = adapt(Deep(), rank=2, targets=("re:q",))
    save_adapter(model, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == "q"  # as an expression: the whole path
    again = Deep()
    load_adapter(again, tmp_path / "a")
    assert list(lora_layers(again)) == ["q"]


class TestRefusals:
    def test_nothing_to_save(self, base, tmp_path):
        with pytest.raises(AdapterError, match="no adapter attached: there is nothing to save"):
            save_adapter(base, tmp_path / "a")

    def test_a_folder_that_holds_something(self, adapted, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mine.txt").write_text("keep")
        with pytest.raises(OutputError, match="a is not empty: give the adapter another folder"):
            save_adapter(adapted, tmp_path / "a")
        assert contents(tmp_path / "a") == {"mine.txt": b"keep"}

    def test_a_file_in_its_place(self, adapted, tmp_path):
        (tmp_path / "a").write_text("keep")
        with pytest.raises(OutputError, match="a is a file; the adapter needs a folder"):
            save_adapter(adapted, tmp_path / "a", overwrite=True)

    def test_a_parent_that_is_a_file(self, adapted, tmp_path):
        (tmp_path / "a").write_text("keep")
        with pytest.raises(OutputError, match=r"cannot write the adapter .*/a/b: Not a directory"):
            save_adapter(adapted, tmp_path / "a" / "b")

    def test_what_JSON_cannot_hold(self, adapted, tmp_path):
        with pytest.raises(ConfigError, match=r"provenance\.config\.seen is a set, which lorakit"):
            save_adapter(adapted, tmp_path / "a", provenance={"config": {"seen": {1}}})
        assert list(tmp_path.iterdir()) == []


class TestWholeOrNotAtAll:
    def test_an_empty_folder_is_taken(self, adapted, tmp_path):
        (tmp_path / "a").mkdir()
        save_adapter(adapted, tmp_path / "a")
        assert sorted(contents(tmp_path / "a")) == FILES

    def test_parents_are_made_and_nothing_is_left_beside(self, adapted, tmp_path):
        save_adapter(adapted, tmp_path / "deep" / "er" / "a")
        assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a"]

    def test_overwriting_replaces_the_whole_folder(self, adapted, folder):
        (folder / "old.txt").write_text("old")
        with torch.no_grad():
            next(iter(lora_layers(adapted).values())).A.add_(1.0)
        save_adapter(adapted, folder, overwrite=True)
        assert sorted(contents(folder)) == FILES
        again = tiny_llama()
        load_adapter(again, folder)
        assert torch.equal(logits(again), logits(adapted))
        assert [path.name for path in folder.parent.iterdir()] == ["adapter"]

    def test_a_full_disk(self, adapted, folder):
        before = contents(folder)
        with no_file_above(2_000), pytest.raises(OutputError) as caught:
            save_adapter(adapted, folder, overwrite=True)
        assert "cannot write the adapter" in str(caught.value)
        assert "what was there is unchanged" in str(caught.value)
        assert contents(folder) == before
        assert [path.name for path in folder.parent.iterdir()] == ["adapter"]

    def test_no_space_left_says_what_to_do(self, tmp_path):
        def fill(partial):
            (partial / "begun").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OutputError, match="No space left on device; make room and try again"):
            write_folder(tmp_path / "a", fill)
        assert list(tmp_path.iterdir()) == []

    def test_any_other_failure_leaves_nothing_either(self, tmp_path):
        def fill(partial):
            (partial / "begun").write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / "a", fill)
        assert list(tmp_path.iterdir()) == []

    def test_files_have_ordinary_permissions(self, folder, tmp_path):
        (tmp_path / "plain").write_text("")
        ordinary = (tmp_path / "plain").stat().st_mode
        assert {path.stat().st_mode for path in folder.iterdir()} == {ordinary}
