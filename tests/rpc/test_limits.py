"""Limits of what is stored and of response sizes, whatever a caller sends."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.harness import World, retell
from tests.unit.test_counting import LISTS, filled, name
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import limits
from tumbler_server.keys import record
from tumbler_server.server import SERVICE
from tumbler_server.store.models import ApiKeyRow, ProjectRow

METHODS = {method.input_type.name: method.name for method in SERVICE.methods}
LIMIT = limits.RECORD_BYTES.most
ANSWER = limits.ANSWER_BYTES.most


def metadata(size: int) -> dict[str, str]:
    """Return metadata of ``size`` characters, keys included, and a few more: 1,000 per pair."""
    return {f"{number:04}": "v" * 996 for number in range(size // 1_000)} | {"rest": "v" * (size % 1_000)}


def enlarge(world: World, key_id: str, size: int) -> None:
    """Give a key more metadata than the limit, directly in the database, as it could have before the limit."""
    world.core.store.write_serialized(
        lambda transaction: transaction.run(
            ApiKeyRow.update(metadata=record.to_columns(record.Key("", "", metadata=metadata(size)))["metadata"]).where(
                ApiKeyRow.id == key_id
            )
        )
    )
    retell(world.core.store)


@pytest.mark.parametrize(("request_type", "path"), LISTS, ids=name)
def test_too_many_entries(world: World, request_type: Any, path: Any) -> None:
    """In every RPC, a list or map with too many entries is refused with the name of the field."""
    request = filled(request_type, path, limits.ENTRIES[path[-1].name] + 1)
    refused = world.refused(METHODS[request_type.name], request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refused.fields == [name(path)]


class TestRecord:
    """A key's record has at most 16 KiB in protobuf encoding."""

    @pytest.fixture
    def largest(self, world: World) -> pb.CreateResponse:
        """Return a key with nearly as much metadata as fits."""
        return world.create(metadata=metadata(14_000))

    def test_the_largest(self, world: World, largest: pb.CreateResponse) -> None:
        """A record of nearly 16 KiB is accepted, and Rotate carries it over."""
        assert 14_000 < world.get(largest.api_key.id).ByteSize() <= LIMIT
        assert world.rotate(largest.api_key.id).api_key.metadata == largest.api_key.metadata

    @pytest.mark.parametrize(
        ("fields", "path"),
        [
            ({"metadata": {f"{'k' * 60}{number:02}": "v" * 1_024 for number in range(50)}}, "metadata"),
            ({"metadata": metadata(16_000)}, "metadata"),
            ({"metadata": metadata(9_000), "scopes": [f"s{n}:{'s' * 120}" for n in range(50)]}, "metadata"),
            ({"metadata": metadata(4_000), "scopes": [f"s{n}:{'s' * 120}" for n in range(100)]}, "scopes"),
            ({"metadata": {f"{number}": "ж" * 800 for number in range(10)}}, "metadata"),
        ],
        ids=["the most metadata", "ascii", "scopes too", "mostly scopes", "two bytes each"],
    )
    def test_create(self, world: World, fields: dict[str, Any], path: str) -> None:
        """A larger record is refused, even if each field is valid, with the largest field and the total size."""
        before = len(world.events())
        refused = world.refused("Create", pb.CreateRequest(project_id="acme", **fields))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert refused.fields == [path]
        assert "bytes as sent" in refused.message
        assert "at most 16,384" in refused.message
        assert len(world.events()) == before

    def test_validate_only(self, world: World) -> None:
        """validate_only checks the size as well."""
        request = pb.CreateRequest(project_id="acme", metadata=metadata(16_000), validate_only=True)
        assert world.refused("Create", request).fields == ["metadata"]

    def test_update(self, world: World, largest: pb.CreateResponse) -> None:
        """Update checks the size of the whole record, not only of the changed fields."""
        request = pb.UpdateRequest(api_key=api_key_pb2.ApiKey(id=largest.api_key.id, scopes=["s" * 100] * 1))
        request.api_key.scopes.extend(f"s{number}:{'s' * 100}" for number in range(20))
        refused = world.refused("Update", request)
        assert refused.fields == ["api_key.metadata"]
        assert not world.get(largest.api_key.id).scopes

    def test_from_before(self, world: World) -> None:
        """A record from before the limit works and can be ended or made smaller, but neither enlarged nor rotated."""
        made = world.create(scopes=["a:b", "a:c"])
        enlarge(world, made.api_key.id, 40_000)
        assert world.verdict(made.key) == "VALID"
        assert len(world.verify(made.key).metadata) == 41
        refused = world.refused("Rotate", pb.RotateRequest(key_id=made.api_key.id))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["api_key.metadata"])
        larger = api_key_pb2.ApiKey(id=made.api_key.id, name="a longer name")
        assert world.refused("Update", pb.UpdateRequest(api_key=larger)).fields == ["api_key.metadata"]
        assert list(world.update(made.api_key.id, scopes=["a:b"]).api_key.scopes) == ["a:b"]
        world.set_active(made.api_key.id, False)
        world.set_active(made.api_key.id, True)
        world.update(made.api_key.id, "metadata", metadata={"small": "now"})
        assert world.rotate(made.api_key.id).api_key.metadata == {"small": "now"}
        world.revoke(made.api_key.id, comment="c" * 1_024)


