"""Runs that begin otherwise than at A random and B zero: from Python, from the command line, and gone on from."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import lorakit
from families import saved
from lorakit.cli.main import run
from lorakit.errors import DataError
from lorakit.lora.initialisations import INITIALISATIONS

WORDS = [
    "lamp",
    "desk",
    "river",
    "stone",
    "cloud",
    "paper",
    "window",
    "garden",
    "copper",
    "violet",
    "silver",
    "orange",
]
ROWS = [{"prompt": f"say {word}", "completion": word[::-1]} for word in WORDS]
OTHERS = [name for name in INITIALISATIONS if name not in ("kaiming", "gaussian")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture
def train(base, rows, tmp_path, capfd):
    def call(*flags, out, steps=4):
        command = ["train", "--model", base, "--data", rows, "--out", tmp_path / out]
        command += ["--dtype", "float32", "--samples", 0, "--batch-size", 4, "--max-steps", steps]
        code = run([str(word) for word in (*command, *flags)])
        said = capfd.readouterr()
        assert code == 0, said.err
        return json.loads((tmp_path / out / "result.json").read_text())

    return call


def tensors(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def bytes_of(model):
    layers = lorakit.lora_layers(model)
    digest = hashlib.sha256()
    for path, layer in layers.items():
        digest.update(path.encode() + layer.base.weight.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("init", OTHERS)
def test_trained_from_python_saved_and_loaded(base, tmp_path, init):
    model, tokenizer = lorakit.load_model(str(base), dtype="float32")
    lorakit.attach(model, lorakit.LoraSpec(rank=2, init=init))
    before, events = bytes_of(model), []
    result = lorakit.train(
        *(model, tokenizer, ROWS),
        eval_data=ROWS,
        epochs=8,
        learning_rate=0.01,
        report=events.append,
    )
    plain, _ = lorakit.load_model(str(base), dtype="float32")
    lorakit.attach(plain, lorakit.LoraSpec(rank=2))
    start = lorakit.train(plain, tokenizer, ROWS, eval_data=ROWS, max_steps=1).eval_loss_before
    assert result.eval_loss_before == pytest.approx(start, abs=1e-5)
    assert result.eval_loss < start
    said = " ".join(e["text"] for e in events if e["kind"] == "note")
    assert ("its first steps" in said) == bool(INITIALISATIONS[init].rows)
    assert ("stays" in said) == (INITIALISATIONS[init].splits or init == "mica")
    if init != "eva":  # whose ranks may leave modules out
        assert bytes_of(model) == before
    # The pairs are trained now, and a further run goes on from them.
    notes = lorakit.train(
        model, tokenizer, ROWS, eval_data=ROWS, max_steps=2, learning_rate=1e-4
    ).notes
    assert not any("its first steps" in note for note in notes)
    folder = lorakit.save_adapter(model, tmp_path / "adapter")
    again, _ = lorakit.load_model(str(base), dtype="float32")
    lorakit.load_adapter(again, folder)
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)


def test_what_is_held_beside_the_trained_pair_is_what_it_began_with(base):
    model, tokenizer = lorakit.load_model(str(base), dtype="float32")
    lorakit.attach(model, lorakit.LoraSpec(rank=2, init="pissa"))
    layers = lorakit.lora_layers(model)
    before = {path: (x.A.detach().clone(), x.B.detach().clone()) for path, x in layers.items()}
    lorakit.train(model, tokenizer, ROWS, eval_share=0, max_steps=3, weight_decay=0.1)
    for path, layer in layers.items():
        A, B = before[path]
        assert torch.equal(layer.A[2:], A[2:])
        assert torch.equal(layer.B[:, 2:], B[:, 2:])
        assert not torch.equal(layer.A[:2], A[:2])


def test_a_run_says_what_is_trained_and_what_is_held(train, tmp_path):
    flags = ("--rank", 2, "--alpha", 8)
    plain = train(*flags, out="plain")
    split = train(*flags, "--init", "pissa", out="split")
    assert split["trainable_parameters"] == plain["trainable_parameters"]
    assert split["optimizer_state_bytes"] == 2 * plain["optimizer_state_bytes"]
    assert split["forecast"]["trainable_parameters"] == 2 * plain["trainable_parameters"]
    assert any("rank 2 is trained" in note and "saves rank 4" in note for note in split["notes"])
    config = json.loads((tmp_path / "split/adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (4, 16, True)
    card = (tmp_path / "split/adapter/README.md").read_text()
    assert f"{plain['trainable_parameters']:,} trained parameters" in card
    assert "begun by pissa at rank 2, held at 2 times that" in card


def test_eva_gives_ranks_by_the_rows(train, tmp_path):
    result = train("--rank", 2, "--alpha", 8, "--init", "eva", out="eva")
    ranks = {layer["path"]: layer["rank"] for layer in result["layers"]}
    assert set(ranks.values()) <= {1, 2, 3, 4}
    assert len(set(ranks.values())) > 1
    assert any(note.startswith("init eva: A is from the 1") for note in result["notes"])
    A = {name: x.shape[0] for name, x in tensors(tmp_path / "eva").items() if "lora_A" in name}
    assert {f"base_model.model.{path}.lora_A.weight": rank for path, rank in ranks.items()} == A
    config = json.loads((tmp_path / "eva/adapter/adapter_config.json").read_text())
    info = lorakit.read_adapter(tmp_path / "eva/adapter")
    assert config["alpha_pattern"]  # every scale is alpha / rank of what was asked for
    assert info.ranks == ranks
    same = train("--rank", 2, "--init", "eva", "--eva-rho", 1, out="same")
    assert {layer["rank"] for layer in same["layers"]} == {2}


@pytest.mark.parametrize("init", ["pissa", "eva", "lora_ga", "mica"])
def test_resumed_and_repeated_it_is_the_same(train, tmp_path, init):
    flags = ("--rank", 2, "--init", init, "--lora-plus", 4, "--checkpoint-every", 2)
    train(*flags, out="run")
    whole = tensors(tmp_path / "run")
    last = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1]
    if last.name.endswith("4"):
        shutil.rmtree(last)  # as if it had been killed after the second step
    train(*flags, "--resume", out="run")
    for name, tensor in tensors(tmp_path / "run").items():
        assert torch.equal(tensor, whole[name]), name


def test_a_child_of_a_split_pair_is_plain_lora_of_twice_the_rank(train, tmp_path):
    train("--rank", 2, "--init", "pissa", "--save-as", "one", out="parent")
    child = train("--from", "one", "--learning-rate", 0.003, "--keep", "last", out="child", steps=3)
    parent, own = tensors(tmp_path / "parent"), tensors(tmp_path / "child")
    assert parent.keys() == own.keys()
    name = next(name for name in own if name.endswith("lora_A.weight"))
    assert own[name].shape[0] == 4
    # Both halves move now.
    assert not torch.equal(own[name][:2], parent[name][:2])
    assert not torch.equal(own[name][2:], parent[name][2:])
    assert child["trainable_parameters"] == sum(tensor.numel() for tensor in own.values())


def test_several_at_once_are_each_as_alone(train, tmp_path):
    flags = ("--init", "pissa", "--lora-plus", 4, "--weight-decay", 0.1)
    train(*flags, "--ranks", "2,3", out="many")
    for rank in (2, 3):
        train(*flags, "--rank", rank, out=f"alone-{rank}")
        ours, theirs = tensors(tmp_path / f"many/r{rank}"), tensors(tmp_path / f"alone-{rank}")
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert float((ours[name] - tensor).norm() / tensor.norm()) < 1e-5, name


@pytest.mark.parametrize("command", [("rank",), ("train", "--ranks", "2,4")])
def test_what_cannot_begin_so_is_refused_by_name(base, rows, tmp_path, capfd, command):
    flags = ("--model", base, "--data", rows, "--out", tmp_path / "out", "--init", "eva")
    assert run([str(word) for word in (*command, *flags)]) == 2
    assert "init eva" in capfd.readouterr().err


def test_too_few_tokens_for_eva(base):
    model, tokenizer = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=8, init="eva"))
    with pytest.raises(DataError, match=r"init eva: the run's rows have \d+ supervised tokens"):
        lorakit.train(model, tokenizer, ROWS[:1], eval_share=0, max_steps=2)
