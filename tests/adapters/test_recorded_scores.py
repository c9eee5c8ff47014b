"""Scores that stay with an adapter, how it is listed by them, and what was removed coming back."""

import json

import pytest

from adapter_models import adapt, tiny_llama
from lorakit.adapters import save_adapter
from lorakit.adapters.measurements import (
    FILE,
    Measurement,
    add_measurement,
    headline,
    read_measurements,
)
from lorakit.adapters.store import Store, collect, content_id, store_of, verify
from lorakit.cli.adapters.common import cells
from lorakit.cli.main import run
from lorakit.data import Template
from lorakit.errors import AdapterError, StoreError
from lorakit.models.fingerprint import BaseIdentity
from lorakit.serving.catalog import Catalog


def measured(value=0.875, at=1_700_000_000.0, name="accuracy", **more):
    return Measurement(
        at, ("test.csv",), "ab" * 32, 40, name, {name: value}, {name: (0.75, 0.975)}, **more
    )


class Folders:
    """Whole adapters of one tiny base, each seed another."""

    def __init__(self, place):
        self.place = place

    def make(self, seed=1):
        model = adapt(tiny_llama(), targets=("q_proj",), alpha=8.0 * seed)
        return save_adapter(model, self.place / f"adapter-{seed}", overwrite=True)


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_recorded_score_leaves_the_version_as_it_is(store, folders):
    entry = store.add(folders.make(), "invoices").entry
    store.record(entry.version.id, measured())
    store.record(entry.version.id, measured())
    (kept,) = store.measurements()[entry.version.id]
    assert kept == measured()
    assert store.resolve("invoices").version == entry.version
    assert verify(store) == []
    assert store_of(entry.folder).path == store.path.resolve()
    with pytest.raises(StoreError, match="no version"):
        store.record("0" * 64, measured())


def test_of_a_folder_they_stand_beside_and_go_into_the_store_with_it(store, folders):
    folder = folders.make()
    before = content_id(folder)
    add_measurement(folder, before, measured(0.5))
    add_measurement(folder, before, measured(0.75, at=1_700_000_001.0))
    assert content_id(folder) == before
    assert [one.scores["accuracy"] for one in read_measurements(folder, before)] == [0.5, 0.75]
    added = store.add(folder, "invoices")
    assert added.left_out == ()
    assert len(store.measurements()[added.entry.version.id]) == 2
    assert read_measurements(folder, "another content") == (), "the folder was written anew"
    (folder / FILE).write_text("{")
    with pytest.raises(AdapterError, match="is broken"):
        read_measurements(folder, before)


def test_they_go_with_the_content(store, folders):
    entry = store.add(folders.make(), "invoices").entry
    store.record(entry.version.id, measured())
    store.remove("invoices")
    collect(store, older_than=0)
    assert store.measurements() == {}


@pytest.mark.parametrize(
    ("metrics", "name", "later", "wanted"),
    [
        # As the issue has it: BLEU and chrF come first by the alphabet, and were kept in points.
        ({"scores.bleu": 0.0, "scores.chrf": 93.1, "scores.exact_match": 1.0, "scores.f1": 1.0}, "",
         (), "token F1 1.000"),
        ({"scores.bleu": 0.1, "scores.exact_match": 0.875}, "exact_match", (), "exact match 0.875"),
        ({"scores.chrf": 93.1}, "", (), "chrF 0.931"),
        ({"eval_loss": 0.25}, "", (), "loss 0.2500"),
        ({"scores.accuracy": 0.5}, "accuracy", (measured(0.7), measured(0.9)), "accuracy 0.900"),
        ({"scores.accuracy": 0.5}, "accuracy", (measured(0.9, name=""),), "accuracy 0.500"),
    ],
)  # fmt: skip
def test_one_score_is_the_headline(metrics, name, later, wanted):
    assert str(headline(metrics, name, later)) == wanted


def test_nothing_measured_has_no_headline():
    assert headline({}) is None


