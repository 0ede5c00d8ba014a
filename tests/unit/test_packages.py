"""The names of the Python distributions and of their dependencies."""

import re
from itertools import chain
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
RELEASING = (ROOT / "RELEASING.md").read_text()
PROJECTS = [
    tomllib.loads((ROOT / path / "pyproject.toml").read_text())["project"] for path in ("clients/python", "server")
]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project["name"])
def test_names_are_ours(project: dict) -> None:
    """Names that start with ours are listed in RELEASING.md to be registered, so no one else's code is installed."""
    needs = [project["name"], *project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    ours = {name for name in (re.match(r"[\w-]+", need)[0] for need in needs) if name.startswith("tumbler")}
    assert ours <= {"tumbler-client", "tumbler-server"}
    assert all(f"`{name}`" in RELEASING for name in ours)


def test_the_checkout_is_never_published() -> None:
    """The distribution of `pip install .` is marked so that the index refuses it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Private :: Do Not Upload" in project["classifiers"]
