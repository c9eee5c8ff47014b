"""`lorakit merge` and `lorakit export`, hit at any write, leave all of their output or none."""

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from harness import Command, check_faults, hashes
from transformers import AutoModelForCausalLM

from lorakit.adapters.pairs import read_stored

MERGE = ("merge", "--model", "model", "--adapter", "adapter", "--out", "made")
EXPORT = ("export", "adapter", "--model", "model", "--to")


def test_a_merged_model_is_there_whole_or_not_at_all(warm, trained, tmp_path, how):
    check(MERGE, "made", loads_in_transformers, warm, trained, tmp_path, how)


@pytest.mark.parametrize("form", ["peft", "vllm"])
def test_an_exported_folder_is_there_whole_or_not_at_all(warm, trained, tmp_path, how, form):
    argv = (*EXPORT, form, "--out", "made")
    check(argv, "made", read_stored, warm, trained, tmp_path, how, most=4)


def test_an_exported_file_is_there_whole_or_not_at_all(warm, trained, tmp_path, how):
    argv = (*EXPORT, "gguf", "--out", "made.gguf")
    check(argv, "made.gguf", gguf.GGUFReader, warm, trained, tmp_path, how, most=4)


def check(
    argv: tuple[str, ...],
    made: str,
    load: Callable[[Path], object],
    warm,
    trained: Path,
    place: Path,
    how: str,
    most: int = 7,
) -> None:
    """Hit a command that writes one folder or file."""

    def readable(folder: Path) -> None:
        if (folder / made).exists():
            load(folder / made)

    def again(folder: Path) -> list[tuple[str, ...]]:
        """Whoever wants it once more removes what is there whole: it is never written over."""
        if (folder / made).is_dir():
            shutil.rmtree(folder / made)
        (folder / made).unlink(missing_ok=True)
        return [argv]

    command = Command(
        argv,
        trained,
        readable,
        content=lambda folder: hashes(folder / made),
        again=again,
        changes=("cache",),
    )
    check_faults(command, warm, place, how, most=most)


def loads_in_transformers(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder)
