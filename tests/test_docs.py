"""The documents against what is there: links, the tree of the house, names of fields."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from lorakit.data import Template
from lorakit.evaluation.metrics import METRICS
from lorakit.forecast import Forecast
from lorakit.run.machine import VERSIONS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorakit"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
RESULTS = ROOT / "docs" / "results.md"
TREES = [page for page in (ROOT / "README.md", ROOT / "docs" / "architecture.md") if page.exists()]

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Text and target of every link to something in the repository."""
    for text, target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            yield text, target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for text, target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"[{text}]({target}): no such file"
        if anchor:
            assert anchor in anchors(there), f"[{text}]({target}): no such heading"


def test_the_readme_stays_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 180, "what is measured goes to docs/measured.md, the rest to its own page"


def defined_in(path: Path) -> set[str]:
    """Names of functions, classes and constants of a module, methods as Class.method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = (n for n in node.body if isinstance(n, ast.FunctionDef))
            found |= {f"{node.name}.{n.name}" for n in inside}
        if isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_function_that_is_pointed_to_is_in_that_file(page):
    for text, target in links(page):
        if target.endswith(".py") and re.fullmatch(r"`[\w.]+`", text) and ".py" not in text:
            name = text.strip("`")
            assert name in defined_in(page.parent / target), f"{target} has no {name}"


def tree(page: Path) -> str | None:
    """The block that draws the house, None where a page has none."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return next((b for b in blocks if b.split("\n", 2)[1].startswith("src/lorakit/")), None)


def drawn(block: str) -> set[Path]:
    """Files and folders that a tree names: what begins a line, up to the phrase beside it.

    The phrase stands two spaces apart. A name lies in the nearest folder above with less indent;
    files may also be listed right after their folder, in its line.
    """
    found, above = set(), {}
    for line in block.splitlines()[1:-1]:
        indent = len(line) - len(line.lstrip())
        parent = outer = next((above[i] for i in sorted(above, reverse=True) if i < indent), ROOT)
        listed, *beside = re.split(r" {2,}", line.strip())
        names = listed.split() + (beside[0].split() if beside and listed.endswith("/") else [])
        first = True
        for name in names:
            if not (name.endswith("/") or re.fullmatch(r"[\w.]+\.\w+", name)):
                break
            # Folders of one line lie side by side; files after a folder lie in it.
            found.add((outer if name.endswith("/") else parent) / name)
            if first and name.endswith("/"):
                parent /= name
                above = {i: p for i, p in above.items() if i < indent} | {indent: parent}
            first = False
    return found


@pytest.mark.parametrize("page", TREES, ids=name_of)
def test_the_tree_names_what_exists(page):
    block = tree(page)
    if block is None:
        pytest.skip("this page draws no tree")
    missing = sorted(str(p.relative_to(ROOT)) for p in drawn(block) if not p.exists())
    assert not missing


def test_the_tree_of_the_architecture_is_made_of_the_modules():
    spec = importlib.util.spec_from_file_location("house", ROOT / "docs" / "tree.py")
    assert spec is not None
    assert spec.loader is not None
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert house.tree() in page, "python docs/tree.py --write"


def section(heading: str) -> list[str]:
    """Names in the first column of the table under a heading of docs/results.md."""
    text = RESULTS.read_text(encoding="utf-8")
    parts = re.split(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    body = dict(zip(parts[1::2], parts[2::2], strict=True))[heading]
    return re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE)


def parsed(module: str) -> ast.Module:
    return ast.parse((SOURCE / module).read_text(encoding="utf-8"))


def keys(node: ast.Dict) -> list[str]:
    return [k.value for k in node.keys if isinstance(k, ast.Constant)]


