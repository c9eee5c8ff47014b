"""`lorakit adapters …` as a user types it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit.adapters.store import Store


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    return Store()


def refused(outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    said = " ".join(outcome.err.split())
    assert all(part in said for part in parts), said


def said(outcome) -> str:
    assert outcome.code == 0, outcome
    return " ".join(outcome.out.split())


@pytest.fixture(scope="session")
def made(tmp_path_factory, model_folder):
    """Two adapter folders of real runs, the second trained on from the first."""
    from lorakit.cli.main import run

    home = tmp_path_factory.mktemp("made")
    rows = home / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"prompt": "say {c}", "completion": "{c}{c}"}}\n' for c in "abcdefgh")
    )
    common = ["train", "--model", str(model_folder), "--data", str(rows), "--samples", "0"]
    common += ["--max-steps", "3", "--batch-size", "4"]
    first, second = home / "first", home / "second"
    assert run([*common, "--rank", "2", "--targets", "q_proj", "--out", str(first)]) == 0
    more = ["--from", str(first / "adapter"), "--learning-rate", "0.01"]
    assert run([*common, *more, "--out", str(second)]) == 0
    return first / "adapter", second / "adapter"


@pytest.fixture
def adapters(lorakit):
    return lambda *arguments: lorakit("adapters", *arguments)


@pytest.fixture
def filled(adapters, made):
    for folder in made:
        assert adapters("add", folder, "invoices").code == 0
    return adapters


def test_an_adapters_life(adapters, made, store):
    assert "no adapters in" in said(adapters("list"))
    assert "added invoices@1" in said(adapters("add", made[0], "invoices", "--note", "first try"))
    assert "added invoices@2" in said(adapters("add", made[1], "invoices"))
    assert "nothing has changed" in said(adapters("add", made[1], "invoices"))
    table = said(adapters("list"))
    assert "invoices@2" in table
    assert "tiny-llama" in table
    assert "invoices is invoices@1" in said(adapters("rollback", "invoices"))
    assert "invoices is invoices@2" in said(adapters("rollback", "invoices", "--to", 2))
    assert "invoices is called bills@2 now" in said(adapters("rename", "invoices", "bills"))
    log = said(adapters("log", "bills"))
    for part in ("first try", "rollback", "from @2", "rename", "from invoices"):
        assert part in log
    assert "is whole" in said(adapters("verify"))
    assert "removed bills@1" in said(adapters("remove", "bills@1"))
    assert "removed bills (it was bills@2)" in said(adapters("remove", "bills"))
    assert "would remove 0 adapters" in said(adapters("gc", "--dry-run"))
    assert "would remove 2 adapters" in said(adapters("gc", "--dry-run", "--older-than", "0"))
    assert "bills is bills@2" in said(adapters("rollback", "bills"))
    assert "removed 1 adapters" in said(adapters("gc", "--older-than", "0s"))
    assert "is whole" in said(adapters("verify", "bills"))


def test_json_for_scripts(filled, made, store):
    (one,) = json.loads(filled("list", "--json").out)
    assert (one["name"], one["number"], one["ranks"]) == ("invoices", 2, [2, 2])
    assert one["id"] == store.resolve("invoices").version.id
    assert one["base"]["name"] == "tiny-llama"
    assert json.loads(filled("list", "x*", "--json").out) == []
    assert json.loads(filled("list", "inv*", "--base", "tiny-llama", "--json").out) == [one]
    events = json.loads(filled("log", "--json").out)
    assert [(e["action"], e["note"]) for e in events] == [("add", ""), ("add", f"from {made[0]}")]
    shown = json.loads(filled("show", "invoices", "--json").out)
    assert {layer["path"].split(".")[-1] for layer in shown["layers"]} == {"q_proj"}
    assert shown["provenance"]["parents"][0]["name"] == str(made[0])
    differing = json.loads(filled("diff", "invoices@1", "invoices@2", "--json").out)
    assert (differing["a"], differing["b"]) == ("invoices@1", "invoices@2")
    assert len(differing["layers"]) == 2
    assert json.loads(filled("gc", "--json", "--dry-run").out)["versions"] == []
    verified = json.loads(filled("verify", "--json").out)
    assert (verified["whole"], verified["faults"]) == (True, [])


def test_show_tells_where_it_came_from(filled, store):
    shown = said(filled("show", "invoices"))
    first = store.resolve("invoices@1").version
    for part in (
        *("invoices@2", "tiny-llama", "rank 2 on 2 modules", "loss", "rows.jsonl"),
        *(f"comes from invoices@1 {first.short}", "norm of ΔW", "q_proj"),
    ):
        assert part in shown, part


def test_diff_of_a_name_and_a_folder(filled, made):
    told = said(filled("diff", "invoices@2", made[0]))
    assert "overlap in" in told
    assert "run learning rate" in told
    assert "eval loss" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "invoice"),
        ("remove", "invoice"),
        ("rename", "invoice", "x"),
        ("rollback", "invoice"),
        ("log", "invoice"),
        ("verify", "invoice"),
        ("diff", "invoices", "invoice"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_nearest_name_is_named(filled, arguments):
    refused(filled(*arguments), "no adapter 'invoice'", "did you mean 'invoices'?")


def test_bad_input(adapters, filled, made, tmp_path):
    refused(adapters("gc", "--older-than", "soon"), "--older-than is 'soon'", "14d, 12h")
    refused(adapters("add", tmp_path / "none", "x"), "there is no adapter folder")
    refused(adapters("add", tmp_path, "x"), "is no adapter")
    refused(adapters("rollback", "invoices", "--to", 7), "invoices@7 is not in the store")
    refused(adapters("list", "--store", tmp_path), "is no store")
    assert adapters("lst").code == 2


def lose(tensors):
    name = next(iter(tensors))
    del tensors[name]
    return f"lacks {name}"


def invent(tensors):
    name = "base_model.model.lm_head.lora_magnitude_vector"
    tensors[name] = torch.zeros(4)
    return f"lacks {name.replace('magnitude_vector', 'A.weight')}; its pair is there"


def crop(tensors):
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = tensors[name][:1].clone()
    return "is (1, 48), but adapter_config.json says that its rank is 2"


@pytest.mark.parametrize("damage", [lose, invent, crop])
def test_an_adapter_that_is_not_whole_is_not_added(adapters, made, tmp_path, store, damage):
    folder = tmp_path / "broken"
    shutil.copytree(made[0], folder)
    (folder / "lorakit.json").unlink()
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    message = damage(tensors)
    save_file(tensors, file)
    refused(adapters("add", folder, "x"), f"{file}", message)
    assert store.list() == ()


class TestVerify:
    @pytest.mark.parametrize(
        "name", ["adapter_model.safetensors", "adapter_config.json", "lorakit.json", "README.md"]
    )
    def test_a_changed_byte_is_named(self, filled, store, name):
        path = store.resolve("invoices").folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        outcome = filled("verify")
        assert outcome.code == 1
        told = " ".join(outcome.out.split())
        assert "fault: invoices@2" in told
        assert name in told
        assert filled("verify", "invoices@1").code == 0

    @pytest.fixture
    def moved(self, lorakit, tmp_path, model_folder, rows_file):
        """A base of its own to change, and an adapter of it in the store."""
        base = tmp_path / "base"
        shutil.copytree(model_folder, base)
        outcome = lorakit(
            *("train", "--model", base, "--data", rows_file, "--out", tmp_path / "run"),
            *("--max-steps", 1, "--samples", 0, "--save-as", "a"),
        )
        assert outcome.code == 0, outcome.err
        return base

    def ask(self, base):
        return ("generate", "--model", base, "--adapter", "a", "--max-new-tokens", 2, "say lamp")

    def test_one_changed_weight_of_the_base(self, moved, adapters, lorakit):
        assert lorakit(*self.ask(moved)).code == 0
        assert f"base {moved}: the same" in said(adapters("verify"))
        file = moved / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"][3] += 1e-3
        save_file(tensors, file, metadata={"format": "pt"})
        outcome = adapters("verify")
        assert outcome.code == 1
        assert f"a@1: its base {moved} has changed: weights" in " ".join(outcome.out.split())
        assert adapters("verify", "--no-base").code == 0
        refused(lorakit(*self.ask(moved)), "was trained on 'base'", "differs (weights ")

    def test_another_tokenizer(self, moved, adapters, lorakit):
        file = moved / "tokenizer.json"
        raw = json.loads(file.read_text())
        vocabulary = raw["model"]["vocab"]
        (x, i), (y, j) = list(vocabulary.items())[20:22]
        vocabulary[x], vocabulary[y] = j, i
        file.write_text(json.dumps(raw))
        outcome = adapters("verify")
        assert outcome.code == 1
        assert "has changed: tokenizer" in " ".join(outcome.out.split())
        refused(lorakit(*self.ask(moved)), "was trained on 'base'", "differs (tokenizer ")

    def test_a_base_that_is_not_here(self, moved, adapters):
        shutil.rmtree(moved)
        assert "not compared, it is not on this machine" in said(adapters("verify"))


def test_the_list_does_not_wait_for_torch(filled):
    code = (
        "import sys\nfrom lorakit.cli.main import run\n"
        "assert run(['adapters', 'list']) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "invoices@2" in done.stdout
