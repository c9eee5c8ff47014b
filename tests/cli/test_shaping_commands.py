"""`lorakit adapters combine | extract | shrink` and `lorakit merge` with weights, as typed."""

import json

import pytest
import torch

from families import tiny, tokenizer
from lorakit import attach, load_model, save_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.lora import LoraSpec, lora_layers
from lorakit.merging import merged_model


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))


@pytest.fixture
def two(model_folder, tmp_path):
    folders = []
    for seed, name in enumerate(("a", "b")):
        model, _ = load_model(str(model_folder), dtype="float32")
        attach(model, LoraSpec(rank=4, targets=("q_proj", "up_proj")), seed=seed)
        g = torch.Generator().manual_seed(seed)
        for layer in lora_layers(model).values():
            layer.B.data.copy_(0.1 * torch.randn(layer.B.shape, generator=g))
        folders.append(save_adapter(model, tmp_path / name))
    return folders


def delta(folder, path):
    pair = read_stored(folder).pairs[path]
    return pair.scale * pair.B.double() @ pair.A.double()


Q = "model.layers.0.self_attn.q_proj"


def test_combine(lorakit, two, tmp_path):
    a, b = two
    outcome = lorakit(
        *("adapters", "combine", f"{a}:0.7", f"{b}:-0.3", "--out", tmp_path / "c"),
        *("--layer-weight", f"{b}:layers.0.*=2"),
    )
    assert outcome.code == 0, outcome.err
    assert "4 modules, rank 8; compared with the weighted sum: exact, to rounding" in outcome.out
    wanted = 0.7 * delta(a, Q) + 2.0 * delta(b, Q)
    torch.testing.assert_close(delta(tmp_path / "c", Q), wanted, rtol=0, atol=1e-5)
    other = Q.replace("0", "1")
    wanted = 0.7 * delta(a, other) - 0.3 * delta(b, other)
    torch.testing.assert_close(delta(tmp_path / "c", other), wanted, rtol=0, atol=1e-5)


def test_combine_from_the_store_into_the_store(lorakit, two):
    from lorakit.adapters.store import Store

    for folder in two:
        Store().add(folder, folder.name)
    outcome = lorakit(
        *("adapters", "combine", "a:0.5", "b", "--how", "ties", "--rank", 3, "--name", "both")
    )
    assert outcome.code == 0, outcome.err
    assert "combined: both@1 in the store" in outcome.out
    stored = read_stored(Store().resolve("both").folder)
    assert {pair.rank for pair in stored.pairs.values()} == {3}
    assert [p["name"] for p in stored.record.provenance["parents"]] == ["a@1", "b@1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--how", "tie", "--rank", 4, "--out", "x"), ("'tie'", "'ties'")),
        (("--how", "ties", "--out", "x"), ("needs a rank or an energy",)),
        ((), ("--out FOLDER, or --name NAME",)),
        (("--out", "x", "--name", "y"), ("--out FOLDER, or --name NAME",)),
        (("--out", "x", "--layer-weight", "zz:q=1"), ("ADAPTER:PATTERN=WEIGHT",)),
        (("--out", "x", "--layer-weight", "zz"), ("ADAPTER:PATTERN=WEIGHT",)),
    ],
)
def test_what_cannot_be_combined(lorakit, two, flags, words):
    outcome = lorakit("adapters", "combine", *two, *flags)
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err


def test_a_weight_that_fits_no_module_names_the_adapter_as_the_user_does(
    lorakit, two, tmp_path, monkeypatch
):
    from lorakit.adapters.store import Store

    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    for folder in two:
        Store().add(folder, folder.name)
    flags = ("--layer-weight", "a:q_porj=2", "--name", "c")
    outcome = lorakit("adapters", "combine", "a", "b", *flags)
    assert outcome.code == 2
    assert "a weight of a@1 is for 'q_porj'" in outcome.err
    assert "did you mean 'q_proj'" in outcome.err
    assert "objects" not in outcome.err


def test_an_adapter_that_is_not_there(lorakit, two, tmp_path):
    outcome = lorakit("adapters", "combine", two[0], "nothing", "--out", tmp_path / "c")
    assert outcome.code == 2
    assert "nothing" in outcome.err