def assigned(module: str, variable: str) -> list[str]:
    """Keys of a dict that a module writes to a variable, those added to it later included."""
    found: list[str] = []
    for node in ast.walk(parsed(module)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and target.id == variable:
                assert isinstance(node.value, ast.Dict)
                found += keys(node.value)
            if (
                isinstance(target, ast.Subscript)
                and isinstance(target.value, ast.Name)
                and target.value.id == variable
                and isinstance(target.slice, ast.Constant)
            ):
                found.append(target.slice.value)
    assert found, f"{module} writes no {variable}"
    return found


def dict_with(module: str, key: str) -> list[str]:
    """Keys of the one dict of a module that has this key."""
    made = [keys(n) for n in ast.walk(parsed(module)) if isinstance(n, ast.Dict) if key in keys(n)]
    assert len(made) == 1, f"{module} has {len(made)} dicts with the key {key!r}"
    return made[0]


@pytest.mark.parametrize(
    ("heading", "module"),
    [
        ("result.json of lorakit train", "run/prepared.py"),
        ("result.json of lorakit eval", "run/commands/evaluation.py"),
    ],
)
def test_every_field_of_a_result_is_documented_in_its_order(heading, module):
    assert section(heading) == assigned(module, "result")


def test_the_parts_of_a_result_are_documented():
    assert section("forecast") == [f.name for f in fields(Forecast)]
    assert section("template") == [f.name for f in fields(Template)]
    assert section("versions") == ["python", *VERSIONS]
    assert section("machine") == assigned("run/machine.py", "described")
    assert section("layers") == dict_with("run/prepared.py", "in_features")
    assert sorted(section("Scores")) == sorted(METRICS)


def test_every_field_of_a_comparison_is_documented_in_its_order():
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    body = text.split("## result.json of lorakit compare")[1]
    assert re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE) == returned("summarise")


def returned(function: str) -> list[str]:
    """Keys of the dict that a function of the comparison's summary returns."""
    (made,) = (
        node
        for node in parsed("comparing/summary.py").body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    (last,) = (n.value for n in made.body if isinstance(n, ast.Return))
    assert isinstance(last, ast.Dict)
    return keys(last)


def test_samples_and_answers_are_documented():
    added = re.findall(r'"(\w+_score)"', (SOURCE / "tasks" / "causal_lm.py").read_text("utf-8"))
    assert section("samples.json") == [*dict_with("tasks/causal_lm.py", "before"), *added]
    assert section("answers.jsonl") == dict_with("run/commands/evaluation.py", "origin")


def events() -> dict[str, list[str]]:
    """kind -> keys of every event that the training loop reports."""
    found: dict[str, list[str]] = {}
    modules = [parsed(f"training/{name}.py") for name in ("loop", "course", "joint")]
    for node in (node for module in modules for node in ast.walk(module)):
        if isinstance(node, ast.Dict) and "kind" in keys(node):
            kind = node.values[keys(node).index("kind")]
            assert isinstance(kind, ast.Constant)
            found.setdefault(kind.value, keys(node))
            assert found[kind.value] == keys(node), f"two forms of the event {kind.value!r}"
    return found


def test_every_event_of_the_loop_is_documented():
    reported = events()
    assert {"train", "eval"} <= set(reported)
    assert {kind: section(kind) for kind in reported} == reported


def test_every_file_of_a_run_is_documented():
    written = set(assigned_texts("run/folder.py")) | {"adapter/", "checkpoints/", "report.html"}
    assert written <= set(section("The run folder"))


def assigned_texts(module: str) -> list[str]:
    """File names among the constants of a module."""
    return [
        value.value
        for node in parsed(module).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for value in node.value.elts
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]


# Options of the programs that a page shows beside lorakit.
_OF_OTHERS = {
    *("--no-deps", "--lora", "--max-lora-rank", "--lora-modules", "--chat-template"),
    *("--chat-template-file", "--generation-config", "--jinja", "--override-kv"),
}


def test_no_page_names_an_option_that_is_not_there():
    from lorakit.comparing.spec import CompareSpec
    from lorakit.config import options
    from lorakit.option import options_of
    from lorakit.ranking.spec import RankSpec
    from lorakit.serving.answering.spec import AnswerSpec
    from lorakit.serving.spec import EngineSpec, HttpSpec, RuntimeSpec

    own = {"--help", "--version"}
    for command in [*SOURCE.glob("cli/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        own |= set(re.findall(r'"(--[a-z-]+)[/"]', command.read_text(encoding="utf-8")))
    known = own | {option.flag for option in options()} | _OF_OTHERS
    for spec in (AnswerSpec, CompareSpec, RankSpec, EngineSpec, HttpSpec, RuntimeSpec):
        known |= {option.flag for option in options_of(spec, "")}
    for page in PAGES:
        said = re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8"))
        assert set(said) <= known, f"{name_of(page)}: {sorted(set(said) - known)}"
