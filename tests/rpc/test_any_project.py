"""`any_project` in a response: the caller may see the keys of all projects."""

import pytest

from tests.harness import World, forged
from tests.rpc.test_batch_verify import batch, mixed
from tumbler.v1 import api_key_service_pb2 as pb

__all__ = ["mixed"]


@pytest.mark.parametrize(
    ("caller", "named", "told"),
    [
        ("tumbler", "", True),
        ("tumbler", "acme", False),
        ("tumbler", "tumbler", False),
        ("acme", "", False),
        ("acme", "acme", False),
    ],
)
def test_told_to_who_sees_all_projects_and_names_none(world: World, caller: str, named: str, told: bool) -> None:
    """any_project is true only for a key of the reserved project whose request names no project."""
    key = world.caller("tumbler:keys:verify", project_id=caller)
    created = world.create(project_id="acme")
    for _ in range(2):  # from the database, then from the cache
        assert world.verify(created.key, key, project_id=named).any_project is told
    for text in ("garbage", forged(created.key)):
        assert world.verify(text, key, project_id=named).any_project is told
    world.revoke(created.api_key.id)
    assert world.verify(created.key, key, project_id=named).any_project is told


def test_each_item_of_a_batch_is_told_for_itself(world: World, mixed: list[pb.VerifyRequest]) -> None:
    """In a batch, each response has any_project by its own request, whatever its code."""
    key = world.caller("tumbler:keys:verify", project_id="tumbler")
    mixed += [pb.VerifyRequest(key=request.key, project_id="acme") for request in mixed]
    for _ in range(2):
        answers = batch(world, mixed, key)
        assert [answer.any_project for answer in answers] == [not request.project_id for request in mixed]
    tenant = world.caller("tumbler:keys:verify", project_id="acme")
    assert not any(answer.any_project for answer in batch(world, mixed, tenant))


def test_an_item_that_was_not_decided_says_nothing(world: World) -> None:
    """An undecided item of a batch has an empty response."""
    key = world.caller("tumbler:keys:verify", project_id="tumbler")
    assert batch(world, [pb.VerifyRequest(client_ip="nonsense")], key) == [pb.VerifyResponse()]
