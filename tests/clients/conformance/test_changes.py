"""A verifier that has cached a key sees each change that the stream delivers."""

from tests.clients.conformance.scene import Scene

GRACE = 2.0
DAY = 86_400.0


def test_a_revoked_key_is_denied(scene: Scene) -> None:
    """A revoked key is denied once the stream has delivered the event. Other keys stay cached."""
    doomed, other = scene.create(), scene.create()
    scene.open()
    scene.remembered(doomed.key, other.key)
    scene.service.revoke(doomed.api_key.id)
    scene.becomes(doomed.key, "REVOKED")
    assert scene.verify(other.key)["cached"] is True


def test_a_key_is_switched_off_and_on(scene: Scene) -> None:
    """A deactivated key is denied, and valid again when it is activated."""
    scene.open()
    created = scene.create()
    for _ in range(3):
        scene.remembered(created.key)
        scene.service.set_active(created.api_key.id, active=False)
        scene.becomes(created.key, "INACTIVE")
        scene.service.set_active(created.api_key.id, active=True)
        scene.becomes(created.key, "VALID")


def test_a_rotated_key_works_through_its_grace(scene: Scene) -> None:
    """The old key and the new one are valid until the grace period ends. At that instant the old one is denied."""
    scene.open()
    old = scene.create("orders:read")
    scene.remembered(old.key)
    rotated = scene.service.rotate(old.api_key.id, grace=GRACE)
    assert scene.code(old.key) == "VALID"
    assert scene.code(rotated.key, required_scopes=["orders:read"]) == "VALID"
    ends = rotated.old_api_key.grace_expire_time.ToNanoseconds() / 1e9
    assert 0 < scene.last_valid(old.key, "SUPERSEDED") < ends
    assert scene.code(rotated.key) == "VALID"


def test_a_rotated_key_ends_on_its_successors_first_use(scene: Scene) -> None:
    """An old key that waits for its successor's first use is valid from the cache until then, and denied soon after."""
    scene.open()
    old = scene.create()
    waits = {"old_key_ends": "OLD_KEY_ENDS_ON_FIRST_USE"}
    rotated = scene.service.rotate(old.api_key.id, grace=DAY, **waits)
    scene.remembered(old.key)
    # The first new secret is lost, so the successor is rotated too.
    again = scene.service.rotate(rotated.api_key.id, grace=DAY, **waits)
    assert scene.verify(old.key)["cached"] is True
    assert scene.code(again.key) == "VALID"
    scene.becomes(old.key, "SUPERSEDED")
    scene.becomes(rotated.key, "SUPERSEDED")
    scene.remembered(again.key)


def test_a_key_is_rotated_without_grace(scene: Scene) -> None:
    """Without a grace period, the event ends the old key."""
    scene.open()
    old = scene.create()
    scene.remembered(old.key)
    rotated = scene.service.rotate(old.api_key.id, grace=0)
    scene.becomes(old.key, "SUPERSEDED")
    assert scene.code(rotated.key) == "VALID"


def test_scopes_are_taken_and_given(scene: Scene) -> None:
    """A scope that a key loses is no longer granted, and one that it gets is granted."""
    scene.open()
    created = scene.create("orders:read")
    asked = {"required_scopes": ["orders:read"]}
    scene.remembered(created.key)
    for _ in range(3):
        assert scene.code(created.key, **asked) == "VALID"
        scene.update(created.api_key.id, scopes=["customers:read"])
        scene.becomes(created.key, "INSUFFICIENT_SCOPE", **asked)
        scene.update(created.api_key.id, scopes=["orders:*"])
        scene.becomes(created.key, "VALID", **asked)


def test_other_fields_are_changed(scene: Scene) -> None:
    """Changed networks, owner and metadata take effect soon after."""
    scene.open()
    created = scene.create(owner_id="owner-1", metadata={"plan": "silver"})
    scene.remembered(created.key)
    scene.update(
        created.api_key.id,
        owner_id="owner-2",
        metadata={"plan": "gold"},
        allowed_cidrs=["192.0.2.0/24", "2001:db8::/32"],
    )
    scene.becomes(created.key, "IP_NOT_ALLOWED")
    answer = scene.verify(created.key, client_ip="2001:db8::7")
    assert (answer["code"], answer["owner_id"], answer["metadata"]) == ("VALID", "owner-2", {"plan": "gold"})


def test_an_end_is_set(scene: Scene) -> None:
    """A key without an expiry gets one, and expires at that instant."""
    scene.open()
    created = scene.create()
    scene.remembered(created.key)
    end = created.api_key.create_time.ToNanoseconds() // 1_000_000_000 + 3
    scene.update(created.api_key.id, expire_time={"seconds": end})
    assert 0 < scene.last_valid(created.key, "EXPIRED") < end
