"""Idempotent calls: request_id in Create and Rotate."""

import threading
import uuid
from typing import Any

import grpc
import pytest

from tests.harness import Refused, World, at, lasting
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR
from tumbler_server.keys.record import Key
from tumbler_server.secrets.secret import Hasher


@pytest.fixture
def request_id() -> str:
    """Return a new request ID."""
    return str(uuid.uuid4())


def test_a_repeated_create_makes_no_second_key(world: World, request_id: str) -> None:
    """A replay of Create returns the same key and token with secret_omitted and no key text, because none is stored."""
    first = world.create(name="once", metadata={"b": "2", "a": "1"}, request_id=request_id)
    events = len(world.events())
    again = world.create(name="once", metadata={"a": "1", "b": "2"}, request_id=request_id)
    assert again == pb.CreateResponse(
        api_key=first.api_key, consistency_token=first.consistency_token, secret_omitted=True
    )
    assert not first.secret_omitted
    assert len(world.events()) == events


def test_a_repeated_rotate_makes_no_second_successor(world: World, request_id: str) -> None:
    """A replay of Rotate returns the same two keys and token with secret_omitted and no key text."""
    created = world.create()
    first = world.rotate(created.api_key.id, request_id=request_id, grace_period=lasting(DAY))
    events = len(world.events())
    again = world.rotate(created.api_key.id, request_id=request_id, grace_period=lasting(DAY))
    assert again == pb.RotateResponse(
        api_key=first.api_key,
        old_api_key=first.old_api_key,
        consistency_token=first.consistency_token,
        secret_omitted=True,
    )
    assert not first.secret_omitted
    assert len(world.events()) == events


def test_a_repeated_call_shows_the_key_as_it_is_now(world: World, request_id: str) -> None:
    """A replay returns the key's current record and the token of its creation."""
    first = world.create(request_id=request_id)
    world.clock.advance(HOUR)
    revoked = world.revoke(first.api_key.id).api_key
    again = world.create(request_id=request_id)
    assert again.api_key == revoked
    assert again.consistency_token == first.consistency_token


def test_a_create_that_is_repeated_meanwhile(world: World, request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another call with the same request_id commits while this one hashes, both return the same key."""
    request = pb.CreateRequest(project_id="acme", name="once", request_id=request_id)
    world.create(name="so that the operator is known")
    events = len(world.events())
    servicer, hash_secret = world.core.servicer, Hasher.hash
    caller, others = servicer.verifier.recall(world.operator), list[pb.CreateResponse]()
    assert isinstance(caller, Key)

    def be_slow(hasher: Hasher, *arguments: Any) -> Any:
        monkeypatch.setattr(Hasher, "hash", hash_secret)
        # On the same thread, because the call that waits for this one holds the project's turn to create keys.
        others.append(servicer.Create.answer(servicer, caller, request))  # type: ignore[attr-defined]
        return hash_secret(hasher, *arguments)

    monkeypatch.setattr(Hasher, "hash", be_slow)
    made = world.call("Create", request)
    assert made.api_key == others[0].api_key
    assert made.secret_omitted
    assert not others[0].secret_omitted
    assert len(world.events()) == events + 1


@pytest.mark.parametrize(
    "changed",
    [{"name": "another"}, {"scopes": ["a:c"]}, {"project_id": "beta"}, {"validate_only": False, "ttl": lasting(1)}],
    ids=["name", "scopes", "project", "expiry"],
)
def test_the_id_with_another_body_already_exists(world: World, request_id: str, changed: dict[str, Any]) -> None:
    """A request_id with a different body is ALREADY_EXISTS, names the request_id, and makes nothing."""
    world.create(name="first", scopes=["a:b"], request_id=request_id)
    events = len(world.events())
    body = {"project_id": "acme", "name": "first", "scopes": ["a:b"], "request_id": request_id, **changed}
    refused = world.refused("Create", pb.CreateRequest(**body))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert refused.info.metadata["request_id"] == request_id
    assert len(world.events()) == events


def test_create_and_rotate_share_their_ids(world: World, request_id: str) -> None:
    """A request_id of a Create is taken for Rotate, and vice versa."""
    created = world.create(request_id=request_id)
    rotate = pb.RotateRequest(key_id=created.api_key.id, request_id=request_id)
    assert world.refused("Rotate", rotate).reason == "REQUEST_ID_REUSED"
    rotate.request_id = str(uuid.uuid4())
    world.call("Rotate", rotate)
    create = pb.CreateRequest(project_id="acme", request_id=rotate.request_id)
    assert world.refused("Create", create).reason == "REQUEST_ID_REUSED"


def test_a_rotate_of_another_key_already_exists(world: World, request_id: str) -> None:
    """One request_id cannot rotate two keys, or one key with two grace periods."""
    one, two = world.create().api_key.id, world.create().api_key.id
    world.rotate(one, request_id=request_id)
    other_key = pb.RotateRequest(key_id=two, request_id=request_id)
    assert world.refused("Rotate", other_key).reason == "REQUEST_ID_REUSED"
    other_grace = pb.RotateRequest(key_id=one, request_id=request_id, grace_period=lasting(0))
    assert world.refused("Rotate", other_grace).reason == "REQUEST_ID_REUSED"
    assert world.get(two).state == world.get(world.get(one).replaced_by_key_id).state


def test_ids_are_the_projects_own(world: World, request_id: str) -> None:
    """Two projects can use the same request_id, and neither sees the other's key."""
    acme = world.caller("tumbler:keys:create")
    beta = world.caller("tumbler:keys:create", project_id="beta")
    first = world.create(acme, request_id=request_id)
    second = world.create(beta, project_id="beta", request_id=request_id)
    assert first.api_key.id != second.api_key.id
    assert second.key
    assert world.create(beta, project_id="beta", request_id=request_id).api_key == second.api_key


def test_ids_are_shared_inside_a_project(world: World, request_id: str) -> None:
    """A request_id belongs to the project, so another caller of the same project gets a replay."""
    first = world.create(world.caller("tumbler:keys:create"), request_id=request_id)
    again = world.create(world.caller("tumbler:keys:create"), request_id=request_id)
    assert again.api_key == first.api_key
    assert again.secret_omitted


def test_upper_case_is_the_same_id(world: World, request_id: str) -> None:
    """A UUID in upper case is the same request_id."""
    first = world.create(request_id=request_id.upper())
    again = world.create(request_id=request_id.lower())
    assert again.api_key == first.api_key
    assert again.secret_omitted


def test_a_repeat_after_the_expiry_is_still_a_repeat(world: World, request_id: str) -> None:
    """A replay after expire_time has passed returns the key, because it asks for nothing new."""
    expiry = at(world.clock.now + HOUR)
    created = world.create(request_id=request_id, expire_time=expiry)
    rotation_id = str(uuid.uuid4())
    rotated = world.rotate(created.api_key.id, request_id=rotation_id, expire_time=expiry)
    world.clock.advance(HOUR)
    again = world.create(request_id=request_id, expire_time=expiry)
    assert (again.api_key.id, again.secret_omitted) == (created.api_key.id, True)
    repeated = world.rotate(created.api_key.id, request_id=rotation_id, expire_time=expiry)
    assert (repeated.api_key.id, repeated.secret_omitted) == (rotated.api_key.id, True)


def test_validate_only_does_not_consume_the_id(world: World, request_id: str) -> None:
    """A validate_only call leaves its request_id unused."""
    world.create(request_id=request_id, validate_only=True)
    created = world.create(request_id=request_id, name="the real one")
    assert created.key
    assert not created.secret_omitted


def test_a_refused_call_does_not_consume_the_id(world: World, request_id: str) -> None:
    """A refused call leaves its request_id unused."""
    world.refused("Create", pb.CreateRequest(project_id="acme", name="ab", request_id=request_id))
    assert world.create(name="abc", request_id=request_id).key


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "123e4567-e89b-42d3-a456-42661417400",
        "123e4567-e89b-42d3-a456-4266141740000",
        "123e4567e89b42d3a456426614174000",
        "{123e4567-e89b-42d3-a456-426614174000}",
        "123e4567-e89b-42d3-a456-42661417400g",
        "123e4567-e89b-42d3-a456-426614174000\n",
    ],
    ids=["number", "too short", "too long", "no hyphens", "braces", "not hexadecimal", "newline"],
)
def test_only_a_uuid_will_do(world: World, text: str) -> None:
    """A request_id that is not a UUID is refused by Create and Rotate."""
    assert world.refused("Create", pb.CreateRequest(project_id="acme", request_id=text)).fields == ["request_id"]
    rotate = pb.RotateRequest(key_id="0" * 16, request_id=text)
    assert world.refused("Rotate", rotate).fields == ["request_id"]