@pytest.fixture
def listed(store, folders, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("a", "a-rather-long-name-of-a-task"):
        for seed in (1, 2):
            entry = store.add(folders.make(seed=seed), name).entry
    store.record(entry.version.id, measured())

    def call(*arguments):
        capfd.readouterr()
        code = run([str(a) for a in (*arguments, "--store", store.path)])
        return code, capfd.readouterr().out

    return call


def test_the_list_has_one_line_an_adapter_and_cuts_nothing(listed):
    code, out = listed("adapters", "list")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert "…" not in out
    assert lines[0].split() == ["adapter", "base", "rank", "best", "measure", "date"]
    assert lines[2].startswith("a-rather-long-name-of-a-task@2 ")
    assert "accuracy 0.875" in lines[2]
    assert "2023-11-1" in lines[2], "the date of the measure"
    wide = listed("adapters", "list", "--wide")[1]
    assert "parameters" in wide


def test_json_of_the_list_has_the_same_headline(listed):
    told = json.loads(listed("adapters", "list", "--json")[1])
    assert told[1]["headline"]["value"] == 0.875
    assert told[1]["headline"]["low"] == 0.75
    assert told[1]["measured"][0]["data"] == ["test.csv"]


def test_show_diff_and_log_never_cut_a_name(listed):
    for arguments in (
        ("show", "a-rather-long-name-of-a-task"),
        ("diff", "a-rather-long-name-of-a-task@1", "a-rather-long-name-of-a-task@2"),
        ("log", "a-rather-long-name-of-a-task"),
    ):
        code, out = listed("adapters", *arguments)
        assert code == 0
        assert "…" not in out
        assert "a-rather-long-name-of-a-task@2" in out
    shown = listed("adapters", "show", "a-rather-long-name-of-a-task")[1]
    assert "accuracy 0.875 (0.750 to 0.975)" in shown
    assert "40 rows of test.csv abababababab" in shown


def test_a_removed_version_comes_back_until_it_is_collected(store, folders, listed):
    code, out = listed("adapters", "remove", "a@1")
    assert code == 0
    assert "`lorakit adapters rollback a --to 1`" in out
    with pytest.raises(StoreError, match=r"a@1 was removed; `lorakit adapters rollback a --to 1`"):
        store.resolve("a@1")
    assert listed("adapters", "rollback", "a", "--to", "1")[0] == 0
    assert str(store.resolve("a")) == "a@1"
    assert [str(entry) for entry in store.history("a")] == ["a@1", "a@2"]
    store.rollback("a", 2)
    store.remove("a@1")
    assert collect(store, older_than=0).versions == (), "the other name has the same content"
    store.remove("a-rather-long-name-of-a-task")
    collect(store, older_than=0)
    with pytest.raises(StoreError, match="a@1 is not in the store"):
        store.rollback("a", 1)


def test_a_removed_version_comes_back_by_its_id_and_after_its_name(store, folders):
    first = store.add(folders.make(seed=1), "a").entry
    store.add(folders.make(seed=2), "a")
    store.remove("a@1")
    store.remove("a")
    assert str(store.rollback("a")) == "a@2"
    assert str(store.rollback("a", first.version.id[:12])) == "a@1"


def test_the_only_version_is_not_to_be_rolled_back(store, folders):
    store.add(folders.make(), "a")
    with pytest.raises(StoreError, match=r"a points at a@1: remove a$"):
        store.remove("a@1")


def test_the_list_of_models_has_the_headline_of_the_list_of_adapters(store, folders):
    entry = store.add(folders.make(), "invoices").entry
    beside = folders.make(seed=2)
    add_measurement(beside, content_id(beside), measured(0.25))
    base = BaseIdentity("base", None, entry.version.summary.base.get("weights_sha256"), "", "")
    catalog = Catalog("base", base, Template("raw"), None, store=store, folders={"beside": beside})
    assert next(card.headline for card in catalog.list()) is None
    store.record(entry.version.id, measured())
    told = {card.name: card.headline for card in catalog.list()}
    assert told["invoices"]["text"] == "accuracy 0.875"
    assert told["invoices"]["text"] == cells(entry, store.measurements()[entry.version.id])[3]
    assert told["beside"]["value"] == 0.25
