"""BatchVerify: each response is the same as Verify's."""

import grpc
import pytest

from tests.harness import World, at, forged, lasting, retell
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import HOUR, SECOND
from tumbler_server.rpc.hotpath import MOST_PROVEN
from tumbler_server.store.models import ApiKeyRow

EMPTY = pb.VerifyResponse()


def batch(world: World, requests: list[pb.VerifyRequest], key: str | None = None) -> list[pb.VerifyResponse]:
    """Verify many keys in one call."""
    return list(world.call("BatchVerify", pb.BatchVerifyRequest(requests=requests), key).responses)


def codes(responses: list[pb.VerifyResponse]) -> list[str]:
    """Return the names of the codes, without their prefix."""
    return [pb.VerifyCode.Name(response.code).removeprefix("VERIFY_CODE_") for response in responses]


def queries(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with every query for keys."""
    asked: list[str] = []
    read = world.core.store.read

    def note(sql: str, parameters: object = ()) -> object:
        if "api_key k " in sql:
            asked.append(sql)
        return read(sql, parameters)  # type: ignore[arg-type]

    monkeypatch.setattr(world.core.store, "read", note)
    return asked


@pytest.fixture
def mixed(world: World) -> list[pb.VerifyRequest]:
    """Return requests for every outcome, some of them twice."""
    good, other, revoked, inactive, expired, bound = (world.create(scopes=["a:b"], name=f"n{i:02}") for i in range(6))
    world.revoke(revoked.api_key.id)
    world.set_active(inactive.api_key.id, False)
    world.update(expired.api_key.id, "expire_time", expire_time=at(world.clock() + SECOND))
    world.update(bound.api_key.id, "allowed_cidrs", allowed_cidrs=["192.0.2.0/24"])
    rotated = world.create()
    world.rotate(rotated.api_key.id, grace_period=lasting(0))
    world.clock.advance(HOUR)
    return [
        pb.VerifyRequest(key=good.key),
        pb.VerifyRequest(key="garbage"),
        pb.VerifyRequest(key=forged(good.key)),
        pb.VerifyRequest(key=revoked.key),
        pb.VerifyRequest(key=other.key, required_scopes=["a:b"]),
        pb.VerifyRequest(key=good.key, required_scopes=["a:c"]),
        pb.VerifyRequest(key=inactive.key),
        pb.VerifyRequest(key=expired.key),
        pb.VerifyRequest(key=bound.key),
        pb.VerifyRequest(key=bound.key, client_ip="192.0.2.9"),
        pb.VerifyRequest(key=other.key, environment_id="elsewhere"),
        pb.VerifyRequest(key=other.key, project_id="another"),
        pb.VerifyRequest(key=rotated.key),
        pb.VerifyRequest(key=good.key),
        pb.VerifyRequest(),
    ]


def test_in_order_with_the_answers_of_verify(world: World, mixed: list[pb.VerifyRequest]) -> None:
    """The responses come in the order of the requests and equal those of Verify, cached or not."""
    world.reopen()
    together = batch(world, mixed)
    assert codes(together) == [
        "VALID", "MALFORMED", "NOT_FOUND", "REVOKED", "VALID", "INSUFFICIENT_SCOPE", "INACTIVE", "EXPIRED",
        "IP_NOT_ALLOWED", "VALID", "ENVIRONMENT_MISMATCH", "NOT_FOUND", "SUPERSEDED", "VALID", "MALFORMED",
    ]  # fmt: skip
    assert together == [world.call("Verify", request) for request in mixed]
    assert batch(world, mixed) == together


def test_one_query_for_all_that_is_not_known(
    world: World, mixed: list[pb.VerifyRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that are not cached are read by a single query, and cached ones by none."""
    world.reopen()
    world.verify(mixed[0].key)
    asked = queries(world, monkeypatch)
    batch(world, mixed)
    assert len(asked) == 1
    batch(world, [request for request in mixed if request.key != mixed[2].key])
    assert len(asked) == 1


def test_nothing_to_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of malformed keys needs no query."""
    world.verdict(world.operator)
    asked = queries(world, monkeypatch)
    assert codes(batch(world, [pb.VerifyRequest(key="garbage")] * 10)) == ["MALFORMED"] * 10
    assert asked == []


@pytest.mark.parametrize(
    "bad",
    [
        pb.VerifyRequest(client_ip="nowhere"),
        pb.VerifyRequest(required_scopes=["*"]),
        pb.VerifyRequest(project_id="no project!"),
        pb.VerifyRequest(consistency={"at_least_as_fresh": "invented"}),
    ],
    ids=lambda request: str(request).split(":", maxsplit=1)[0],
)
def test_a_bad_item_fails_no_other(world: World, bad: pb.VerifyRequest) -> None:
    """An item that Verify would refuse gets an empty response, which denies; the other items are decided."""
    created = world.create()
    bad.key = created.key
    answers = batch(world, [pb.VerifyRequest(key=created.key), bad, pb.VerifyRequest(key=created.key)])
    assert codes(answers) == ["VALID", "UNSPECIFIED", "VALID"]
    assert answers[1] == EMPTY


def test_an_item_from_the_future_fails_no_other(world: World) -> None:
    """An item with a token of a revision that the database lacks stays undecided, and the other items are decided."""
    created = world.create()
    token = world.core.servicer._tokens.consistency(world.events()[-1].revision + 1)
    late = pb.VerifyRequest(key=created.key, consistency={"at_least_as_fresh": token})
    assert codes(batch(world, [late, pb.VerifyRequest(key=created.key)])) == ["UNSPECIFIED", "VALID"]


def test_another_project_fails_no_other(world: World) -> None:
    """An item that names a project outside the caller's permission stays undecided and reveals nothing."""
    caller = world.caller("tumbler:keys:verify")
    created = world.create()
    requests = [pb.VerifyRequest(key=created.key, project_id=project) for project in ("acme", "other", "")]
    assert codes(batch(world, requests, caller)) == ["VALID", "UNSPECIFIED", "VALID"]


@pytest.mark.parametrize("consistency", [{"fully_consistent": True}, "token"], ids=str)
def test_the_freshest_item_counts_for_all(world: World, twin: World, consistency: dict[str, bool] | str) -> None:
    """A batch uses one snapshot, as fresh as its most demanding item requires."""
    created, other = world.create(), world.create()
    assert twin.verdict(created.key) == "VALID"
    token = world.revoke(created.api_key.id).consistency_token
    asked = {"at_least_as_fresh": token} if consistency == "token" else consistency
    requests = [pb.VerifyRequest(key=created.key), pb.VerifyRequest(key=other.key, consistency=asked)]
    answers = batch(twin, requests)
    assert codes(answers) == ["REVOKED", "VALID"]
    assert answers[0].revision == answers[1].revision


@pytest.mark.parametrize("count", [0, 1_001])
def test_one_to_a_thousand(world: World, count: int) -> None:
    """A batch with fewer than 1 or more than 1,000 items is refused."""
    request = pb.BatchVerifyRequest(requests=[pb.VerifyRequest(key="x")] * count)
    refused = world.refused("BatchVerify", request)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["requests"])


def test_a_thousand(world: World) -> None:
    """A thousand keys are verified in one call."""
    created = [world.create().key for _ in range(20)]
    requests = [pb.VerifyRequest(key=created[number % 20]) for number in range(1_000)]
    assert set(codes(batch(world, requests))) == {"VALID"}


def test_secrets_without_a_digest(world: World) -> None:
    """If only bcrypt can verify the keys, a call checks MOST_PROVEN of them, and a retry goes on from there."""
    keys = [world.create().key for _ in range(MOST_PROVEN + 1)]
    world.core.store.write_serialized(lambda change: change.run(ApiKeyRow.update(digest=None, pepper_id="")))
    retell(world.core.store)
    world.reopen()
    requests = [pb.VerifyRequest(key=key) for key in keys]
    refused = world.refused("BatchVerify", pb.BatchVerifyRequest(requests=requests))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert codes(batch(world, requests)) == ["VALID"] * len(keys)
