"""A folder that holds a model and an adapter is never opened as either unsaid."""

import json
import re
import shlex

import pytest
import torch
from peft import LoraConfig, get_peft_model

import lorakit
from families import saved, tiny
from lorakit.cli.main import run
from lorakit.errors import ModelError
from lorakit.models import ModelSpec, empty_model, identify, load_outline, resolve

IDS = torch.arange(20)[None]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": f"say {n}", "completion": str(n)}) for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))


def peft_model():
    torch.manual_seed(3)
    model = get_peft_model(
        tiny("llama"), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.5)
    return model.eval()


@pytest.fixture
def both(tmp_path):
    """A model as transformers saves one, and an adapter of it saved into the same folder by peft."""
    folder = saved(tmp_path / "my model")
    peft_model().save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


COMMANDS = {
    "train": ["train", "--data", "rows.jsonl", "--out", "run", "--max-steps", "1"],
    "check": ["check", "--data", "rows.jsonl"],
    "count": ["count"],
    "eval": ["eval", "--data", "rows.jsonl"],
    "generate": ["generate", "hello"],
    "chat": ["chat"],
    "merge": ["merge", "--adapter", "my model", "--out", "out"],
    "export": ["export", "my model", "--to", "gguf", "--out", "x.gguf"],
    "compare": ["compare", "--data", "rows.jsonl", "--out", "compared"],
    "rank": ["rank", "--data", "rows.jsonl", "--out", "ranked"],
    "serve": ["serve", "--port", "0", "--base"],
    "import": ["import", "adapter.pt", "--alpha", "8", "--out", "out", "--base"],
    "extract": ["adapters", "extract", "--tuned", "x", "--rank", "2", "--out", "out", "--base"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it(command, both, capsys):
    torch.save({"x.lora_A": torch.ones(1)}, "adapter.pt")
    arguments = COMMANDS[command]
    named = [] if arguments[-1] == "--base" else ["--model"]
    assert run([*arguments, *named, "my model"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "my model holds a model and an adapter beside it (adapter_config.json)" in said
    assert "add --ignore-adapter" in said
    assert "`lorakit merge --model 'my model' --ignore-adapter" in said


def test_both_meanings_of_the_message(both, tmp_path, capsys):
    with pytest.raises(ModelError) as caught:
        lorakit.load_model("my model", dtype="float32")
    message = str(caught.value)
    alone, _ = lorakit.load_model("my model", dtype="float32", ignore_adapter=True)
    assert torch.equal(logits(alone), logits(tiny("llama")))
    assert not [name for name, _ in alone.named_parameters() if "lora" in name]
    (merge,) = re.findall(r"`(lorakit merge [^`]*)`", message)
    assert run(shlex.split(merge)[1:]) == 0
    merged = re.search(r"name ('[^']*'|\S+) as the model", message)
    (name,) = shlex.split(merged[1])
    with_adapter, _ = lorakit.load_model(name, dtype="float32")
    torch.testing.assert_close(logits(with_adapter), logits(peft_model()), rtol=1e-5, atol=1e-4)


def test_training_adapts_the_base_alone(both):
    arguments = ["train", "--model", "my model", "--ignore-adapter", "--data", "rows.jsonl"]
    assert run([*arguments, "--out", "run", "--max-steps", "1", "--targets", "q_proj"]) == 0
    info = lorakit.read_adapter("run/adapter")
    assert info.paths == tuple(f"model.layers.{n}.self_attn.q_proj" for n in range(2))
    saved(both.parent / "plain")
    assert info.base == identify("plain").to_dict() | {"name": "my model"}


def test_the_links_follow_the_folder(both):
    first, _ = lorakit.load_model("my model", dtype="float32", ignore_adapter=True)
    tiny("llama", seed=1).save_pretrained(both)
    second, _ = lorakit.load_model("my model", dtype="float32", ignore_adapter=True)
    assert torch.equal(logits(second), logits(tiny("llama", seed=1)))
    assert not torch.equal(logits(first), logits(second))


def test_a_folder_without_an_adapter_takes_the_option_too(tmp_path):
    saved(tmp_path / "plain")
    model, _ = lorakit.load_model("plain", dtype="float32", ignore_adapter=True)
    assert torch.equal(logits(model), logits(tiny("llama")))
    assert not list((tmp_path / "cache").glob("models/*"))


def test_a_gguf_file_beside_an_adapter_is_the_file_alone(tmp_path, monkeypatch):
    """transformers would take the base that adapter_config.json names, or apply the adapter."""
    opened = []
    monkeypatch.setattr(
        "lorakit.models.gguf.folder_of", lambda path, progress: opened.append(path) or tmp_path
    )
    peft_model().save_pretrained(tmp_path / "files")
    (tmp_path / "files" / "model.gguf").write_bytes(b"GGUF and more")
    (tmp_path / "files" / "tokenizer.json").write_text("{}")
    assert resolve(ModelSpec("files/model.gguf")).source == "gguf"
    (file,) = opened
    assert file.read_bytes() == b"GGUF and more"
    assert sorted(f.name for f in file.parent.iterdir()) == [
        "README.md",
        "model.gguf",
        "tokenizer.json",
    ]


class TestWhatIsNoModel:
    @staticmethod
    def refused(name):
        with pytest.raises(ModelError) as caught:
            lorakit.load_model(name)
        message = str(caught.value)
        for use in (identify, empty_model, load_outline):
            with pytest.raises(ModelError, match=re.escape(message)):
                use(name)
        return message

    def test_an_adapter(self, tmp_path):
        saved(tmp_path / "base")
        model = peft_model()
        model.peft_config["default"].base_model_name_or_path = "base"
        model.save_pretrained("adapter")
        message = self.refused("adapter")
        assert "It is an adapter of base" in message
        (flags,) = re.findall(r"--model \S+ --adapter \S+", message)
        assert run(["generate", "hello", "--max-new-tokens", "2", *shlex.split(flags)]) == 0

    def test_checkpoints_of_an_adapter(self, tmp_path):
        """What transformers' Trainer leaves of a peft model: nothing at the top, folders inside."""
        for step in (500, 1000):
            peft_model().save_pretrained(f"out/checkpoint-{step}")
        message = self.refused("out")
        assert "An adapter lies inside it" in message
        assert "--adapter out/checkpoint-1000 (or one of 1 others)" in message

    def test_a_run_folder_of_lorakit(self, tmp_path):
        saved(tmp_path / "base")
        arguments = ["train", "--model", "base", "--data", "rows.jsonl", "--out", "run"]
        assert run([*arguments, "--max-steps", "1"]) == 0
        assert "--model base --adapter run/adapter" in self.refused("run")

    def test_models_deeper(self, tmp_path):
        for step in (9, 10):
            saved(tmp_path / "out" / f"checkpoint-{step}")
        assert "A model lies inside it: name out/checkpoint-10 " in self.refused("out")
        saved(tmp_path / "models--some--model" / "snapshots" / ("a" * 40))
        assert f"name models--some--model/snapshots/{'a' * 40}" in self.refused(
            "models--some--model"
        )

    @pytest.mark.parametrize(
        ("file", "what"),
        [
            ("model_index.json", "a pipeline of diffusers"),
            ("params.json", "convert it with transformers first"),
            ("model.nemo", "NeMo"),
            ("model.onnx", "ONNX"),
            ("model-Q4_0.gguf", "name that file, other/model-Q4_0.gguf"),
            ("notes.txt", "It holds notes.txt"),
        ],
    )
    def test_other_programs(self, file, what, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / file).write_text("{}")
        assert what in self.refused("other")

    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "other").mkdir()
        assert "It is empty" in self.refused("other")
