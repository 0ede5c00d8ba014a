"""The floors of what the two distributions need: those that the committed generated code demands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "clients" / "python" / "src" / "tumbler" / "v1"
PROJECTS = (ROOT / "clients" / "python" / "pyproject.toml", ROOT / "server" / "pyproject.toml")


def floor(project: Path, package: str) -> str:
    """Return the floor that a pyproject.toml states for a package, which it must do once and without a ceiling."""
    (found,) = re.findall(rf'"{package}([<>=!~].*?)"', project.read_text(encoding="utf-8"))
    match = re.fullmatch(r">=([0-9.]+)", found)
    assert match, f"{package}{found} is not a floor alone"
    return match[1]


@pytest.mark.parametrize("project", PROJECTS, ids=["client", "server"])
class TestFloors:
    """Floors are neither too low, or the import fails, nor too high, or users are forced up."""

    def test_grpcio(self, project: Path) -> None:
        """Grpcio is needed from the version that the stubs were made for."""
        (stubs,) = GENERATED.glob("*_pb2_grpc.py")
        (demanded,) = re.findall(r"(?m)^GRPC_GENERATED_VERSION = '(.+)'$", stubs.read_text(encoding="utf-8"))
        assert floor(project, "grpcio") == demanded

    def test_protobuf(self, project: Path) -> None:
        """Protobuf is needed from the version that the messages were made for, all of them by the same one."""
        demanded = {
            version
            for file in GENERATED.glob("*_pb2.py")
            for version in re.findall(r"(?m)^# Protobuf Python Version: (.+)$", file.read_text(encoding="utf-8"))
        }
        assert demanded == {floor(project, "protobuf")}


@pytest.mark.parametrize("package", ["grpcio-health-checking", "grpcio-reflection"])
def test_companions(package: str) -> None:
    """What comes with grpcio is needed from grpcio's own version: it is released together with it."""
    assert floor(PROJECTS[1], package) == floor(PROJECTS[1], "grpcio")
