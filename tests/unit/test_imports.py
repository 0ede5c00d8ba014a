"""The import ladder: which room may import which (docs/architecture.md, "Rooms")."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tumbler_server

ROOT = Path(tumbler_server.__file__).parent
CHECKOUT = Path(__file__).parents[2]

LADDER = (
    "errors", "clock", "defaults", "logs", "trouble", "limits", "shares", "memory", "processes", "ports",
    "metrics", "calls",
    "store", "secrets", "events", "freshness", "streams", "webhooks", "keys", "verify", "rpc", "config",
    "scheduler", "audit", "founding", "handover", "doctor", "auditing", "server", "worker", "supervisor",
    "commands", "__main__", "__init__",
)  # fmt: skip
"""Each room may import itself and those before it."""

KNOWN_TO = {
    "grpc": ("rpc", "server"),
    "grpc_health": ("rpc", "server"),
    "grpc_reflection": ("rpc", "server"),
    "google": ("rpc", "server"),
    "tumbler.v1": ("rpc", "server"),
    "cryptography": ("secrets/vault.py", "secrets/pepper.py"),
    "httpcore": ("webhooks",),
    "standardwebhooks": ("webhooks/endpoints.py",),
    "bcrypt": ("secrets/secret.py",),
    "peewee": ("store", "secrets", "webhooks", "keys", "verify", "audit", "doctor"),
    "playhouse": ("store",),
    "apsw": ("store", "doctor"),
    "psycopg": ("store",),
    "typer": ("config", "commands"),
}
"""Packages, and the rooms or files that may import them; other packages may be imported anywhere."""


def imports(file: Path) -> Iterator[str]:
    """Yield the full names of all that a module imports, at any place and in any form."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room_of(file: Path) -> str:
    """Return a module's room: its folder, or its own name."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
class TestModule:
    """The imports of each module."""

    def test_ladder(self, file: Path) -> None:
        """A module imports its own room and those before it on the ladder, never one after it."""
        allowed = LADDER[: LADDER.index(room_of(file)) + 1]
        ours = [name.split(".")[1] for name in imports(file) if name.startswith("tumbler_server.")]
        assert [room for room in ours if room not in allowed] == []

    def test_packages(self, file: Path) -> None:
        """Only a few rooms may import gRPC, generated code, bcrypt and the databases."""
        here = (room_of(file), file.relative_to(ROOT).as_posix())
        for name in imports(file):
            for package, known_to in KNOWN_TO.items():
                if f"{name}.".startswith(f"{package}."):
                    assert set(here) & set(known_to), f"{package} is not for {here[1]}"


def test_private_names_stay_in_their_module() -> None:
    """No module imports a private name of another. Ruff has no stable rule for that; SLF001 finds other uses."""
    ours = ("tumbler", "tumbler_server", "tests", "benchmarks")
    found = [
        f"{file.relative_to(CHECKOUT)}: {node.module}.{name.name}"
        for place in ("server", "clients/python/src", "tests", "benchmarks")
        for file in (CHECKOUT / place).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ours
        for name in node.names
        if name.name.startswith("_") and not name.name.startswith("__")
    ]
    assert found == []


def test_every_room_is_there() -> None:
    """The ladder has exactly the existing rooms."""
    assert {room_of(file) for file in FILES} == set(LADDER)


def test_the_command_line_is_light() -> None:
    """The command's module, which --help needs, loads nothing that only the work of a command needs."""
    heavy = ("bcrypt", "cryptography", "grpc", "google.protobuf", "httpcore", "peewee", "prometheus_client", "psycopg")
    program = f"import sys, tumbler_server.commands; print(sorted(set(sys.modules) & set({heavy})))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