def _together(monkeypatch: pytest.MonkeyPatch, *calls: Any) -> list[Any]:
    """Make calls that all hash their secrets before any of them writes.

    Each call needs its own server, because the number of a project's calls that one server runs at once varies.
    """
    barrier = threading.Barrier(len(calls))
    hash_secret = Hasher.hash

    def waiting(self: Hasher, text: str, secret: str) -> Any:
        hashed = hash_secret(self, text, secret)
        barrier.wait(timeout=30)
        return hashed

    monkeypatch.setattr(Hasher, "hash", waiting)
    results: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            results[place] = calls[place]()
        except Refused as refused:
            results[place] = refused

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_two_creates_at_once_one_makes_the_key(
    world: World, twin: World, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two concurrent Creates with one request_id, one makes the key and returns its text."""
    results = _together(
        monkeypatch, *(lambda server=server: server.create(request_id=request_id) for server in (world, twin))
    )
    assert results[0].api_key == results[1].api_key
    assert sorted(result.secret_omitted for result in results) == [False, True]
    assert sorted(bool(result.key) for result in results) == [False, True]


def test_of_two_rotates_at_once_one_makes_the_successor(
    world: World, twin: World, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two concurrent Rotates with one request_id, one makes the successor and returns its text."""
    key_id = world.create().api_key.id
    results = _together(
        monkeypatch, *(lambda server=server: server.rotate(key_id, request_id=request_id) for server in (world, twin))
    )
    assert results[0].api_key == results[1].api_key
    assert results[0].old_api_key == results[1].old_api_key
    assert sorted(result.secret_omitted for result in results) == [False, True]


def test_of_two_rotates_at_once_without_an_id_one_is_refused(
    world: World, twin: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two concurrent Rotates without a request_id, one succeeds, and the other gets its successor's ID."""
    key_id = world.create().api_key.id
    results = _together(monkeypatch, *(lambda server=server: server.rotate(key_id) for server in (world, twin)))
    results.sort(key=lambda result: isinstance(result, Refused))
    rotated, refused = results
    assert refused.reason == "KEY_SUPERSEDED"
    assert refused.info.metadata["replaced_by_key_id"] == rotated.api_key.id
