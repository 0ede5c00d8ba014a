"""Concurrent calls for the same key or request over real sockets, through one server and through two."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import grpc

from tests.e2e.service import Client, Service, eventually, together
from tests.harness import Refused
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.events.log import EventType

CONNECTIONS = 8

FRESH = {"consistency": {"fully_consistent": True}}


def connections(*servers: Service) -> list[Client]:
    """Open connections, round robin over these servers."""
    return [servers[number % len(servers)].connect() for number in range(CONNECTIONS)]


def events(server: Service, key_id: str) -> list[EventType]:
    """Return the types of a key's events, in order."""
    rows = server.read("SELECT type FROM event WHERE key_id = ? ORDER BY revision", key_id)
    return [EventType(number) for (number,) in rows]


def rotate_by_many(key_id: str, clients: list[Client], server: Service) -> None:
    """Rotate a key 50 times at the same moment, and check that exactly one call succeeds."""
    outcomes = together(50, lambda number: clients[number % len(clients)].rotate(key_id))
    issued = [outcome for outcome in outcomes if isinstance(outcome, pb.RotateResponse)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert len(issued) == 1
    assert {(each.code, each.reason) for each in refused} == {(grpc.StatusCode.FAILED_PRECONDITION, "KEY_SUPERSEDED")}
    successor = issued[0].api_key.id
    assert {each.info.metadata["replaced_by_key_id"] for each in refused} == {successor}
    assert server.read("SELECT id FROM api_key WHERE replaces_key_id = ?", key_id) == [(successor,)]
    assert events(server, key_id) == [EventType.CREATED, EventType.ROTATED]
    server.audit()


def test_of_many_rotations_of_one_key_exactly_one_succeeds(server: Service) -> None:
    """Of 50 concurrent rotations of one key, one succeeds; the others get KEY_SUPERSEDED with the ID of the new key."""
    rotate_by_many(server.create().api_key.id, connections(server), server)


def test_of_many_rotations_through_two_servers_exactly_one_succeeds(server: Service, other: Service) -> None:
    """Of 50 concurrent rotations of one key through two servers, exactly one succeeds."""
    rotate_by_many(server.create().api_key.id, connections(server, other), server)


def test_many_revocations_of_one_key_are_one(server: Service) -> None:
    """Concurrent revocations of one key all succeed with the same revocation, which has one event."""
    made = server.create()
    clients = connections(server)
    outcomes = together(
        50, lambda number: clients[number % CONNECTIONS].revoke(made.api_key.id, comment=f"caller {number}")
    )
    assert not [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert len({(key.revoke_time.ToMicroseconds(), key.revoke_comment, key.etag) for key in outcomes}) == 1
    assert events(server, made.api_key.id) == [EventType.CREATED, EventType.REVOKED]
    assert server.verdict(made.key) == "REVOKED"
    server.audit()


def test_many_repetitions_of_one_request_make_one_key(server: Service, project: str) -> None:
    """Of 100 concurrent Creates with one request_id, one makes the key and shows it; the others return its record."""
    request = pb.CreateRequest(project_id=project, name="once", request_id=str(uuid4()))
    clients = connections(server)
    outcomes = together(100, lambda number: clients[number % CONNECTIONS].call("Create", request))
    assert not [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert len({outcome.api_key.id for outcome in outcomes}) == 1
    shown = [outcome for outcome in outcomes if outcome.key]
    assert len(shown) == 1
    assert [outcome.secret_omitted for outcome in outcomes].count(False) == 1
    assert server.call("List", pb.ListRequest(project_id=project, show_total_size=True)).total_size == 1
    assert server.verdict(shown[0].key) == "VALID"
    server.audit()


def test_many_repetitions_of_one_rotation_make_one_successor(server: Service) -> None:
    """Concurrent rotations with one request_id all return the one new key, and one of them its text."""
    made, request_id = server.create(), str(uuid4())
    clients = connections(server)
    outcomes = together(50, lambda number: clients[number % CONNECTIONS].rotate(made.api_key.id, request_id=request_id))
    # A replay must not be refused because its own first request has already rotated the key.
    assert [outcome for outcome in outcomes if isinstance(outcome, Refused)] == []
    assert len({outcome.api_key.id for outcome in outcomes}) == 1
    assert len([outcome for outcome in outcomes if outcome.key]) == 1
    server.audit()


def switch_under_verification(switching: Client, verifying: list[Client], made: pb.CreateResponse) -> None:
    """Deactivate and activate a key while others verify it, and check each verdict against the states at the time.

    A verdict may reflect any change in flight during the call, and never one that a later, finished change has undone.
    """
    switches: list[tuple[float, float, bool]] = [(0.0, 0.0, True)]
    verdicts: list[tuple[float, float, bool]] = []
    done = threading.Event()

    def verify(client: Client) -> None:
        while not done.is_set():
            began = time.monotonic()
            verdict = client.verdict(made.key)
            verdicts.append((began, time.monotonic(), verdict == "VALID"))
            assert verdict in ("VALID", "INACTIVE")

    with ThreadPoolExecutor(len(verifying)) as pool:
        running = [pool.submit(verify, client) for client in verifying]
        try:
            for number in range(60):
                began = time.monotonic()
                switching.set_active(made.api_key.id, active=number % 2 == 1)
                switches.append((began, time.monotonic(), number % 2 == 1))
        finally:
            done.set()
        for each in running:
            each.result()
    assert len({valid for _, _, valid in verdicts}) == 2
    for began, ended, valid in verdicts:
        before = [state for _, returned, state in switches if returned <= began][-1]
        meanwhile = {state for called, returned, state in switches if returned > began and called < ended}
        assert valid in {before} | meanwhile


def test_a_switch_is_seen_by_every_verification_after_it(server: Service) -> None:
    """A Verify that starts after a SetActive has returned reflects it."""
    made = server.create()
    switch_under_verification(server, connections(server)[:4], made)
    assert events(server, made.api_key.id)[1:] == [EventType.DEACTIVATED, EventType.ACTIVATED] * 30
    server.audit()


def test_a_switch_is_seen_by_every_verification_at_another_server(server: Service, other: Service) -> None:
    """A Verify at another server that starts after a SetActive has returned reflects it."""
    made = server.create()
    switch_under_verification(server, connections(other, server)[:4], made)
    server.audit()


def test_many_switches_of_one_key_leave_one_truth(server: Service) -> None:
    """After many concurrent SetActive calls, the key, its verdict and its events agree."""
    made = server.create()
    clients = connections(server)

    def switch(number: int) -> None:
        for turn in range(6):
            clients[number % CONNECTIONS].set_active(made.api_key.id, active=(number + turn) % 3 == 0)

    outcomes = together(16, switch)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    history = events(server, made.api_key.id)[1:]
    # A call that changes nothing has no event, so the events alternate, beginning with DEACTIVATED.
    assert history == [EventType.DEACTIVATED, EventType.ACTIVATED] * (len(history) // 2) + (
        [EventType.DEACTIVATED] if len(history) % 2 else []
    )
    expected = ("INACTIVE", "INACTIVE") if len(history) % 2 else ("VALID", "ACTIVE")
    assert (server.verdict(made.key), server.state(made.api_key.id)) == expected
    server.audit()


def revoke_under_verification(server: Service, clients: list[Client], **asked: Any) -> None:
    """Revoke keys under constant verification, and check that none is valid after its Revoke has returned."""
    made = [server.create() for _ in range(20)]
    revoked: dict[str, float] = {}
    wrong: list[str] = []
    done = threading.Event()

    def verify(number: int) -> None:
        # Each verifier cycles over the keys from its own start.
        for each in itertools.cycle(made[number * 5 :] + made[: number * 5]):
            if done.is_set():
                return
            began = time.monotonic()
            verdict = clients[number].verdict(each.key, **asked)
            if verdict != "REVOKED" and began > revoked.get(each.api_key.id, began):
                wrong.append(verdict)

    with ThreadPoolExecutor(len(clients)) as pool:
        running = [pool.submit(verify, number) for number in range(len(clients))]
        try:
            for each in made:
                server.revoke(each.api_key.id)
                revoked[each.api_key.id] = time.monotonic()
                assert {client.verdict(each.key, **asked) for client in clients} == {"REVOKED"}
        finally:
            done.set()
        for each in running:
            each.result()
    assert wrong == []
    server.audit()


def test_a_revoked_key_is_never_let_in_again(server: Service) -> None:
    """After Revoke has returned, no Verify at the same server accepts the key, even under constant verification."""
    revoke_under_verification(server, connections(server)[:4])


def test_a_revoked_key_is_never_let_in_by_another_server(server: Service, other: Service) -> None:
    """After Revoke has returned, no fully consistent Verify at another server accepts the key."""
    revoke_under_verification(server, connections(other)[:4], **FRESH)


def test_a_change_through_one_server_is_seen_by_the_other_at_once(server: Service, other: Service) -> None:
    """A fully consistent Verify at one server reflects every change that another server has acknowledged."""
    here, there = server.connect(), other.connect()
    for _ in range(5):
        made = here.create(scopes=["orders:read"])
        key_id = made.api_key.id
        assert there.verdict(made.key, **FRESH) == "VALID"
        here.set_active(key_id, active=False)
        assert there.verdict(made.key, **FRESH) == "INACTIVE"
        there.set_active(key_id, active=True)
        assert here.verdict(made.key, **FRESH) == "VALID"
        update = pb.UpdateRequest(api_key={"id": key_id, "scopes": ["stock:read"]})
        there.call("Update", update)
        assert here.verdict(made.key, required_scopes=["orders:read"], **FRESH) == "INSUFFICIENT_SCOPE"
        rotated = here.rotate(key_id, grace=0)
        assert there.verdict(made.key, **FRESH) == "SUPERSEDED"
        assert there.verdict(rotated.key, required_scopes=["stock:read"], **FRESH) == "VALID"
        there.revoke(rotated.api_key.id)
        assert here.verdict(rotated.key, **FRESH) == "REVOKED"
    server.audit()


def test_a_revoked_caller_is_turned_away_by_both_servers(server: Service, other: Service) -> None:
    """A revoked calling key is refused at once by the server that revoked it, and soon by the other."""
    caller = server.caller("tumbler:keys:verify")
    key_id = caller.key.split("_")[1]
    elsewhere = other.connect(caller.key)
    assert caller.verdict(caller.key) == elsewhere.verdict(caller.key) == "VALID"
    server.revoke(key_id)
    assert refused(caller) == "UNAUTHENTICATED"
    eventually(lambda: refused(elsewhere) == "UNAUTHENTICATED")


def refused(caller: Client) -> str:
    """Return the reason for which a caller is refused, or an empty string."""
    try:
        caller.verdict(caller.key)
    except Refused as refused:
        return refused.reason
    return ""
