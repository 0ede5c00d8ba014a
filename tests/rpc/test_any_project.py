"""Who may be told of any tenant's key is told so: by `any_project` in each answer."""

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
    """An answer says `any_project` to a key of the reserved project whose request names none, and to nobody else."""
    key = world.caller("tumbler:keys:verify", project_id=caller)
    created = world.create(project_id="acme")
    for _ in range(2):  # read, then remembered
        assert world.verify(created.key, key, project_id=named).any_project is told
    for text in ("garbage", forged(created.key)):
        assert world.verify(text, key, project_id=named).any_project is told
    world.revoke(created.api_key.id)
    assert world.verify(created.key, key, project_id=named).any_project is told


def test_each_item_of_a_batch_is_told_for_itself(world: World, mixed: list[pb.VerifyRequest]) -> None:
    """In a batch each answer says it by its own request, whatever its code; to a tenant none does."""
    key = world.caller("tumbler:keys:verify", project_id="tumbler")
    mixed += [pb.VerifyRequest(key=request.key, project_id="acme") for request in mixed]
    for _ in range(2):
        answers = batch(world, mixed, key)
        assert [answer.any_project for answer in answers] == [not request.project_id for request in mixed]
    tenant = world.caller("tumbler:keys:verify", project_id="acme")
    assert not any(answer.any_project for answer in batch(world, mixed, tenant))


def test_an_item_that_was_not_decided_says_nothing(world: World) -> None:
    """What a batch leaves undecided stays empty."""
    key = world.caller("tumbler:keys:verify", project_id="tumbler")
    assert batch(world, [pb.VerifyRequest(client_ip="nonsense")], key) == [pb.VerifyResponse()]
