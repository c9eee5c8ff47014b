"""The lowest versions that pyproject.toml allows are those that `make test-lowest` installs."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_each_lower_bound_is_what_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"]]
    for name, wanted in extras.items():
        if name not in ("all", "bench", "dev"):
            lines += wanted
    required = [Requirement(line) for line in lines]
    pins = [
        Requirement(line)
        for line in (ROOT / "constraints-lowest.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    installed = {canonicalize_name(p.name): str(p.specifier).removeprefix("==") for p in pins}
    for requirement in required:
        (bound,) = requirement.specifier
        assert bound.operator == ">=", requirement
        found = installed[canonicalize_name(requirement.name)]
        assert Version(found) == Version(bound.version), requirement