def test_extract(lorakit, two, model_folder, tmp_path):
    from lorakit import load_adapter

    model, _ = load_model(str(model_folder), dtype="float32")
    load_adapter(model, two[0])
    tuned = merged_model(model)
    with torch.no_grad():
        tuned.model.norm.weight += 0.01
    tuned.save_pretrained(tmp_path / "tuned")
    tokenizer().save_pretrained(tmp_path / "tuned")
    outcome = lorakit(
        *("adapters", "extract", "--base", model_folder, "--tuned", tmp_path / "tuned"),
        *("--rank", 4, "--out", tmp_path / "e"),
    )
    assert outcome.code == 0, outcome.err
    assert Q in outcome.out
    assert "is not in the adapter: model.norm.weight (moved by 1.000%)" in outcome.out
    assert "equal in both models, so without a pair: 10 targets" in outcome.out
    torch.testing.assert_close(delta(tmp_path / "e", Q), delta(two[0], Q), rtol=0, atol=1e-5)


def test_shrink_measures_the_loss(lorakit, two, model_folder, rows_file, tmp_path):
    common = ("--model", model_folder, "--data", rows_file)
    outcome = lorakit(
        *("adapters", "shrink", two[0], "--rank", 1, "--out", tmp_path / "s", *common)
    )
    assert outcome.code == 0, outcome.err
    assert "rank 1: 416 parameters instead of 1,664" in outcome.out
    losses = []
    for i, folder in enumerate((two[0], tmp_path / "s")):
        out = tmp_path / f"eval{i}"
        command = ("eval", *common, "--adapter", folder, "--metrics", "none", "--out", out)
        assert lorakit(*command).code == 0
        losses.append(json.loads((out / "result.json").read_text())["eval_loss"])
    assert losses[0] != losses[1]
    assert f"held-out loss: {losses[0]:.4f} before, {losses[1]:.4f} after" in outcome.out
    metrics = read_stored(tmp_path / "s").record.provenance["metrics"]
    assert metrics["eval_loss_of_parent"] == pytest.approx(losses[0], rel=1e-6)
    assert metrics["eval_loss"] == pytest.approx(losses[1], rel=1e-6)


def test_shrink_without_rows_says_what_energy_is_not(lorakit, two, tmp_path):
    outcome = lorakit("adapters", "shrink", two[0], "--energy", 0.5, "--out", tmp_path / "s")
    assert outcome.code == 0, outcome.err
    assert "energy kept" in outcome.out
    assert "energy does not say how the completions change" in outcome.out


def test_merge_several_and_undo(lorakit, two, model_folder, tmp_path):
    a, b = two
    merged = tmp_path / "merged"
    outcome = lorakit(
        *("merge", "--model", model_folder, "--out", merged),
        *("--adapter", f"{a}:0.7", "--adapter", f"{b}:0.3"),
    )
    assert outcome.code == 0, outcome.err
    assert "weights read back: 4 merged tensors" in outcome.out
    base = tiny("llama").state_dict()[f"{Q}.weight"].double()
    found = load_model(str(merged), dtype="float32")[0].state_dict()[f"{Q}.weight"]
    wanted = base + 0.7 * delta(a, Q) + 0.3 * delta(b, Q)
    assert torch.equal(found, wanted.float())
    back = tmp_path / "back"
    outcome = lorakit("merge", "--undo", merged, "--model", model_folder, "--out", back)
    assert outcome.code == 0, outcome.err
    file = "model.safetensors"
    assert (back / file).read_bytes() == (model_folder / file).read_bytes()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--out", "x"), "give --adapter"),
        (("--adapter", "a"), "give --out"),
        (
            ("--undo", "m", "--adapter", "a", "--out", "x"),
            "leave --adapter, --quantize and --full-base out",
        ),
    ],
)
def test_what_merge_cannot_do(lorakit, model_folder, flags, words):
    outcome = lorakit("merge", "--model", model_folder, *flags)
    assert outcome.code == 2
    assert words in outcome.err
