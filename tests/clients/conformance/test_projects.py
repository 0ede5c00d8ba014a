"""Which projects' keys a verifier accepts, of those that its own key sees."""

from collections.abc import Iterator

import pytest

from tests.clients.conformance.programs import Program
from tests.clients.conformance.scene import Scene
from tests.e2e.service import Service

EMPTY = {"key_id": "", "project_id": "", "environment_id": "", "owner_id": "", "name": "", "scopes": [], "metadata": {}}
"""The fields of a key that is not found."""


@pytest.fixture
def others(shared_server: Service) -> list[str]:
    """Return a key of each of two projects, neither of them the verifier's own."""
    return [shared_server.create(project_id=project, name=project).key for project in ("acme", "globex")]


@pytest.fixture
def operator(program: Program, shared_server: Service) -> Iterator[Scene]:
    """Yield a verifier whose own key belongs to the reserved project, and sees all projects."""
    scene = Scene(program, shared_server, project="tumbler")
    yield scene
    scene.close()


def nothing_told(scene: Scene, text: str, **demand: object) -> bool:
    """Return whether a key is not found, and all its fields are empty."""
    told = scene.verify(text, **demand)
    return told["code"] == "NOT_FOUND" and told.items() >= EMPTY.items() and told["expire_time"] is None


def test_it_must_be_said(operator: Scene, others: list[str]) -> None:
    """A verifier whose own key sees all projects, and that names none, accepts no key."""
    operator.open(settled=False)
    for _ in range(2):
        for text in (*others, operator.own.key):
            answer = operator.verify(text)
            assert answer["error"] == "not_allowed"
            assert "can verify the keys of all projects" in answer["message"]
        assert operator.code(others[0], project_id="acme") == "not_allowed"
    assert operator.size() == 0


def test_one_project(operator: Scene, others: list[str]) -> None:
    """A verifier that names one project knows its keys, and no others."""
    operator.open(project_id="acme", settled=False)
    operator.remembered(others[0])
    for _ in range(2):
        assert nothing_told(operator, others[1])
        assert nothing_told(operator, operator.own.key)
    assert operator.code(others[0]) == "VALID"


def test_several_projects(operator: Scene, others: list[str]) -> None:
    """A verifier that names several projects knows their keys, and no others. Others take no room in the cache."""
    operator.open(project_id=["acme", "globex"], settled=False)
    operator.remembered(*others)
    size = operator.size()
    for _ in range(2):
        assert nothing_told(operator, operator.own.key)
    assert operator.size() == size


def test_any_project_by_name(operator: Scene, others: list[str]) -> None:
    """A verifier that asks for any project by name knows the keys of all."""
    operator.open(any_project=True)
    operator.remembered(*others)
    assert [operator.verify(text)["project_id"] for text in others] == ["acme", "globex"]


def test_a_call_narrows(operator: Scene, others: list[str]) -> None:
    """A key that one call's projects exclude is valid for another. No call accepts more than the verifier."""
    operator.open(any_project=True)
    operator.remembered(*others)
    hers, his = others
    assert nothing_told(operator, his, project_id="acme")
    assert nothing_told(operator, his, project_id=["acme", "initech"])
    told = operator.verify(his, project_id=["acme", "globex"])
    assert (told["code"], told["cached"], told["project_id"]) == ("VALID", True, "globex")
    operator.open(project_id="acme", settled=False)
    operator.remembered(hers)
    assert nothing_told(operator, his, project_id="globex")
    assert nothing_told(operator, hers, project_id="globex")
    assert operator.code(hers, project_id=["globex", "acme"]) == "VALID"


def test_a_change_is_told_of_the_project_that_was_named(operator: Scene, shared_server: Service) -> None:
    """The stream of one project delivers its changes."""
    created = shared_server.create(project_id="acme")
    operator.open(project_id="acme", settled=False)
    operator.remembered(created.key)
    shared_server.revoke(created.api_key.id)
    operator.becomes(created.key, "REVOKED")


def test_a_tenant_needs_not_say_it(scene: Scene, others: list[str]) -> None:
    """A verifier whose own key sees one project knows the keys of that one, whether it is named or not."""
    key = scene.create().key
    for said in ({}, {"project_id": scene.project}, {"project_id": [scene.project, "acme"]}, {"any_project": True}):
        scene.open(**said)
        assert scene.code(key) == "VALID"
        assert nothing_told(scene, others[0])


def test_a_tenant_cannot_say_another(scene: Scene, others: list[str]) -> None:
    """A verifier that names a project which its own key may not see gets an error, and accepts nothing."""
    scene.open(project_id="acme", settled=False)
    assert scene.code(others[0]) == "not_allowed"
    assert scene.code(scene.create().key) == "not_allowed"


@pytest.mark.parametrize("said", ["", [], [""], ["acme", ""]])
def test_none_is_not_any(scene: Scene, said: object) -> None:
    """An empty id is refused when the verifier is created."""
    answer = scene.program.call("open", target=scene.service.target, api_key=scene.own.key, project_id=said)
    assert answer["error"] == "option"
