"""What a caller sends does not decide how much is kept, or how large an answer is."""

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
    """Return metadata whose texts have so many characters together, and some more: 1,000 a pair."""
    return {f"{number:04}": "v" * 996 for number in range(size // 1_000)} | {"rest": "v" * (size % 1_000)}


def enlarge(world: World, key_id: str, size: int) -> None:
    """Give a key, behind the service's back, as much metadata as keys could have before there was a limit."""
    world.core.store.write(
        lambda transaction: transaction.run(
            ApiKeyRow.update(metadata=record.to_columns(record.Key("", "", metadata=metadata(size)))["metadata"]).where(
                ApiKeyRow.id == key_id
            )
        )
    )
    retell(world.core.store)


@pytest.mark.parametrize(("request_type", "path"), LISTS, ids=name)
def test_too_many_entries(world: World, request_type: Any, path: Any) -> None:
    """Whatever the RPC, a list or map with more entries than it may have is refused, and the field named."""
    request = filled(request_type, path, limits.ENTRIES[path[-1].name] + 1)
    refused = world.refused(METHODS[request_type.name], request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refused.fields == [name(path)]


class TestRecord:
    """A key's record has at most 16 KiB as sent."""

    @pytest.fixture
    def largest(self, world: World) -> pb.CreateResponse:
        """Give a key that has as much metadata as fits, to some hundred bytes."""
        return world.create(metadata=metadata(14_000))

    def test_the_largest(self, world: World, largest: pb.CreateResponse) -> None:
        """Nearly 16 KiB are accepted, carried by Rotate, and what Get sends has no more than that."""
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
        """A larger record is refused, even if each field keeps its rule; the answer names the largest, and the sum."""
        before = len(world.events())
        refused = world.refused("Create", pb.CreateRequest(project_id="acme", **fields))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert refused.fields == [path]
        assert "bytes as sent" in refused.message
        assert "at most 16,384" in refused.message
        assert len(world.events()) == before

    def test_validate_only(self, world: World) -> None:
        """A key that is only validated is measured as well."""
        request = pb.CreateRequest(project_id="acme", metadata=metadata(16_000), validate_only=True)
        assert world.refused("Create", request).fields == ["metadata"]

    def test_update(self, world: World, largest: pb.CreateResponse) -> None:
        """An Update that makes it larger than that is refused, by the whole record and not only what it changes."""
        request = pb.UpdateRequest(api_key=api_key_pb2.ApiKey(id=largest.api_key.id, scopes=["s" * 100] * 1))
        request.api_key.scopes.extend(f"s{number}:{'s' * 100}" for number in range(20))
        refused = world.refused("Update", request)
        assert refused.fields == ["api_key.metadata"]
        assert not world.get(largest.api_key.id).scopes

    def test_from_before(self, world: World) -> None:
        """A larger one from before works on, can be ended and made smaller, but neither larger nor rotated."""
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
    """An answer has at most 3 MiB."""

    LARGE = 700_000

    @pytest.fixture
    def keys(self, world: World) -> list[pb.CreateResponse]:
        """Give nine keys as large as they could be before there was a limit on records."""
        made = [world.create(name=f"large {number}") for number in range(9)]
        for each in made:
            enlarge(world, each.api_key.id, self.LARGE)
        return made

    def pages(self, world: World, **fields: Any) -> Iterator[pb.ListResponse]:
        """Return all pages of a list."""
        page = world.page(project_id="acme", **fields)
        yield page
        while page.next_page_token:
            page = world.page(project_id="acme", page_token=page.next_page_token, **fields)
            yield page

    def test_list(self, world: World, keys: list[pb.CreateResponse]) -> None:
        """A page ends early, with a token, and none is skipped, repeated or empty."""
        pages = list(self.pages(world, page_size=1_000))
        assert [len(page.api_keys) for page in pages] == [4, 4, 1]
        assert all(page.ByteSize() <= ANSWER for page in pages)
        listed = [key.id for page in pages for key in page.api_keys]
        assert sorted(listed) == sorted(each.api_key.id for each in keys)

    def test_one_that_is_too_large(self, world: World, keys: list[pb.CreateResponse]) -> None:
        """One that does not fit at all comes in a page of its own, so that a caller gets past it."""
        enlarge(world, keys[4].api_key.id, 4_000_000)
        pages = list(self.pages(world, order_by="name"))
        assert [len(page.api_keys) for page in pages] == [4, 1, 4]

    def test_batch(self, world: World, keys: list[pb.CreateResponse]) -> None:
        """What does not fit is left undecided, each in its place, and can be asked for again."""
        requests = [pb.VerifyRequest(key=each.key) for each in keys]
        response = world.call("BatchVerify", pb.BatchVerifyRequest(requests=requests))
        assert response.ByteSize() <= ANSWER
        assert [each.code for each in response.responses] == [1] * 4 + [0] * 5
        assert [each == pb.VerifyResponse() for each in response.responses] == [False] * 4 + [True] * 5
        response = world.call("BatchVerify", pb.BatchVerifyRequest(requests=requests[4:]))
        assert [each.code for each in response.responses] == [1] * 4 + [0]

    def test_batch_of_the_most(self, world: World) -> None:
        """As many of the largest records as a batch may ask for come to an answer that a client takes."""
        key = world.create(metadata=metadata(14_000)).key
        request = pb.BatchVerifyRequest(requests=[pb.VerifyRequest(key=key)] * 1_000)
        response = world.call("BatchVerify", request)
        assert ANSWER * 0.99 < response.ByteSize() <= ANSWER
        assert len(response.responses) == 1_000
        codes = [each.code for each in response.responses]
        assert codes == [1] * sum(codes) + [0] * (1_000 - sum(codes))


class TestProjectKeys:
    """A project has at most so many keys."""

    @pytest.fixture
    def few(self, world: World) -> World:
        """Give a service whose projects have at most three keys."""
        world.reopen(max_project_keys=3)
        return world

    def test_create(self, few: World) -> None:
        """One more is refused, says which limit was met, and leaves nothing; other projects go on."""
        for _ in range(3):
            few.create()
        before = len(few.events())
        refused = few.refused("Create", pb.CreateRequest(project_id="acme"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
        assert dict(refused.info.metadata) == {"limit": "keys of a project", "most": "3"}
        assert len(few.events()) == before
        few.create(project_id="globex")

    def test_rotate(self, few: World) -> None:
        """A successor is a key more; revoked and replaced ones count, since their rows are kept."""
        first = few.create().api_key.id
        second = few.rotate(first).api_key.id
        few.revoke(few.rotate(second).api_key.id)
        refused = few.refused("Create", pb.CreateRequest(project_id="acme"))
        assert refused.reason == "LIMIT_REACHED"

    def test_what_makes_no_key(self, few: World) -> None:
        """Neither what was refused, nor validated only, nor repeated counts."""
        request_id = "123e4567-e89b-42d3-a456-426614174000"
        few.create(request_id=request_id)
        for _ in range(5):
            few.create(request_id=request_id)
            few.create(validate_only=True)
            few.refused("Create", pb.CreateRequest(project_id="acme", name="x"))
        counted = few.core.store.select(ProjectRow.select().where(ProjectRow.project_id == "acme"))
        assert [row.keys for row in counted] == [1]

    def test_a_higher_limit(self, few: World) -> None:
        """An operator who raises the limit has a project go on."""
        for _ in range(3):
            few.create()
        few.reopen(max_project_keys=4)
        few.create()
        few.refused("Create", pb.CreateRequest(project_id="acme"))
