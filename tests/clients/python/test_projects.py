"""Which projects' keys a verifier accepts."""

from collections.abc import Callable
from typing import Any

import pytest

import tumbler
from tests.clients.python.fake_server import PATIENCE, FakeServer
from tumbler.decide import Code
from tumbler.v1 import api_key_service_pb2 as pb

Opened = Callable[..., Any]

HERS, HIS, THEIRS = 1, 2, 3


@pytest.fixture
def keys(fake: FakeServer) -> list[str]:
    """Return a key of each of three projects."""
    return [
        fake.knows(number, project_id=project)
        for number, project in ((HERS, "acme"), (HIS, "globex"), (THEIRS, "initech"))
    ]


def nothing_told(told: tumbler.Verification) -> bool:
    """Return whether a verification is NOT_FOUND with all its fields empty."""
    return told == tumbler.Verification(Code.NOT_FOUND, cached=told.cached)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({}, ""),
        ({"project_id": tumbler.ANY_PROJECT}, ""),
        ({"project_id": "acme"}, "acme"),
        ({"project_id": ["acme"]}, "acme"),
        ({"project_id": ("acme", "globex")}, ""),
    ],
)
def test_the_server_is_asked_for_a_project_that_is_the_only_one(
    opened: Opened, fake: FakeServer, keys: list[str], said: dict[str, Any], asked: str
) -> None:
    """A single project goes with each call and with the stream. With several the verifier checks each answer itself."""
    opened(**said).verify(keys[0])
    (call,) = fake.calls
    assert isinstance(call, pb.VerifyRequest)
    assert (call.project_id, fake.streams[-1].request.project_id) == (asked, asked)


@pytest.mark.parametrize("said", ["acme", ["acme"], ("acme", "globex"), {"acme", "globex"}])
def test_a_key_of_another_project_is_not_found(opened: Opened, fake: FakeServer, keys: list[str], said: Any) -> None:
    """A key of another project is NOT_FOUND with all fields empty, whatever the server answers, and is not cached."""
    verifier = opened(project_id=said)
    fake.knows(THEIRS, project_id="initech", code=pb.VERIFY_CODE_REVOKED)
    for _ in range(2):
        assert nothing_told(verifier.verify(keys[2]))
        fake.knows(THEIRS, project_id="initech")
    assert verifier.verifier.remembered == 0
    assert verifier.verify(keys[0])
    assert verifier.verify(keys[0]).cached


@pytest.mark.parametrize("said", [tumbler.ANY_PROJECT, ("acme", "globex", "initech")])
def test_a_call_narrows_and_never_widens(opened: Opened, keys: list[str], said: Any) -> None:
    """A cached key that one caller's projects exclude is valid for another."""
    verifier = opened(project_id=said)
    for _ in range(2):  # uncached, then cached
        assert nothing_told(verifier.verify(keys[1], project_id="acme"))
    assert verifier.verify(keys[1], project_id=["acme", "globex"]).cached
    assert verifier.verify(keys[1]).project_id == "globex"

    narrow = opened(project_id="acme")
    assert nothing_told(narrow.verify(keys[1], project_id="globex"))
    assert nothing_told(narrow.verify(keys[0], project_id="globex"))
    assert narrow.verify(keys[0], project_id=("globex", "acme"))


def test_what_is_not_remembered_is_narrowed_too(opened: Opened, fake: FakeServer) -> None:
    """A revoked key is NOT_FOUND for a caller who does not accept its project."""
    revoked = fake.knows(HIS, project_id="globex", code=pb.VERIFY_CODE_REVOKED)
    verifier = opened(project_id=tumbler.ANY_PROJECT)
    assert nothing_told(verifier.verify(revoked, project_id="acme"))
    assert verifier.verify(revoked).code is Code.REVOKED


def test_who_shares_a_call_has_demands_of_its_own(opened: Opened, fake: FakeServer, keys: list[str]) -> None:
    """Callers with the same key share a call, and each has its own projects."""
    verifier = opened(project_id=tumbler.ANY_PROJECT)
    release = fake.hold(keys[1])
    first = verifier.begin(keys[1], project_id="acme")
    fake.await_held(keys[1])
    second = verifier.begin(keys[1], project_id="globex")
    third = verifier.begin(keys[1])
    release()
    assert nothing_told(first.result(PATIENCE))
    assert second.result(PATIENCE)
    assert third.result(PATIENCE)


@pytest.mark.parametrize("code", [pb.VERIFY_CODE_VALID, pb.VERIFY_CODE_NOT_FOUND, pb.VERIFY_CODE_INSUFFICIENT_SCOPE])
@pytest.mark.parametrize("narrowed", [{}, {"project_id": "acme"}])
def test_a_key_that_sees_all_projects_must_say_which(
    opened: Opened, fake: FakeServer, code: int, narrowed: dict[str, str]
) -> None:
    """If the verifier's own key sees all projects and it names none, it refuses to answer."""
    key = fake.knows(HERS, any_project=True, code=code)
    verifier = opened()
    for _ in range(2):
        with pytest.raises(
            tumbler.NotAllowed, match="can verify the keys of all projects: set project_id, or ANY_PROJECT"
        ):
            verifier.verify(key, **narrowed)
    assert verifier.verifier.remembered == 0


@pytest.mark.parametrize("said", [tumbler.ANY_PROJECT, ("acme", "globex")])
def test_a_key_that_sees_all_projects_may_be_told_which(opened: Opened, fake: FakeServer, said: Any) -> None:
    """If the verifier names projects, or any project, it answers."""
    key = fake.knows(HERS, any_project=True)
    assert opened(project_id=said).verify(key)


def test_in_a_batch_too(opened: Opened, fake: FakeServer) -> None:
    """Keys in a batch are refused in the same way."""
    keys = [fake.knows(number, any_project=True) for number in range(10, 20)]
    verifier = opened()
    releases = [fake.hold(key) for key in keys]
    waiting = [verifier.begin(key) for key in keys]
    fake.await_held(*keys[:4])
    for release in releases:
        release()
    for each in waiting:
        with pytest.raises(tumbler.NotAllowed):
            each.result(PATIENCE)
    assert any(isinstance(call, pb.BatchVerifyRequest) for call in fake.calls)


@pytest.mark.parametrize("said", ["", [], (), [""], ["acme", ""], [None], [tumbler.ANY_PROJECT]])
def test_no_project_is_not_any_project(opened: Opened, said: Any) -> None:
    """An empty id, perhaps from an unset variable, is an error. It does not mean any project."""
    with pytest.raises(ValueError, match="project_id: must be"):
        opened(project_id=said)
    with pytest.raises(tumbler.InvalidRequest, match="project_id: must be"):
        opened().verify("whatever", project_id=said)
