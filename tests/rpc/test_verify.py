"""Verify, as its callers know it."""

from tests.harness import World


def test_a_created_key_is_valid(world: World) -> None:
    """A key that was just created is accepted."""
    created = world.create(name="first", scopes=["orders:*"])
    assert world.verdict(created.key, required_scopes=["orders:read"]) == "VALID"
