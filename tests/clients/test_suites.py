"""The clients' own tests and checks, with each language's own tools, and each package as a user installs it."""

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
    """Return a language whose tools are installed."""
    name = str(request.param)
    for tool in PROGRAMS[name].tools:
        if found := tool.lack():
            assert not os.environ.get(DEMAND_ALL), found
            pytest.skip(f"{name}: {found}")
    return name


def test_a_clients_own_tests_and_checks_pass(language: str) -> None:
    """The client's own tests and checks pass. A failure shows their output."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with locked(PROGRAMS[language].lock):  # the other tests' programs are built from the same sources
        _RUN[language]()


def _go() -> None:
    # All of go vet, in the same pass over the dependencies; packages without tests have it in scripts/lint-go.
    run("go", "test", "-vet=all", "./...", cwd=CLIENTS / "go")
    run("sh", "-c", 'test -z "$(gofmt -l . | tee /dev/stderr)"', cwd=CLIENTS / "go")


def _typescript() -> None:
    install_npm_packages(CLIENTS / "typescript")
    for script in ("test", "try-package"):
        run("npm", "run", "--silent", script, cwd=CLIENTS / "typescript")


def _java() -> None:
    maven("verify", cwd=CLIENTS / "java")
    run("./try-sample", cwd=CLIENTS / "java")


_RUN = {"go": _go, "typescript": _typescript, "java": _java}
