"""Pushing and pulling, by huggingface_hub's own client against a stand-in of the hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from adapter_models import adapt, tiny_llama
from hub_stand_in import TOKEN, Hub, Repository, serving
from lorakit.adapters import hub as sharing
from lorakit.adapters import read_adapter, save_adapter
from lorakit.adapters.attached import remember_rows
from lorakit.adapters.store import Store
from lorakit.adapters.trained_rows import TRAINED_ROWS, TrainedRows, read_trained_rows
from lorakit.errors import AdapterError, OutputError

FOUR = {"adapter_config.json", "adapter_model.safetensors", "lorakit.json", "README.md"}
NAME = "someone/invoices"


@pytest.fixture
def there(monkeypatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The stand-in has git LFS and not the newer xet; what the client does before is the same.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def saved_adapter(tmp_path_factory) -> Path:
    return save_adapter(adapt(tiny_llama()), tmp_path_factory.mktemp("hub") / "adapter")


def pushed(folder: Path, there: Hub, **options: Any) -> str:
    prepared = sharing.prepare_push(folder, NAME, endpoint=there.address, **options)
    return sharing.push(prepared, endpoint=there.address)


def pulled(there: Hub, folder: Path, **options: Any) -> sharing.Pulled:
    return sharing.pull(NAME, folder, endpoint=there.address, **options)


def test_there_and_back_to_the_byte(there, saved_adapter, tmp_path):
    (saved_adapter / "notes.txt").write_text("stays here")
    address = pushed(saved_adapter, there)
    held = there.repositories[NAME]
    assert held.private
    assert address.endswith(held.sha)
    assert set(held.files) == FOUR
    got = pulled(there, tmp_path / "back")
    assert got.commit == held.sha
    assert {p.name for p in got.folder.iterdir()} == FOUR
    for name in FOUR:
        assert (got.folder / name).read_bytes() == (saved_adapter / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back"]


@pytest.mark.parametrize("private", [True, False])
def test_a_record_of_rows_stays_where_one_owner_sees_it(there, tmp_path, private):
    model = adapt(tiny_llama())
    remember_rows(model, TrainedRows.of(np.array([3, 2**32 - 1], dtype=np.uint32)))
    folder = save_adapter(model, tmp_path / "adapter")
    pushed(folder, there, private=private)
    more = {TRAINED_ROWS} if private else set()
    assert set(there.repositories[NAME].files) == FOUR | more
    back = pulled(there, tmp_path / "back").folder
    assert {p.name for p in back.iterdir()} == FOUR | more
    rows, why = read_trained_rows(back, read_adapter(back).tensors_sha256)
    assert why == ""
    assert (rows.hashes.tolist() if rows else None) == ([3, 2**32 - 1] if private else None)


def test_what_is_said_before_is_what_is_sent(there, saved_adapter):
    prepared = sharing.prepare_push(saved_adapter, NAME, endpoint=there.address)
    assert there.repositories == {}
    sharing.push(prepared, endpoint=there.address)
    sent = {name: len(content) for name, content in there.repositories[NAME].files.items()}
    assert prepared.sizes == sent


def test_a_full_repository_is_left_alone_without_force(there, saved_adapter):
    pushed(saved_adapter, there)
    first = dict(there.repositories[NAME].files)
    with pytest.raises(OutputError, match="holds 4 files already"):
        pushed(saved_adapter, there)
    assert len(there.repositories[NAME].commits) == 2
    pushed(saved_adapter, there, force=True)
    assert len(there.repositories[NAME].commits) == 3
    assert there.repositories[NAME].files == first


def test_nothing_private_goes_into_a_public_repository(there, saved_adapter):
    there.repositories[NAME] = Repository(private=False)
    with pytest.raises(OutputError, match="is public, and so would be this adapter"):
        pushed(saved_adapter, there)
    pushed(saved_adapter, there, private=False)
    assert set(there.repositories[NAME].files) == FOUR


def test_a_broken_adapter_is_not_pushed(there, tmp_path):
    folder = save_adapter(adapt(tiny_llama()), tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(AdapterError, match=r"SHA-256 differs"):
        pushed(folder, there)
    assert there.repositories == {}


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_byte_changed_on_the_way_is_refused(there, saved_adapter, tmp_path, name):
    pushed(saved_adapter, there)
    there.spoil = name
    with pytest.raises(AdapterError, match=f"{name} is not the file that the hub lists"):
        pulled(there, tmp_path / "back")
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_are_not_those_of_the_record_are_refused(there, saved_adapter, tmp_path):
    """The hub lists what was put there, so only lorakit.json can tell."""
    pushed(saved_adapter, there)
    content = bytearray(there.repositories[NAME].files["adapter_model.safetensors"])
    content[-1] ^= 1
    there.repositories[NAME].files["adapter_model.safetensors"] = bytes(content)
    with pytest.raises(AdapterError, match=r"SHA-256 differs.*nothing was kept"):
        pulled(there, tmp_path / "back")
    assert list(tmp_path.iterdir()) == []


def test_code_and_pickles_are_not_fetched(there, saved_adapter, tmp_path):
    pushed(saved_adapter, there)
    there.repositories[NAME].files |= {"modeling.py": b"import os", "optimizer.pt": b"\x80\x02."}
    got = pulled(there, tmp_path / "back")
    assert got.left == ("modeling.py", "optimizer.pt")
    assert {p.name for p in got.folder.iterdir()} == FOUR
    fetched = [path for path in there.asked if "/resolve/" in path]
    assert {path.rsplit("/", 1)[-1] for path in fetched} == FOUR


def test_a_pickled_adapter_is_named(there, tmp_path):
    there.repositories[NAME] = Repository(
        private=False, files={"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x02."}
    )
    with pytest.raises(
        AdapterError, match=r"no adapter_model\.safetensors; adapter_model\.bin is a p"
    ):
        pulled(there, tmp_path / "back")


def test_who_may_not_see_or_write_is_told(there, saved_adapter, tmp_path, monkeypatch):
    with pytest.raises(
        AdapterError, match="there is no someone/invoices on the hub, or it is priv"
    ):
        pulled(there, tmp_path / "back")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(OutputError, match="log in first"):
        pushed(saved_adapter, there)
    with pytest.raises(OutputError, match="must be OWNER/NAME"):
        sharing.prepare_push(saved_adapter, "invoices", endpoint=there.address)


def test_a_hub_that_is_not_there(saved_adapter, tmp_path):
    with pytest.raises(AdapterError, match="cannot be reached"):
        sharing.pull(NAME, tmp_path / "back", endpoint="http://127.0.0.1:9")


def test_the_command_line_against_hf_endpoint(there, saved_adapter, tmp_path):
    """A process of its own, which finds the hub by HF_ENDPOINT as every client does."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": there.address,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }
    back, store = tmp_path / "back", tmp_path / "store"
    commands = [
        ["push", saved_adapter, NAME],
        ["pull", NAME, "--out", back],
        ["push", saved_adapter, NAME],
        ["pull", NAME],
        ["pull", NAME, "--name", "invoices", "--store", store],
        ["push", "invoices", "someone/again", "--public", "--store", store],
    ]
    told = json.dumps([[str(word) for word in command] for command in commands])
    script = (
        "import json, sys; from lorakit.cli.main import run; "
        "print([run(command) for command in json.loads(sys.argv[1])])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, told],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"uploading to {NAME} (private, new)" in done.stdout
    assert "adapter_model.safetensors  " in done.stdout
    assert done.stdout.rstrip().endswith("[0, 0, 2, 2, 0, 0]")
    assert "holds 4 files already" in done.stderr
    assert "say where it goes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not there.repositories["someone/again"].private
    kept = Store(store).checked("invoices").folder / "adapter_model.safetensors"
    assert kept.read_bytes() == (saved_adapter / "adapter_model.safetensors").read_bytes()
    recorded = json.loads((back / "lorakit.json").read_text())
    assert recorded["tensors_sha256"] == read_adapter(saved_adapter).tensors_sha256
