"""Freshness of verdicts: the log position that they reflect, and how long they may be cached."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.harness import FrozenClock, World, lasting
from tests.unit.test_tail import restore
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR, MINUTE, SECOND
from tumbler_server.secrets.opaque_tokens import open_opaque_tokens


@pytest.mark.parametrize(
    ("life", "grace", "waited", "expected"),
    [
        (None, None, 0, MINUTE),
        (None, None, DAY, MINUTE),
        (DAY, None, 0, MINUTE),
        (MINUTE, None, 0, MINUTE),
        (MINUTE, None, 1, MINUTE - 1),
        (10 * SECOND, None, 4 * SECOND, 6 * SECOND),
        (10 * SECOND, None, 10 * SECOND, 0),
        (10 * SECOND, None, DAY, 0),
        (None, HOUR, 0, MINUTE),
        (None, HOUR, HOUR - SECOND, SECOND),
        (3 * SECOND, 5 * SECOND, 0, 3 * SECOND),
        (None, 0, 0, 0),
    ],
)
def test_an_answer_may_be_reused_for_a_minute_at_most(
    world: World, life: int | None, grace: int | None, waited: int, expected: int
) -> None:
    """cache_ttl is 60 s, or the time to the key's expiry or end of grace period if that is shorter."""
    created = world.create(ttl=None if life is None else lasting(life))
    if grace is not None:
        world.rotate(created.api_key.id, grace_period=lasting(grace))
    world.clock.advance(waited)
    assert world.verify(created.key).cache_ttl == lasting(expected)


def test_the_operator_chooses_how_long_an_answer_may_be_reused(world: World) -> None:
    """The longest cache_ttl is a setting of the server."""
    created, short = world.create(), world.create(ttl=lasting(HOUR))
    world.reopen(cache_ttl=DAY)
    assert world.verify(created.key).cache_ttl == lasting(DAY)
    assert world.verify(short.key).cache_ttl == lasting(HOUR)


def test_nothing_may_be_reused_of_a_key_that_was_not_proven(world: World) -> None:
    """MALFORMED and NOT_FOUND have no cache_ttl."""
    for text in ("garbage", world.create().key[:-1] + "!"):
        assert not world.verify(text).HasField("cache_ttl")


def test_every_change_moves_the_revision_by_one(world: World) -> None:
    """A response's revision is that of the newest change of any key; each change adds one, and reads add nothing."""
    created = world.create()
    key_id = created.api_key.id
    first = world.verify(created.key)
    assert first.revision == world.events()[-1].revision
    assert world.verify(created.key).revision == first.revision
    for number, change in enumerate(
        [
            lambda: world.update(key_id, "name", name="after"),
            lambda: world.set_active(key_id, False),
            lambda: world.create(project_id="beta"),
            lambda: world.revoke(key_id),
        ],
        start=1,
    ):
        token = change().consistency_token
        answer = world.verify(created.key)
        assert (answer.revision, answer.consistency_token) == (first.revision + number, token)
    assert world.verify("garbage").revision == first.revision + 4


def test_a_token_of_a_change_is_honoured(world: World) -> None:
    """A response that is at least as fresh as a change reflects it; an older token is valid and demands less."""
    created = world.create()
    revoked = world.revoke(created.api_key.id)
    for token in (created.consistency_token, revoked.consistency_token):
        assert world.verdict(created.key, consistency={"at_least_as_fresh": token}) == "REVOKED"


@pytest.fixture
def stranger(dialect: str, new_database: Callable[[str], str], tmp_path: Path, clock: FrozenClock) -> Iterator[World]:
    """Return another installation, with its own database and pepper."""
    stranger = World(new_database(dialect), tmp_path / "stranger", clock)
    yield stranger
    stranger.close()


def test_a_token_of_another_installation_is_refused(world: World, stranger: World) -> None:
    """A consistency token or page token of another installation is INVALID_ARGUMENT."""
    foreign = stranger.create().consistency_token
    request = pb.VerifyRequest(key=world.create().key, consistency={"at_least_as_fresh": foreign})
    refused = world.refused("Verify", request)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["consistency.at_least_as_fresh"])
    page = stranger.page(page_size=1).next_page_token
    assert page
    assert world.refused("List", pb.ListRequest(page_token=page)).fields == ["page_token"]