class TestAnswer:
    """A response has at most 3 MiB."""

    LARGE = 700_000

    @pytest.fixture
    def keys(self, world: World) -> list[pb.CreateResponse]:
        """Return nine keys of a size that was possible before the limit."""
        made = [world.create(name=f"large {number}") for number in range(9)]
        for each in made:
            enlarge(world, each.api_key.id, self.LARGE)
        return made

    def pages(self, world: World, **fields: Any) -> Iterator[pb.ListResponse]:
        """Yield all pages of a list."""
        page = world.page(project_id="acme", **fields)
        yield page
        while page.next_page_token:
            page = world.page(project_id="acme", page_token=page.next_page_token, **fields)
            yield page

    def test_list(self, world: World, keys: list[pb.CreateResponse]) -> None:
        """A page ends early, with a token; no key is skipped or repeated, and no page is empty."""
        pages = list(self.pages(world, page_size=1_000))
        assert [len(page.api_keys) for page in pages] == [4, 4, 1]
        assert all(page.ByteSize() <= ANSWER for page in pages)
        listed = [key.id for page in pages for key in page.api_keys]
        assert sorted(listed) == sorted(each.api_key.id for each in keys)

    def test_one_that_is_too_large(self, world: World, keys: list[pb.CreateResponse]) -> None:
        """A key that exceeds the limit alone has a page of its own, so that a caller can go on."""
        enlarge(world, keys[4].api_key.id, 4_000_000)
        pages = list(self.pages(world, order_by="name"))
        assert [len(page.api_keys) for page in pages] == [4, 1, 4]

    def test_batch(self, world: World, keys: list[pb.CreateResponse]) -> None:
        """Items that do not fit stay undecided, each in its place, and can be sent again."""
        requests = [pb.VerifyRequest(key=each.key) for each in keys]
        response = world.call("BatchVerify", pb.BatchVerifyRequest(requests=requests))
        assert response.ByteSize() <= ANSWER
        assert [each.code for each in response.responses] == [1] * 4 + [0] * 5
        assert [each == pb.VerifyResponse() for each in response.responses] == [False] * 4 + [True] * 5
        response = world.call("BatchVerify", pb.BatchVerifyRequest(requests=requests[4:]))
        assert [each.code for each in response.responses] == [1] * 4 + [0]

    def test_batch_of_the_most(self, world: World) -> None:
        """A full batch of the largest records has a response within the limit."""
        key = world.create(metadata=metadata(14_000)).key
        request = pb.BatchVerifyRequest(requests=[pb.VerifyRequest(key=key)] * 1_000)
        response = world.call("BatchVerify", request)
        assert ANSWER * 0.99 < response.ByteSize() <= ANSWER
        assert len(response.responses) == 1_000
        codes = [each.code for each in response.responses]
        assert codes == [1] * sum(codes) + [0] * (1_000 - sum(codes))


class TestProjectKeys:
    """The limit of keys in a project."""

    @pytest.fixture
    def few(self, world: World) -> World:
        """Return a service with a limit of three keys per project."""
        world.reopen(max_project_keys=3)
        return world

    def test_create(self, few: World) -> None:
        """A key beyond the limit is refused with the name of the limit and leaves nothing; other projects go on."""
        for _ in range(3):
            few.create()
        before = len(few.events())
        refused = few.refused("Create", pb.CreateRequest(project_id="acme"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
        assert dict(refused.info.metadata) == {"limit": "keys of a project", "most": "3"}
        assert len(few.events()) == before
        few.create(project_id="globex")

    def test_rotate(self, few: World) -> None:
        """A successor counts, and so do revoked and superseded keys, because their rows are kept."""
        first = few.create().api_key.id
        second = few.rotate(first).api_key.id
        few.revoke(few.rotate(second).api_key.id)
        refused = few.refused("Create", pb.CreateRequest(project_id="acme"))
        assert refused.reason == "LIMIT_REACHED"

    def test_what_makes_no_key(self, few: World) -> None:
        """Refused, replayed and validate_only calls do not count."""
        request_id = "123e4567-e89b-42d3-a456-426614174000"
        few.create(request_id=request_id)
        for _ in range(5):
            few.create(request_id=request_id)
            few.create(validate_only=True)
            few.refused("Create", pb.CreateRequest(project_id="acme", name="x"))
        counted = few.core.store.select(ProjectRow.select().where(ProjectRow.project_id == "acme"))
        assert [row.keys for row in counted] == [1]

    def test_a_higher_limit(self, few: World) -> None:
        """If the operator raises the limit, the project can create keys again."""
        for _ in range(3):
            few.create()
        few.reopen(max_project_keys=4)
        few.create()
        few.refused("Create", pb.CreateRequest(project_id="acme"))
