"""Each verifier's program, started once per test process, and a scene for each test."""

import os
from collections.abc import Callable, Iterator

import pytest

from benchmarks import seed
from tests.clients.conformance.programs import DEMAND_ALL, PROGRAMS, Missing, Program
from tests.clients.conformance.scene import Scene, crowd
from tests.e2e.service import Service


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Program]]:
    """Yield a function that returns the running program of a name."""
    running: dict[str, Program] = {}
    logs = tmp_path_factory.mktemp("programs")

    def started(name: str) -> Program:
        if name not in running:
            try:
                running[name] = Program(name, logs / f"{name}.stderr")
            except Missing as missing:
                if os.environ.get(DEMAND_ALL):
                    raise
                pytest.skip(str(missing))
        return running[name]

    yield started
    for program in running.values():
        program.close()


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, programs: Callable[[str], Program]) -> Program:
    """Return the program of each verifier. A test that uses it runs with each."""
    return programs(request.param)


@pytest.fixture
def scene(program: Program, shared_server: Service) -> Iterator[Scene]:
    """Yield a scene on the shared server, in its own project."""
    scene = Scene(program, shared_server)
    yield scene
    scene.close()


@pytest.fixture
def own_scene(program: Program, own_server: Service) -> Iterator[Scene]:
    """Yield a scene with its own server."""
    scene = Scene(program, own_server)
    yield scene
    scene.close()


@pytest.fixture
def crowded_scene(program: Program, shared_server: Service) -> Iterator[Scene]:
    """Yield a scene on the shared server, in the crowd's project."""
    scene = Scene(program, shared_server, seed.PROJECT)
    yield scene
    scene.close()


@pytest.fixture(scope="session")
def many_keys(shared_server: Service) -> list[str]:
    """Return 10,000 keys that no test changes."""
    return crowd(shared_server, 10_000)
