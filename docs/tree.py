"""The tree of the house in docs/architecture.md, made from the first sentence of each module.

python docs/tree.py            # print it
python docs/tree.py --write    # put it into the page; tests/test_docs.py holds that it is there
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorakit"
PAGE = ROOT / "docs" / "architecture.md"
TREE = re.compile(r"(```\nsrc/lorakit/\n).*?(```)", re.DOTALL)
ROOMS = [
    "errors.py",
    "extras.py",
    "files",
    "kernels",
    "lora",
    "data",
    "models",
    "execution",
    "adapters",
    "merging",
    "tasks",
    "training",
    "evaluation",
    "forecast.py",
    "config.py",
    "run",
    "experiments",
    "report",
    "comparing",
    "ranking",
    "serving",
    "cli",
]
_WIDTH = 16


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].rstrip(".:").replace("``", "`")


def lines(folder: Path = SOURCE, depth: int = 1) -> Iterator[str]:
    """The tree, a line each: rooms from the lowest floor up, then what is in them by name."""
    top = {name: place for place, name in enumerate(ROOMS)}
    inside = [p for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    inside = [p for p in inside if p.name != "__init__.py"]
    inside.sort(key=lambda p: (top.get(p.name, -1) if depth == 1 else p.is_dir(), p.name))
    for path in inside:
        name = path.name + ("/" if path.is_dir() else "")
        source = path / "__init__.py" if path.is_dir() else path
        yield f"{'  ' * depth}{name:{_WIDTH}}  {first_sentence(source)}".rstrip()
        if path.is_dir():
            yield from lines(path, depth + 1)


def tree() -> str:
    """The whole block, as it stands in the page."""
    return "".join(f"{line}\n" for line in lines())


def main() -> None:
    """Print the tree or write it."""
    if "--write" not in sys.argv:
        print(tree(), end="")
        return
    page = PAGE.read_text(encoding="utf-8")
    page = TREE.sub(lambda m: m[1] + tree() + m[2], page, count=1)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
