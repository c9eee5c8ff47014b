"""`lorakit train --from`: the parent is a candidate, and nothing worse becomes current by itself."""

import json
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorakit.adapters.store import Store


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    return Store()


@pytest.fixture
def rows(tmp_path):
    """Writes a file of rows: what is said is answered backwards, or in another way."""

    def write(name: str, words: str, answer=lambda word: word[::-1]) -> Path:
        file = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": f"say {word}", "completion": answer(word)} for word in words.split()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return file

    return write


OLD = "lamp desk river stone cloud paper window garden copper violet silver orange"
NEW = "bread mirror ladder candle"


@pytest.fixture
def go(lorakit, model_folder, tmp_path):
    """`lorakit train` on the tiny model, without answers to prompts."""

    def call(*flags, data, out, steps=4):
        return lorakit(
            *("train", "--model", model_folder, "--data", data, "--out", tmp_path / out),
            *("--samples", 0, "--batch-size", 4, "--max-steps", steps, *flags),
        )

    return call


@pytest.fixture
def parent(go, rows) -> Path:
    """travel@1, whose own held-out rows can be read again."""
    file = rows("old", OLD)
    flags = ("--eval-data", file, "--save-as", "travel", "--rank", 4, "--learning-rate", 0.01)
    outcome = go(*flags, data=file, out="parent", steps=30)
    assert outcome.code == 0, outcome.err
    return file


def result(tmp_path: Path, out: str) -> dict:
    return json.loads((tmp_path / out / "result.json").read_text())


def tensors(folder: Path) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def last_line(outcome, begin: str) -> list[str]:
    """The command that a note ends with."""
    said = " ".join(outcome.out.replace("│", " ").split())
    assert begin in said, said
    words = shlex.split(said[said.index(begin) :].split(": lorakit ", 1)[1])
    end = next((i for i, word in enumerate(words) if word in ("note:", "report:")), len(words))
    return words[:end]


def test_rows_of_the_same_kind_leave_it_no_worse(parent, go, rows, store, tmp_path):
    new = rows("new", NEW)
    outcome = go("--from", "travel", "--eval-data", new, "--save-as", "travel", data=new, out="on")
    assert outcome.code == 0, outcome.err
    after = result(tmp_path, "on")
    assert after["eval_loss"] <= after["eval_loss_before"]
    found = after["probe"]
    losses = {rate: loss for rate, loss in found["losses"] if loss is not None}
    assert found["learning_rate"] == min(losses, key=losses.get) == after["learning_rate"]
    parents = after["against_parent"]["parent_rows"]
    assert parents["rows"] == len(OLD.split())
    assert parents["before"] == pytest.approx(result(tmp_path, "parent")["eval_loss"], rel=1e-5)
    # It is current where it is no worse on either rows, and beside the current one otherwise.
    better = after["against_parent"]["verdict"] == "better"
    assert after["current"] == better
    assert str(store.resolve("travel")) == ("travel@2" if better else "travel@1")


def test_what_ruins_the_parent_is_stored_beside_it(parent, go, rows, store, lorakit, tmp_path):
    # Good on its own rows, which contradict the parent's: only the parent's rows can tell.
    other = rows("other", OLD, answer=lambda word: word.upper())
    flags = ("--from", "travel", "--eval-data", other, "--learning-rate", 0.02)
    outcome = go(*flags, "--save-as", "travel", data=other, out="on", steps=20)
    assert outcome.code == 0, outcome.err
    after = result(tmp_path, "on")
    own, parents = after["against_parent"]["own_rows"], after["against_parent"]["parent_rows"]
    assert own["after"] < own["before"]
    assert parents["after"] > 1.5 * parents["before"]
    assert (after["saved_as"], after["current"]) == ("travel@2", False)
    assert str(store.resolve("travel")) == "travel@1"
    assert [str(entry) for entry in store.history("travel")] == ["travel@1", "travel@2"]
    assert "stored:" not in outcome.out
    line = last_line(outcome, "travel stays travel@1")
    assert lorakit(*line).code == 0
    assert str(store.resolve("travel")) == "travel@2"


def test_the_last_step_may_be_worse_on_its_own_rows(parent, go, rows, store, lorakit, tmp_path):
    new = rows("new", NEW)
    held = rows("held", "walnut marble")
    flags = ("--from", "travel", "--eval-data", held, "--keep", "last", "--learning-rate", 0.5)
    outcome = go(*flags, "--save-as", "fresh-name", data=new, out="on", steps=6)
    assert outcome.code == 0, outcome.err
    after = result(tmp_path, "on")
    assert after["against_parent"]["verdict"] == "worse"
    assert (after["saved_as"], after["current"]) == (None, False)
    assert [entry.name for entry in store.list()] == ["travel"]
    assert lorakit(*last_line(outcome, "not stored")).code == 0
    assert str(store.resolve("fresh-name")) == "fresh-name@1"


def test_a_run_that_finds_nothing_better_is_the_parent(parent, go, rows, store, tmp_path):
    held = rows("held", OLD)
    noise = rows("noise", NEW, answer=lambda word: "0 0 0 0")
    flags = ("--from", "travel", "--eval-data", held, "--learning-rate", 0.5, "--warmup", 0)
    outcome = go(*flags, "--save-as", "travel", data=noise, out="on", steps=4)
    assert outcome.code == 0, outcome.err
    after = result(tmp_path, "on")
    assert after["best_step"] == 0
    assert after["eval_loss"] == after["eval_loss_before"]
    before = tensors(store.resolve("travel@1").folder)
    assert all(torch.equal(t, before[n]) for n, t in tensors(tmp_path / "on/adapter").items())
    assert after["saved_as"] is None
    assert [str(entry) for entry in store.history("travel")] == ["travel@1"]
    assert "no step was better than travel@1" in " ".join(outcome.out.split())


