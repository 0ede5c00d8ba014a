"""The clients' own tests and checks, each by its language's own tools, and its package as somebody who installs it."""

import os

import pytest

from tests.clients.conformance.programs import (
    BUILD,
    CLIENTS,
    DEMAND_ALL,
    PROGRAMS,
    install_npm_packages,
    locked,
    maven,
    run,
)


@pytest.fixture(params=["go", "typescript", "java"])
def language(request: pytest.FixtureRequest) -> str:
    """Name a language whose tools are there."""
    name = str(request.param)
    for tool in PROGRAMS[name].tools:
        if found := tool.lack():
            assert not os.environ.get(DEMAND_ALL), found
            pytest.skip(f"{name}: {found}")
    return name


def test_a_clients_own_tests_and_checks_pass(language: str) -> None:
    """What a developer of that client would run; a failure shows what was printed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with locked(PROGRAMS[language].lock):  # the programs of the other tests are made of the same sources
        _RUN[language]()


def _go() -> None:
    for arguments in (("vet", "./..."), ("test", "./...")):
        run("go", *arguments, cwd=CLIENTS / "go")
    run("sh", "-c", 'test -z "$(gofmt -l . | tee /dev/stderr)"', cwd=CLIENTS / "go")


def _typescript() -> None:
    install_npm_packages(CLIENTS / "typescript")
    for script in ("lint", "test", "try-package"):
        run("npm", "run", "--silent", script, cwd=CLIENTS / "typescript")


def _java() -> None:
    maven("verify", cwd=CLIENTS / "java")
    run("./try-sample", cwd=CLIENTS / "java")


_RUN = {"go": _go, "typescript": _typescript, "java": _java}
