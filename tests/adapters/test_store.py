"""The store: names, numbers, history; a damaged file; what may be collected."""

import json
import sqlite3
import subprocess
import sys

import pytest
from store_folders import describe, make_folder

from lorakit.adapters.store import Store, collect, content_id, default_path, verify
from lorakit.adapters.store.references import parse
from lorakit.errors import AdapterError, OutputError, StoreError


class Clock:
    now = 1_000_000.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    return Store(tmp_path / "store", describe=describe, clock=clock)


@pytest.fixture
def add(store, tmp_path):
    def put(name, content):
        return store.add(make_folder(tmp_path / "made" / content, content), name).entry

    return put


def listed(store):
    return {entry.name: str(entry) for entry in store.list()}


def content(entry):
    return json.loads((entry.folder / "adapter_config.json").read_text())["content"]


class TestReferences:
    @pytest.mark.parametrize(
        ("text", "taken"),
        [
            ("invoices", ("invoices", None, None)),
            ("invoices@3", ("invoices", 3, None)),
            ("invoices@4F1D", ("invoices", None, "4f1d")),
            ("invoices@12345678", ("invoices", None, "12345678")),
            ("@4f1d", ("", None, "4f1d")),
        ],
    )
    def test_taken_apart(self, text, taken):
        asked = parse(text)
        assert (asked.name, asked.number, asked.prefix) == taken

    @pytest.mark.parametrize("text", ["", "-x", "a b", "a/b", "../a", "a@", "a@0", "a@xyz", "@3"])
    def test_refused(self, text):
        with pytest.raises(StoreError):
            parse(text)


