"""The public names: sorted, importable, never shadowed by a room, and free until they are used."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import lorakit
from lorakit.kernels.gpu import dispatch


def test_all_is_sorted_and_has_no_name_twice():
    assert lorakit.__all__ == sorted(set(lorakit.__all__))
    assert not [name for name in lorakit.__all__ if name.startswith("_")]


@pytest.mark.parametrize("name", lorakit.__all__)
def test_every_name_can_be_imported(name):
    assert getattr(lorakit, name) is not None
    assert not isinstance(getattr(lorakit, name), ModuleType)


def test_dir_shows_the_public_names():
    assert dir(lorakit) == lorakit.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'lorakit' has no attribute 'tarin'"):
        lorakit.tarin  # noqa: B018


def test_no_submodule_shadows_a_public_name():
    before = {name: getattr(lorakit, name) for name in lorakit.__all__}
    names = [module.name for module in pkgutil.walk_packages(lorakit.__path__, "lorakit.")]
    assert len(names) > 50
    for name in names:
        # The GPU's kernels are written in a package that the extra `gpu` brings.
        if name.startswith("lorakit.kernels.gpu.") and not dispatch.installed():
            continue
        importlib.import_module(name)
    for name, thing in before.items():
        assert getattr(lorakit, name) is thing, name
    rooms = {m.name for m in pkgutil.iter_modules(lorakit.__path__)}
    assert not rooms & set(lorakit.__all__)
    assert callable(lorakit.train)
    assert not isinstance(lorakit.train, ModuleType)


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after some code."""
    shown = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", shown], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


HEAVY = {"torch", "transformers", "datasets", "numpy", "pydantic", "safetensors", "typer"}


def test_importing_lorakit_imports_nothing_heavy():
    assert not loaded_by("import lorakit; dir(lorakit)") & HEAVY


def test_an_error_class_costs_nothing_either():
    assert not loaded_by("from lorakit.errors import DataError, LorakitError") & HEAVY


def test_a_spec_of_the_method_does_not_import_transformers():
    assert "transformers" not in loaded_by("from lorakit import LoraSpec, attach, plan")


def test_the_list_of_commands_does_not_wait_for_torch():
    code = "from lorakit.cli.main import run\nassert run(['--version']) == 0"
    assert not loaded_by(code) & {"torch", "transformers", "datasets"}
