"""What a verifier caches, and what it decides from the cache."""

import time
from typing import Any

import pytest

from tests.clients.conformance.scene import Scene
from tests.harness import forged


def test_a_remembered_key_is_verified_without_a_call(scene: Scene) -> None:
    """A key that was verified before is answered from the cache, with all the fields of the first answer."""
    created = scene.create(
        "orders:*", environment_id="live", owner_id="owner-7", name="shop", metadata={"plan": "gold"}
    )
    scene.open()
    first = scene.verify(created.key)
    assert {**first, "cached": None} == {
        "valid": True,
        "code": "VALID",
        "key_id": created.api_key.id,
        "project_id": scene.project,
        "environment_id": "live",
        "owner_id": "owner-7",
        "name": "shop",
        "scopes": ["orders:*"],
        "metadata": {"plan": "gold"},
        "expire_time": None,
        "cached": None,
    }
    scene.remembered(created.key)
    before = scene.calls()
    for _ in range(20):
        assert scene.verify(created.key) == {**first, "cached": True}
    assert scene.calls() == before


def test_the_end_of_a_key_is_told(scene: Scene) -> None:
    """The expiry in the result is the server's, to the second."""
    scene.open()
    created = scene.create(ttl={"seconds": 3_600})
    told = scene.verify(created.key)["expire_time"]
    assert told.removesuffix("Z")[:19] == created.api_key.expire_time.ToJsonString()[:19]
    assert told.endswith("Z")


def test_each_demand_is_decided_anew(scene: Scene) -> None:
    """Each call's scopes, environment and address are checked against a cached key, without a call."""
    key = scene.create("orders:*", environment_id="live", allowed_cidrs=["192.0.2.0/24"]).key
    scene.open()
    inside = {"client_ip": "192.0.2.7"}
    # The record is cached, whatever the first demand was.
    assert scene.code(key, client_ip="198.51.100.1") == "IP_NOT_ALLOWED"
    before = scene.calls()
    assert scene.code(key) == "IP_NOT_ALLOWED"
    assert scene.code(key, **inside) == "VALID"
    assert scene.code(key, **inside, required_scopes=["orders:read", "orders:write:own"]) == "VALID"
    assert scene.code(key, **inside, required_scopes=["orders:read", "customers:read"]) == "INSUFFICIENT_SCOPE"
    assert scene.code(key, **inside, environment_id="live") == "VALID"
    assert scene.code(key, **inside, environment_id="test", required_scopes=["x"]) == "ENVIRONMENT_MISMATCH"
    assert scene.verify(key, **inside, environment_id="test")["cached"] is True
    assert scene.calls() == before


def test_another_secret_is_not_the_key(scene: Scene) -> None:
    """The id of a cached key with another secret is denied without a call, without any field, and evicts nothing."""
    key = scene.create("orders:read", owner_id="owner-7").key
    scene.open()
    scene.remembered(key)
    before = scene.calls()
    denied = scene.verify(forged(key))
    assert (denied["code"], denied["owner_id"], denied["scopes"], denied["key_id"]) == ("NOT_FOUND", "", [], "")
    assert scene.verify(key)["cached"] is True
    assert scene.calls() == before


def test_what_is_no_key_is_denied_without_a_call(scene: Scene) -> None:
    """Text that is no key, such as one with a typing error, is denied without a call."""
    scene.open()
    key = scene.create().key
    typed = key[:-1] + ("0" if key[-1] != "0" else "1")
    before = scene.calls()
    assert [scene.code(text) for text in ("", "x", typed, key + " ", "é" * 80, "x" * 100_000)] == ["MALFORMED"] * 6
    assert scene.calls() == before


def test_what_is_denied_for_good_is_not_remembered(scene: Scene) -> None:
    """Unknown, revoked and inactive keys are not cached, so a flood of them evicts nothing."""
    good, revoked, inactive = scene.create(), scene.create(), scene.create()
    scene.open(cache_size=5)
    scene.remembered(good.key)
    remembered = scene.size()
    scene.service.revoke(revoked.api_key.id)
    scene.service.set_active(inactive.api_key.id, active=False)
    for _ in range(5):
        assert scene.code(revoked.key) == "REVOKED"
        assert scene.code(inactive.key) == "INACTIVE"
        assert scene.code(forged(revoked.key)) == "NOT_FOUND"
    assert scene.size() == remembered
    assert scene.verify(good.key)["cached"] is True


@pytest.mark.parametrize("options", [{}, {"watch": False, "fixed_ttl": 60_000}], ids=["watching", "for a fixed time"])
def test_a_key_expires_while_it_is_remembered(scene: Scene, options: dict[str, Any]) -> None:
    """A cached key is denied from the instant of its expiry on, however long it may be cached."""
    scene.open(**options)
    created = scene.create(ttl={"seconds": 2})
    scene.remembered(created.key)
    last = scene.last_valid(created.key, "EXPIRED")
    assert 0 < last < created.api_key.expire_time.ToNanoseconds() / 1e9
    assert scene.code(created.key) == "EXPIRED"


def test_without_room_nothing_is_remembered(scene: Scene) -> None:
    """With a cache size of 0, each verification is a call."""
    scene.open(settled=False, cache_size=0)
    key = scene.create().key
    before = scene.calls()
    assert [scene.code(key) for _ in range(5)] == ["VALID"] * 5
    assert scene.calls() == before + 5
    assert scene.size() == 0


def test_without_the_stream_nothing_is_remembered(scene: Scene) -> None:
    """Without the stream each verification is a call, so the next call denies a revoked key."""
    scene.open(settled=False, watch=False)
    created = scene.create()
    before = scene.calls()
    assert [scene.code(created.key) for _ in range(5)] == ["VALID"] * 5
    assert scene.calls() == before + 5
    scene.service.revoke(created.api_key.id)
    assert scene.code(created.key) == "REVOKED"


def test_without_the_stream_a_time_can_be_fixed(scene: Scene) -> None:
    """Without the stream a fixed time to live can be set. A revocation is seen by its end."""
    scene.open(settled=False, watch=False, fixed_ttl=1_500)
    created = scene.create()
    scene.remembered(created.key)
    scene.service.revoke(created.api_key.id)
    revoked = time.time()
    assert scene.last_valid(created.key, "REVOKED") < revoked + 1.5


def test_a_demand_of_the_wrong_form_is_an_error(scene: Scene) -> None:
    """A scope or an address of the wrong form fails only the call that sent it, not others in flight."""
    scene.open()
    *keys, one, two = (scene.create("orders:*").key for _ in range(22))
    right = [(key, {"required_scopes": ["orders:read"]}) for key in keys]
    ended = scene.verify_together(*right, (one, {"client_ip": "nonsense"}), (two, {"required_scopes": ["orders:*"]}))
    assert ended == ["VALID"] * 20 + ["invalid_request"] * 2