def test_a_key_of_another_installation_is_not_found(world: World, stranger: World) -> None:
    """A key of another installation is NOT_FOUND, and UNAUTHENTICATED as a caller."""
    foreign = stranger.create(project_id="tumbler", scopes=["tumbler:*"]).key
    assert world.verdict(foreign) == "NOT_FOUND"
    assert world.refused("List", pb.ListRequest(), foreign).code is grpc.StatusCode.UNAUTHENTICATED


def test_what_is_no_token_is_refused(world: World) -> None:
    """A changed, empty, invented or different kind of token is INVALID_ARGUMENT, whatever key is verified."""
    created = [world.create() for _ in range(2)]
    token = created[0].consistency_token
    page = world.page(page_size=1).next_page_token
    others = ["", "garbage", token[1:], token + "A", "A" + token[1:], "A" * 5_000, "é", page, "5", "0"]
    for other in others:
        for text in (created[0].key, "garbage"):
            request = pb.VerifyRequest(key=text, consistency={"at_least_as_fresh": other})
            refused = world.refused("Verify", request)
            assert refused.fields == ["consistency.at_least_as_fresh"]


def test_a_token_from_the_future_is_refused(world: World) -> None:
    """A token of a revision that the database lacks, for example after a restore, is refused."""
    created = world.create()
    tokens = open_opaque_tokens(world.core.store, world.core.tail.lineage.mark)
    newest = world.events()[-1].revision
    assert world.verdict(created.key, consistency={"at_least_as_fresh": tokens.consistency(newest)}) == "VALID"
    request = pb.VerifyRequest(key=created.key, consistency={"at_least_as_fresh": tokens.consistency(newest + 1)})
    refused = world.refused("Verify", request)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["consistency.at_least_as_fresh"])


@pytest.mark.parametrize("meanwhile", ["nothing", "a restart"])
def test_a_change_that_a_backup_has_undone_is_refused(world: World, meanwhile: str) -> None:
    """What names a lost change is refused although the log has that revision again; what names a kept one is not."""
    kept, earlier = world.create(), world.call("ListEvents", pb.ListEventsRequest(page_size=1))
    lost, _ = world.create(), world.create()
    later = world.call("ListEvents", pb.ListEventsRequest(page_size=3))
    restore(world.core.store, world.events()[-1].revision - 2)
    world.reopen()
    other = [world.create() for _ in range(3)][-1]
    if meanwhile == "a restart":
        world.reopen()
    asked = [
        pb.VerifyRequest(key=other.key, consistency={"at_least_as_fresh": change.consistency_token})
        for change in (kept, lost, other)
    ]
    answers = world.call("BatchVerify", pb.BatchVerifyRequest(requests=asked)).responses
    assert [answer.code for answer in answers] == [
        pb.VERIFY_CODE_VALID,
        pb.VERIFY_CODE_UNSPECIFIED,
        pb.VERIFY_CODE_VALID,
    ]
    assert [world.call("Verify", request).valid for request in (asked[0], asked[2])] == [True, True]
    refused = world.refused("Verify", asked[1])
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["consistency.at_least_as_fresh"])
    assert world.call("ListEvents", pb.ListEventsRequest(page_token=earlier.next_page_token)).events
    refused = world.refused("ListEvents", pb.ListEventsRequest(page_token=later.next_page_token))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


CHANGES: dict[str, tuple[Callable[[World, str], object], str]] = {
    "revoke": (lambda world, key_id: world.revoke(key_id), "REVOKED"),
    "deactivate": (lambda world, key_id: world.set_active(key_id, False), "INACTIVE"),
    "rotate": (lambda world, key_id: world.rotate(key_id, grace_period=lasting(0)), "SUPERSEDED"),
    "take the scope": (lambda world, key_id: world.update(key_id, "scopes"), "INSUFFICIENT_SCOPE"),
    "bind to a network": (
        lambda world, key_id: world.update(key_id, "allowed_cidrs", allowed_cidrs=["192.0.2.1"]),
        "IP_NOT_ALLOWED",
    ),
}


