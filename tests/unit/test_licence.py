"""The licence: each package has it, and says so."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGES = ("server", "clients/python", "clients/typescript", "clients/go", "clients/java/src/main/resources/META-INF")


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE"])
@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_has_a_copy(package: str, name: str) -> None:
    """A package is built from its own folder: the copy there is the same as the one at the root."""
    assert (ROOT / package / name).read_bytes() == (ROOT / name).read_bytes()


def test_each_package_file_names_it() -> None:
    """The package files name the licence by its SPDX identifier."""
    for path in ("pyproject.toml", "server/pyproject.toml", "clients/python/pyproject.toml"):
        assert 'license = "Apache-2.0"\nlicense-files = ["LICENSE", "NOTICE"]\n' in (ROOT / path).read_text()
    assert json.loads((ROOT / "clients/typescript/package.json").read_text())["license"] == "Apache-2.0"
    assert "<name>Apache-2.0</name>" in (ROOT / "clients/java/pom.xml").read_text()