class TestNames:
    def test_an_empty_store(self, store):
        assert store.list() == ()
        assert store.log() == ()
        assert verify(store) == []
        assert collect(store).versions == ()
        assert not store.path.exists()
        with pytest.raises(StoreError, match=r"there is no adapter 'a': the store .* is empty"):
            store.resolve("a")

    def test_kept_beside_the_current_one(self, store, add, tmp_path):
        first = add("invoices", "one")

        def beside(content, name="invoices"):
            folder = make_folder(tmp_path / "beside" / content, content)
            return store.add(folder, name, current=False)

        second = beside("two")
        assert (str(second.entry), second.how, second.entry.current) == (
            "invoices@2",
            "beside",
            False,
        )
        assert listed(store) == {"invoices": "invoices@1"}
        assert "not current: invoices stays @1" in store.log("invoices")[-1].note
        again, own = beside("two"), beside("one")
        assert (str(again.entry), again.how) == ("invoices@2", "beside")
        assert (str(own.entry), own.how, own.entry.current) == (str(first), "unchanged", True)
        assert str(add("invoices", "three")) == "invoices@3"
        assert str(store.rollback("invoices", 2)) == "invoices@2"
        with pytest.raises(StoreError, match="no adapter 'letters'"):
            beside("four", "letters")
        assert listed(store) == {"invoices": "invoices@2"}
        assert verify(store) == []

    def test_added_and_found_again(self, store, add):
        first, second = add("invoices", "one"), add("invoices", "two")
        assert (str(first), str(second)) == ("invoices@1", "invoices@2")
        assert listed(store) == {"invoices": "invoices@2"}
        assert content(store.resolve("invoices")) == "two"
        assert content(store.resolve("invoices@1")) == "one"
        assert content(store.resolve(f"invoices@{first.version.id[:8]}")) == "one"
        assert str(store.resolve(f"@{first.version.id[:8]}")) == f"@{first.version.short}"
        assert [str(e) for e in store.history("invoices")] == ["invoices@1", "invoices@2"]
        assert [e.current for e in store.history("invoices")] == [False, True]

    def test_the_same_content_is_one_version(self, store, add, tmp_path):
        first = add("a", "one")
        again = store.add(tmp_path / "made" / "one", "a")
        assert (again.how, again.entry) == ("unchanged", first)
        assert add("b", "one").version == first.version
        add("a", "two")
        back = store.add(tmp_path / "made" / "one", "a")
        assert (back.how, str(back.entry)) == ("again", "a@1")
        assert len(list((store.path / "objects").glob("*/*"))) == 2
        assert [e.action for e in store.log("a")] == ["add"] * 3

    def test_the_id_is_the_hash_of_the_content_alone(self, add, tmp_path):
        entry = add("a", "one")
        twin = make_folder(tmp_path / "elsewhere", "one")
        assert content_id(twin) == entry.version.id
        (twin / "adapter_config.json").write_text("{}")
        assert content_id(twin) != entry.version.id

    def test_what_is_no_part_of_an_adapter_is_named(self, store, tmp_path):
        folder = make_folder(tmp_path / "made", "one")
        (folder / "optimizer.pt").write_text("x")
        added = store.add(folder, "a")
        assert added.left_out == ("optimizer.pt",)
        assert {p.name for p in added.entry.folder.iterdir()} == {
            *("adapter_config.json", "adapter_model.safetensors")
        }

    def test_a_refused_folder_leaves_nothing(self, store, tmp_path):
        folder = make_folder(tmp_path / "made", "one")
        (folder / "adapter_model.safetensors").write_text("other")
        with pytest.raises(AssertionError):
            store.add(folder, "a")
        with pytest.raises(AdapterError, match="there is no adapter folder"):
            store.add(tmp_path / "none", "a")
        assert list((store.path / "objects").iterdir()) == []
        assert list((store.path / "staging").iterdir()) == []
        assert store.list() == ()

    def test_near_names_are_named(self, store, add):
        add("invoices", "one")
        with pytest.raises(
            StoreError, match=r"no adapter 'invoice' in .*; did you mean 'invoices'"
        ):
            store.resolve("invoice")
        with pytest.raises(StoreError, match=r"invoices@7 is not in the store; invoices has @1 \("):
            store.resolve("invoices@7")

    def test_an_ambiguous_prefix(self, store, add):
        ids = [add("a", str(n)).version.id for n in range(40)]
        # Of forty random ids two begin with the same digit; here the table is asked directly.
        shared = next(d for d in "0123456789abcdef" if sum(i[0] == d for i in ids) > 1)
        with store.index.read() as db, pytest.raises(StoreError, match="more than one version"):
            store._lines(db).by_id(shared)

    def test_roll_back_and_forth(self, store, add):
        for word in ("one", "two", "three"):
            add("a", word)
        assert content(store.rollback("a")) == "two"
        assert content(store.rollback("a")) == "one"
        with pytest.raises(StoreError, match="a@1 is the earliest version"):
            store.rollback("a")
        assert content(store.rollback("a", 3)) == "three"
        assert [(e.action, e.number, e.note) for e in store.log("a")][3:] == [
            ("rollback", 2, "from @3"),
            ("rollback", 1, "from @2"),
            ("rollback", 3, "from @1"),
        ]
        store.rollback("a", 1)
        assert str(add("a", "four")) == "a@4"

    def test_removed_and_brought_back(self, store, add):
        add("a", "one")
        add("a", "two")
        store.remove("a")
        assert store.list() == ()
        with pytest.raises(StoreError, match="'a' was removed; `lorakit adapters rollback a`"):
            store.resolve("a@1")
        assert [e.action for e in store.log("a")] == ["add", "add", "remove"]
        assert str(store.rollback("a")) == "a@2"
        store.remove("a")
        assert str(add("a", "three")) == "a@3"
        assert content(store.resolve("a@1")) == "one"

    def test_one_version_removed(self, store, add):
        add("a", "one")
        add("a", "two")
        with pytest.raises(StoreError, match="a points at a@2: roll it back first"):
            store.remove("a@2")
        store.remove("a@1")
        assert [str(e) for e in store.history("a")] == ["a@2"]
        assert str(add("a", "one")) == "a@1"

    def test_renamed_with_its_history(self, store, add):
        add("a", "one")
        add("a", "two")
        store.rename("a", "b")
        assert listed(store) == {"b": "b@2"}
        assert content(store.resolve("b@1")) == "one"
        with pytest.raises(StoreError, match="'a' is called 'b' now"):
            store.resolve("a")
        assert [(e.name, e.action, e.note) for e in store.log("b")][1:] == [
            ("a", "add", ""),
            ("b", "rename", "from a"),
        ]
        assert str(store.rename("b", "a")) == "a@2"  # and back
        store.rename("a", "b")
        # A number is never given twice: what was a@1 and a@2 is not called so again.
        assert str(add("a", "three")) == "a@3"
        with pytest.raises(StoreError, match="the name 'a' is taken"):
            store.rename("b", "a")
        store.remove("a")
        with pytest.raises(StoreError, match="'a' had an adapter before, whose numbers it keeps"):
            store.rename("b", "a")
        with pytest.raises(StoreError, match="cannot be an adapter's name"):
            store.rename("b", "../b")
        with pytest.raises(StoreError, match="called so already"):
            store.rename("b", "b")

    def test_where_it_is(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "mine"))
        assert Store().path == default_path() == tmp_path / "mine"
        monkeypatch.delenv("LORAKIT_STORE")
        assert default_path().name == "store"

    def test_a_folder_of_something_else(self, tmp_path, clock):
        other = tmp_path / "other"
        other.mkdir()
        (other / "notes.txt").write_text("mine")
        for path, said in [
            (other, r"is no store: it holds notes.txt, and no index.sqlite"),
            (other / "notes.txt", "is a file"),
        ]:
            store = Store(path, describe=describe, clock=clock)
            with pytest.raises(StoreError, match=said):
                store.list()
            with pytest.raises(StoreError, match=said):
                store.add(make_folder(tmp_path / "made", "one"), "a")

    def test_a_store_of_a_newer_format(self, store, add):
        add("a", "one")
        with sqlite3.connect(store.index.path) as db:
            db.execute("PRAGMA user_version = 9")
        db.close()
        with pytest.raises(StoreError, match="is of format 9; use a newer lorakit"):
            store.list()

    def test_a_disk_that_is_full_while_it_copies(self, store, tmp_path, monkeypatch):
        import os

        def full(handle):
            raise OSError(28, "No space left on device")

        folder = make_folder(tmp_path / "made", "one")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            store.add(folder, "a")
        monkeypatch.undo()
        assert store.list() == ()
        assert verify(store) == []