@pytest.mark.parametrize(
    "consistency",
    [None, {"minimize_latency": True}, {"fully_consistent": True}],
    ids=["unset", "minimize_latency", "fully_consistent"],
)
@pytest.mark.parametrize("change", CHANGES)
def test_another_server_sees_a_change_within_the_bound(
    world: World, twin: World, dialect: str, change: str, consistency: dict[str, bool] | None
) -> None:
    """A server decides by another server's changes, although it has cached the key and gets no notification.

    This takes effect at once on SQLite and with fully_consistent, and on PostgreSQL after max_staleness.
    """
    created = world.create(scopes=["a:b"])
    asked = {"required_scopes": ["a:b"], "consistency": consistency}
    assert twin.verdict(created.key, **asked) == "VALID"
    make, code = CHANGES[change]
    make(world, created.api_key.id)
    assert world.verdict(created.key, **asked) == code
    if dialect == "postgresql" and not (consistency and "fully_consistent" in consistency):
        twin.let_lapse()
    assert twin.verdict(created.key, **asked) == code
    assert twin.verify(created.key).revision == world.verify(created.key).revision


def test_another_server_sees_a_change_with_its_token_at_once(world: World, twin: World) -> None:
    """A response that must be as fresh as a change reflects it, whichever server made it and whatever is cached."""
    created = world.create()
    assert twin.verdict(created.key) == "VALID"
    token = world.revoke(created.api_key.id).consistency_token
    assert twin.verdict(created.key, consistency={"at_least_as_fresh": token}) == "REVOKED"


def test_another_server_knows_a_new_key_at_once(world: World, twin: World) -> None:
    """A key that one server creates works at once at the other."""
    assert twin.verdict(twin.operator) == "VALID"
    created = world.create()
    assert twin.verdict(created.key) == "VALID"
    twin.set_active(created.api_key.id, False)
    world.let_lapse()
    assert world.verdict(created.key) == "INACTIVE"
    twin.set_active(created.api_key.id, True)
    world.let_lapse()
    assert world.verdict(created.key) == "VALID"


def test_a_calling_key_is_shut_out_by_the_other_server_within_the_bound(world: World, twin: World) -> None:
    """A revoked or narrowed calling key is refused by the other server within the staleness bound."""
    reader = world.create(scopes=["tumbler:keys:read"])
    twin.page(reader.key)
    world.update(reader.api_key.id, "scopes")
    twin.let_lapse()
    assert twin.refused("List", pb.ListRequest(), reader.key).reason == "SCOPE_MISSING"
    world.revoke(reader.api_key.id)
    twin.let_lapse()
    assert twin.refused("List", pb.ListRequest(), reader.key).reason == "UNAUTHENTICATED"


def test_a_calling_key_is_let_in_by_the_other_server_within_the_bound(world: World, twin: World) -> None:
    """A granted scope or an activation of a calling key takes effect at the other server within the staleness bound."""
    reader = world.create()
    assert twin.refused("List", pb.ListRequest(), reader.key).reason == "SCOPE_MISSING"
    world.update(reader.api_key.id, scopes=["tumbler:keys:read"])
    twin.let_lapse()
    twin.page(reader.key)
    world.set_active(reader.api_key.id, False)
    twin.let_lapse()
    assert twin.refused("List", pb.ListRequest(), reader.key).reason == "UNAUTHENTICATED"
    world.set_active(reader.api_key.id, True)
    twin.let_lapse()
    twin.page(reader.key)


def test_a_small_memory_forgets_and_errs_not(world: World) -> None:
    """A server with a cache of one key gives the same verdicts, only more slowly."""
    world.reopen(cache_size=1)
    created = [world.create() for _ in range(3)]
    world.revoke(created[1].api_key.id)
    for _ in range(2):
        assert [world.verdict(one.key) for one in created] == ["VALID", "REVOKED", "VALID"]