def test_a_fresh_run_that_learns_nothing_replaces_nothing(go, parent, rows, store, tmp_path):
    held = rows("held", OLD)
    noise = rows("noise", NEW, answer=lambda word: "0 0 0 0")
    flags = ("--eval-data", held, "--learning-rate", 5, "--warmup", 0, "--save-as", "travel")
    outcome = go(*flags, data=noise, out="fresh", steps=2)
    assert outcome.code == 0, outcome.err
    after = result(tmp_path, "fresh")
    assert after["best_step"] == 0
    assert str(store.resolve("travel")) == "travel@1"
    assert not any(t.any() for n, t in tensors(tmp_path / "fresh/adapter").items() if "_B" in n)
    assert "no step was better than the base" in " ".join(outcome.out.split())


def test_moments_go_with_the_adapter_and_only_with_it(parent, go, rows, store, tmp_path):
    entry = store.resolve("travel")
    file = entry.folder / "optimizer.safetensors"
    held = load_file(file)
    assert int(held["steps"]) == result(tmp_path, "parent")["best_step"]
    names = {name.rsplit(".", 1)[0] for name in held if name.endswith(".exp_avg_sq")}
    assert names == set(tensors(entry.folder))
    assert any(held[f"{name}.exp_avg_sq"].any() for name in names)
    new = rows("new", NEW)
    # A file of other tensors is not used, and that is said.
    copy = tmp_path / "copy"
    shutil.copytree(entry.folder, copy)
    wrong = tmp_path / "parent" / "adapter"
    for case, change in (("gone", None), ("damaged", b"no tensors"), ("whole", b"")):
        if change is None:
            (copy / file.name).unlink()
        else:
            (copy / file.name).write_bytes(change or (wrong / file.name).read_bytes())
        flags = ("--from", copy, "--eval-data", new, "--learning-rate", 1e-4)
        outcome = go(*flags, data=new, out=case, steps=2)
        assert outcome.code == 0, outcome.err
        said = any(
            "moments of the optimizer begin anew" in n for n in result(tmp_path, case)["notes"]
        )
        assert said == (case == "damaged")
    losses = [result(tmp_path, case)["eval_loss"] for case in ("gone", "damaged", "whole")]
    assert losses[0] == losses[1] != losses[2]


class TestRepeat:
    def test_a_recorded_run_stores_nothing(self, parent, go, lorakit, store, tmp_path):
        recorded = tmp_path / "parent" / "config.yaml"
        assert "save_as:" not in [line.split(" ")[0] for line in recorded.read_text().splitlines()]
        assert "--save-as" in recorded.read_text()
        again = lorakit("train", recorded, "--out", tmp_path / "again", "--max-steps", 2)
        assert again.code == 0, again.err
        assert "is not repeated" in " ".join(again.err.split())
        assert [str(entry) for entry in store.history("travel")] == ["travel@1"]
        assert result(tmp_path, "again")["saved_as"] is None
        named = ("--save-as", "travel-again", "--out", tmp_path / "named", "--max-steps", 2)
        assert lorakit("train", recorded, *named).code == 0
        assert "travel-again" in [entry.name for entry in store.list()]

    def test_nor_does_one_that_an_older_version_recorded(self, parent, lorakit, store, tmp_path):
        recorded = tmp_path / "parent" / "config.yaml"
        (tmp_path / "parent" / "resume.yaml").unlink()
        recorded.write_text(recorded.read_text() + "save_as: travel\n")
        again = lorakit("train", recorded, "--out", tmp_path / "again", "--max-steps", 2)
        assert again.code == 0, again.err
        assert "save_as: travel" in again.err
        assert [str(entry) for entry in store.history("travel")] == ["travel@1"]

    def test_a_run_file_of_the_user_stores(self, parent, lorakit, model_folder, store, tmp_path):
        own = tmp_path / "own.yaml"
        own.write_text(
            f"model: {model_folder}\ndata: {parent}\nsave_as: mine\nmax_steps: 2\nsamples: 0\n"
            f"eval_data: {parent}\n"
        )
        for out in ("one", "two"):
            assert lorakit("train", own, "--out", tmp_path / out).code == 0
        assert "mine" in [entry.name for entry in store.list()]

    def test_resuming_stores(self, parent, lorakit, store, tmp_path):
        again = lorakit("train", "--resume", "--out", tmp_path / "parent")
        assert again.code == 0, again.err
        # The record names the command, and the same content would keep its number.
        assert result(tmp_path, "parent")["saved_as"].startswith("travel@")
        assert result(tmp_path, "parent")["current"]

    def test_several_at_once_store_nothing_either(self, rows, go, lorakit, store, tmp_path):
        file = rows("old", OLD)
        flags = ("--ranks", "1,2", "--save-as", "many", "--eval-data", file)
        outcome = go(*flags, data=file, out="many", steps=2)
        assert outcome.code == 0, outcome.err
        before = [str(entry) for entry in store.list()]
        for recorded in ("many/config.yaml", "many/r2/config.yaml"):
            out = tmp_path / f"again-{recorded.replace('/', '-')}"
            outcome = lorakit("train", tmp_path / recorded, "--out", out, "--max-steps", 1)
            assert outcome.code == 0, outcome.err
        assert [str(entry) for entry in store.list()] == before


def test_no_experiment_has_an_option_that_writes_outside():
    from lorakit.comparing import spec as compare
    from lorakit.config import OUTSIDE
    from lorakit.ranking import spec as rank

    for form in (compare.FORM, rank.FORM):
        assert not set(form.options) & set(OUTSIDE)
        assert not {"save_as", "store"} & {field.name for field in fields(form.spec)}