class TestVerify:
    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
    def test_any_changed_byte_is_named(self, store, add, name):
        add("a", "one")
        entry = add("a", "two")
        assert verify(store) == []
        path = entry.folder / name
        whole = path.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            (fault,) = verify(store, ["a"])
            assert fault.where == "a@2"
            assert f"{path} was changed: its SHA-256 is" in fault.what
        assert verify(store, ["a@1"]) == []
        assert [f.where for f in verify(store)] == ["a@2"]

    def test_missing_shorter_and_foreign_files(self, store, add):
        entry = add("a", "one")
        path = entry.folder / "adapter_config.json"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert f"has {len(whole) - 1} bytes; {len(whole)} were stored" in verify(store)[0].what
        path.unlink()
        assert verify(store)[0].what == f"{path} is missing"
        path.write_bytes(whole)
        (entry.folder / "more.txt").write_text("x")
        assert verify(store)[0].what == f"{entry.folder / 'more.txt'} was never stored"

    def test_adding_it_again_mends_it(self, store, add):
        entry = add("a", "one")
        (entry.folder / "adapter_config.json").write_text("{}")
        assert verify(store)
        assert add("a", "one") == entry
        assert verify(store) == []

    def test_a_missing_folder(self, store, add):
        import shutil

        entry = add("a", "one")
        shutil.rmtree(entry.folder)
        assert [str(f) for f in verify(store)] == [f"a@1: {entry.folder} is missing"]

    def test_an_index_that_says_what_cannot_be(self, store, add):
        add("a", "one")
        with sqlite3.connect(store.index.path) as db:
            db.execute("UPDATE lines SET current = 5")
        db.close()
        assert [str(f) for f in verify(store)] == ["index.sqlite: a points at @5, which it has not"]

    def test_a_damaged_index(self, store, add):
        add("a", "one")
        store.index.path.write_bytes(b"no database at all, " * 300)
        with pytest.raises(StoreError, match=r"is damaged .* the adapters themselves lie in"):
            verify(store)


class TestCollect:
    def test_only_what_no_history_needs(self, store, add, clock):
        kept = add("a", "one")
        add("a", "two")
        add("b", "one")
        gone = add("b", "three")
        store.remove("b")
        assert collect(store).versions == ()  # removed just now
        clock.now += 13 * 86_400
        assert collect(store).versions == ()
        clock.now += 2 * 86_400
        dry = collect(store, dry_run=True)
        assert [v.id for v in dry.versions] == [gone.version.id]
        assert dry.size == gone.version.size
        assert gone.folder.is_dir()
        assert collect(store) == dry
        assert not gone.folder.exists()
        assert kept.folder.is_dir()
        assert verify(store) == []
        with pytest.raises(StoreError, match="b was removed, and its content was collected"):
            store.rollback("b")
        assert [e.action for e in store.log("b")] == ["add", "add", "remove", "collect"]
        assert str(add("b", "four")) == "b@3"

    def test_a_dropped_version_at_once(self, store, add):
        old = add("a", "one")
        add("a", "two")
        store.remove("a@1")
        assert [v.id for v in collect(store, older_than=0).versions] == [old.version.id]
        assert str(add("a", "one")) == "a@3"
        assert verify(store) == []

    def test_leftovers_of_dead_processes(self, store, add):
        add("a", "one")
        unfinished = store.path / "staging" / "00ff"
        unfinished.mkdir()
        (unfinished / "adapter_config.json").write_text("{")
        unrecorded = store.path / "objects" / "ab" / ("ab" * 32)
        unrecorded.mkdir(parents=True)
        assert verify(store) == []
        expected = (f"objects/ab/{'ab' * 32}", "staging/00ff")
        assert collect(store, dry_run=True).leftovers == expected
        assert unfinished.is_dir()
        assert collect(store).leftovers == expected
        assert not unfinished.exists()
        assert not unrecorded.exists()
        assert list((store.path / "staging").iterdir()) == []

    def test_a_living_process_keeps_what_it_writes(self, store, add, tmp_path):
        add("a", "one")
        with store.contents.stage(tmp_path / "made" / "one", store.index.write) as staged:
            assert collect(store, older_than=0).leftovers == ()
            assert staged.folder.is_dir()


def test_listing_does_not_wait_for_torch(store, add):
    add("a", "one")
    code = (
        "import sys\nfrom lorakit.adapters.store import Store\n"
        f"print([str(e) for e in Store({str(store.path)!r}).list()], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a@1'] False"
