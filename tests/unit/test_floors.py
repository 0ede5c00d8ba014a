"""The minimum versions of the two distributions' dependencies, as the committed generated code requires."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "clients" / "python" / "src" / "tumbler" / "v1"
PROJECTS = (ROOT / "clients" / "python" / "pyproject.toml", ROOT / "server" / "pyproject.toml")


def floor(project: Path, package: str) -> str:
    """Return the minimum version that a pyproject.toml states for a package, once and without a maximum."""
    (found,) = re.findall(rf'"{package}([<>=!~].*?)"', project.read_text(encoding="utf-8"))
    match = re.fullmatch(r">=([0-9.]+)", found)
    assert match, f"{package}{found} is not a floor alone"
    return match[1]


@pytest.mark.parametrize("project", PROJECTS, ids=["client", "server"])
class TestFloors:
    """A minimum that is too low breaks the import; one that is too high forces users to upgrade."""

    def test_grpcio(self, project: Path) -> None:
        """The minimum of grpcio is the version that generated the stubs."""
        (stubs,) = GENERATED.glob("*_pb2_grpc.py")
        (demanded,) = re.findall(r"(?m)^GRPC_GENERATED_VERSION = '(.+)'$", stubs.read_text(encoding="utf-8"))
        assert floor(project, "grpcio") == demanded

    def test_protobuf(self, project: Path) -> None:
        """The minimum of protobuf is the version that generated the messages, the same for all of them."""
        demanded = {
            version
            for file in GENERATED.glob("*_pb2.py")
            for version in re.findall(r"(?m)^# Protobuf Python Version: (.+)$", file.read_text(encoding="utf-8"))
        }
        assert demanded == {floor(project, "protobuf")}


@pytest.mark.parametrize("package", ["grpcio-health-checking", "grpcio-reflection"])
def test_companions(package: str) -> None:
    """The companions of grpcio have its minimum version, because they are released together."""
    assert floor(PROJECTS[1], package) == floor(PROJECTS[1], "grpcio")
