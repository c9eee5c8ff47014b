"""Names of the store where an adapter is asked for, and training that goes on from one."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lorakit.adapters.store import Store, content_id, verify
from lorakit.config import load_config
from lorakit.errors import InterruptedRunError, OutputError
from lorakit.run.commands.training import run_training


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    return Store()


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def refused(outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome
    said = " ".join(outcome.err.split())
    assert all(part in said for part in parts), said


@pytest.fixture
def first(train, rows_file, tmp_path) -> Path:
    """A run whose adapter is invoices@1, measured on the rows that it learns."""
    out = tmp_path / "first"
    flags = ("--save-as", "invoices", "--max-steps", 12, "--learning-rate", 0.01)
    flags = (*flags, "--eval-data", rows_file)
    outcome = train(*flags, out=out)
    assert outcome.code == 0, outcome.err
    assert "invoices@1" in outcome.out
    return out


def test_training_saves_under_a_name(first, store):
    (entry,) = store.list()
    assert str(entry) == result(first)["saved_as"] == "invoices@1"
    assert entry.version.id == content_id(first / "adapter")
    assert entry.version.summary.metrics["eval_loss"] == result(first)["eval_loss"]
    assert entry.version.summary.base_name == "tiny-llama"
    assert verify(store) == []


def test_a_bad_name_stops_before_training(train, tmp_path):
    refused(train("--save-as", "in/voices"), "'in/voices' cannot be an adapter's name")
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    refused(train("--save-as", "a", "--store", tmp_path / "other"), "is no store", "notes.txt")
    assert not (tmp_path / "run").exists()


def test_a_name_does_what_the_folder_does(first, lorakit, model_folder, rows_file, tmp_path):
    measure = ("eval", "--model", model_folder, "--data", rows_file, "--metrics", "none")
    losses = {}
    for number, adapter in enumerate(["invoices", "invoices@1", first / "adapter"]):
        out = tmp_path / f"eval-{number}"
        outcome = lorakit(*measure, "--adapter", adapter, "--out", out)
        assert outcome.code == 0, outcome.err
        losses[adapter] = result(out)["eval_loss"]
    assert len(set(losses.values())) == 1
    ask = ("generate", "--model", model_folder, "--max-new-tokens", 6, "say lamp", "--adapter")
    assert lorakit(*ask, "invoices").out == lorakit(*ask, first / "adapter").out
    refused(lorakit(*ask, "invoice"), "no adapter 'invoice'", "did you mean 'invoices'", "folder")
    refused(lorakit(*ask, "invoices@2"), "invoices@2 is not in the store; invoices has @1")
    refused(lorakit(*ask, "./invoices"), "there is no adapter folder")


def test_a_path_that_exists_wins(first, lorakit, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "invoices").mkdir()
    ask = ("generate", "--model", model_folder, "--max-new-tokens", 2, "say lamp", "--adapter")
    refused(lorakit(*ask, "invoices"), "invoices is no adapter: it has no adapter_config.json")


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "lorakit.json", "README.md"]
)
def test_a_changed_byte_of_any_stored_file_is_refused(first, store, lorakit, model_folder, name):
    path = store.resolve("invoices").folder / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    ask = ("generate", "--model", model_folder, "--max-new-tokens", 2, "say lamp", "--adapter")
    refused(lorakit(*ask, "invoices"), "invoices@1 is not what was stored", name, "was changed")


class TestFrom:
    def test_it_goes_on_where_the_parent_ended(self, first, train, rows_file, tmp_path, store):
        second = tmp_path / "second"
        flags = ("--max-steps", 12, "--learning-rate", 0.01, "--save-as", "invoices")
        flags = (*flags, "--eval-data", rows_file)
        outcome = train("--from", "invoices", *flags, out=second)
        assert outcome.code == 0, outcome.err
        before, after = result(first), result(second)
        assert after["eval_loss_before"] == pytest.approx(before["eval_loss"], rel=1e-6)
        assert after["eval_loss"] < before["eval_loss"]
        assert after["scores_before"] == before["scores_after"]
        assert after["saved_as"] == "invoices@2"
        recorded = json.loads((second / "adapter" / "lorakit.json").read_text())
        (parent,) = recorded["provenance"]["parents"]
        assert parent == after["parent"]
        assert parent["name"] == "invoices@1"
        assert parent["content_sha256"] == content_id(first / "adapter")
        assert dict(store.resolve("invoices").version.summary.parents[0]) == parent

    def test_its_shape_is_the_parents(self, train, lorakit, tmp_path, model_folder, rows_file):
        shape = ("--rank", 4, "--alpha", 3, "--targets", "q_proj,up_proj", "--layers", "1")
        assert train(*shape, "--save-as", "small").code == 0
        common = ("train", "--model", model_folder, "--data", rows_file, "--max-steps", 2)
        quiet = ("--samples", 0, "--from", "small")
        for number, flags in enumerate([(), ("--dropout", 0.25), shape]):
            out = tmp_path / f"next-{number}"
            outcome = lorakit(*common, *quiet, *flags, "--out", out)
            assert outcome.code == 0, outcome.err
            config = json.loads((out / "adapter" / "adapter_config.json").read_text())
            assert (config["r"], config["lora_alpha"]) == (4, 3)
            assert config["lora_dropout"] == (0.25 if "--dropout" in flags else 0.0)
            names = load_file(out / "adapter" / "adapter_model.safetensors")
            assert {name.split(".")[4] for name in names} == {"1"}
            assert {name.split(".")[6] for name in names} == {"q_proj", "up_proj"}
        for flag, value, has in [
            ("--rank", 8, "rank is 8, and small@1, which the run goes on from, has 4"),
            ("--alpha", 32, "alpha is 32.0"),
            ("--targets", "all-linear", "targets is all-linear"),
            ("--layers", "0", "layers is 0"),
            ("--rslora", "", "rslora is True"),
            ("--dora", "", "dora is True"),
            ("--init", "gaussian", "init is gaussian"),
        ]:
            flags = (flag, value) if value != "" else (flag,)
            out = tmp_path / "refused"
            refused(lorakit(*common, *quiet, *flags, "--out", out), has, "without --from")
            assert not out.exists()

    def test_the_run_file_pins_the_version(self, first, train, lorakit, tmp_path):
        second, again = tmp_path / "second", tmp_path / "again"
        assert train("--from", "invoices", "--save-as", "invoices", out=second).code == 0
        assert "from: invoices@1\n" in (second / "config.yaml").read_text()
        outcome = lorakit("train", second / "config.yaml", "--out", again)
        assert outcome.code == 0, outcome.err
        files = [run / "adapter" / "adapter_model.safetensors" for run in (second, again)]
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_another_base_is_refused(self, first, train, tmp_path):
        from families import tiny, tokenizer

        other = tmp_path / "other"
        tiny("llama", seed=1).save_pretrained(other)
        tokenizer().save_pretrained(other)
        refused(
            train("--from", "invoices", "--model", other, out=tmp_path / "second"),
            "was trained on 'tiny-llama', and this base is 'other'",
        )
        assert not (tmp_path / "second").exists()

    @pytest.mark.parametrize("asked", [3, 15])  # within the probe of the rate, and after it
    def test_interrupted_and_resumed_to_the_same_bits(
        self, first, model_folder, rows_file, tmp_path, asked
    ):
        parent = tmp_path / "parent"
        shutil.copytree(first / "adapter", parent)

        def config(out, **more):
            flags = {"model": str(model_folder), "data": (str(rows_file),), "from": str(parent)}
            steps = {"batch_size": 2, "max_steps": 8, "checkpoint_every": 2, "samples": 0}
            return load_config(None, flags | steps | {"out": str(out)} | more)

        run_training(config(tmp_path / "whole"))
        seen = []

        def stop():
            seen.append(1)
            return len(seen) >= asked

        with pytest.raises(InterruptedRunError):
            run_training(config(tmp_path / "cut"), should_stop=stop)
        moved = shutil.move(parent, tmp_path / "moved")
        parent = Path(moved)  # found by its content, wherever it lies
        run_training(config(tmp_path / "cut", resume=True))
        files = [tmp_path / run / "adapter/adapter_model.safetensors" for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()
        seen.clear()
        asked = 15
        with pytest.raises(InterruptedRunError):
            run_training(config(tmp_path / "cut2"), should_stop=stop)
        parent = tmp_path / "whole" / "adapter"
        with pytest.raises(OutputError, match="was made with other data, model or settings"):
            run_training(config(tmp_path / "cut2", resume=True))
