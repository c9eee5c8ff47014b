"""Programs that no test runs, benchmarks and examples, import only what there is."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = [
    str(path.relative_to(ROOT))
    for folder in ("benchmarks", "examples", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_there_are_programs():
    assert len(PROGRAMS) > 20


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_it_imports_of_lorakit_exists(name):
    missing = []
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "lorakit":
            missing += missing_of(str(node.module), [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            own = [a.name for a in node.names if a.name.split(".")[0] == "lorakit"]
            missing += [each for each in own if importlib.util.find_spec(each) is None]
    assert not missing


def missing_of(module: str, names: list[str]) -> list[str]:
    if module.startswith("lorakit.kernels.gpu.") and importlib.util.find_spec("triton") is None:
        return []
    if importlib.util.find_spec(module) is None:
        return [module]
    there = importlib.import_module(module)
    return [
        f"{module}.{name}"
        for name in names
        if not hasattr(there, name) and importlib.util.find_spec(f"{module}.{name}") is None
    ]
