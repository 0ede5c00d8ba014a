"""A request's size is checked before anything else of it is read."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.errors import InvalidFields
from tumbler_server.keys.record import Key
from tumbler_server.limits import ENTRIES, LENGTHS
from tumbler_server.rpc import counting, requests
from tumbler_server.secrets.opaque_tokens import OpaqueTokens

REQUESTS = [method.input_type for method in pb.DESCRIPTOR.services_by_name["ApiKeyService"].methods]
CALLER = Key(id="0" * 16, project_id="tumbler")
TOKENS = OpaqueTokens(bytes(32), lambda _: "")


def fields(descriptor: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yield the path to each list, map and text of a message, except those inside lists."""
    for field in descriptor.fields:
        here = (*path, field)
        if counting.is_repeated(field) or field.type == FieldDescriptor.TYPE_STRING:
            yield here
        elif field.message_type is not None:
            yield from fields(field.message_type, here)


def filled(request: Descriptor, path: tuple[FieldDescriptor, ...], size: int) -> Message:
    """Return a request with one field that has this number of entries or characters."""
    made: Message = GetMessageClass(request)()
    message: Any = made
    *outer, field = path
    for each in outer:
        message = getattr(message, each.name)
    if not counting.is_repeated(field):
        setattr(message, field.name, "x" * size)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name).update({str(number): "" for number in range(size)})
    elif field.message_type is not None:
        getattr(message, field.name).extend(GetMessageClass(field.message_type)() for _ in range(size))
    else:
        getattr(message, field.name).extend(["x" if field.type == FieldDescriptor.TYPE_STRING else 1] * size)
    return made


def refused(message: Message) -> list[str]:
    """Return the paths of the fields that are too large, whichever code checks them."""
    try:
        if isinstance(message, pb.VerifyRequest):
            requests.question(CALLER, message, TOKENS)
        else:
            counting.demand(message)
    except InvalidFields as failure:
        return [violation.field for violation in failure.violations]
    return []


ALL = [(request, path) for request in REQUESTS for path in fields(request)]
LISTS = [(request, path) for request, path in ALL if counting.is_repeated(path[-1])]
TEXTS = [
    (request, path)
    for request, path in ALL
    if not counting.is_repeated(path[-1])
    and path[-1].name not in counting.OTHERWISE_ANSWERED
    and request.name not in ("UpdateRequest", "VerifyRequest")  # see JUDGED_BY_MASK and COUNTED_WHERE_READ
]


def name(part: Any) -> str:
    """Return a test id: the message's name, or the path to its field."""
    return part.name if isinstance(part, Descriptor) else ".".join(field.name for field in part)


def test_there_are_lists() -> None:
    """The requests contain exactly the lists and maps of ENTRIES, so the tests below are not empty."""
    assert {path[-1].name for _, path in LISTS} == ENTRIES.keys()


@pytest.mark.parametrize(("request_type", "path"), LISTS, ids=name)
def test_every_list_and_map_is_counted(request_type: Descriptor, path: tuple[FieldDescriptor, ...]) -> None:
    """Each list and map of a request accepts its maximum; one entry more is refused with the field's path."""
    most = ENTRIES[path[-1].name]
    counted = filled(request_type, path, most + 1)
    assert refused(counted) == [name(path)]
    assert name(path) not in refused(filled(request_type, path, most))


@pytest.mark.parametrize(("request_type", "path"), TEXTS, ids=name)
def test_every_text_is_measured(request_type: Descriptor, path: tuple[FieldDescriptor, ...]) -> None:
    """Each text of a request accepts its maximum; one character more is refused with the field's path."""
    most = LENGTHS[path[-1].name]
    assert refused(filled(request_type, path, most + 1)) == [name(path)]
    assert refused(filled(request_type, path, most)) == []


def test_every_length_is_needed() -> None:
    """The table of lengths contains the requests' texts and nothing else."""
    assert {path[-1].name for _, path in TEXTS} | {"key", "claim_token", "client_ip", "at_least_as_fresh"} == set(
        LENGTHS
    )


def test_all_that_is_too_much_is_told() -> None:
    """One error lists every field that is too large, with its limit."""
    request = pb.CreateRequest(scopes=["a"] * 101, allowed_cidrs=["b"] * 101, owner_id="o" * 256)
    with pytest.raises(InvalidFields) as caught:
        counting.demand(request)
    assert [(violation.field, violation.rule) for violation in caught.value.violations] == [
        ("owner_id", "must hold at most 255 characters"),
        ("scopes", "must hold at most 100 entries"),
        ("allowed_cidrs", "must hold at most 100 entries"),
    ]


def test_each_item_of_a_batch_is_counted() -> None:
    """A batch item that is too large is undecided, as any invalid item, and the others are not affected."""
    items = [pb.VerifyRequest(required_scopes=["a:b"] * size) for size in (1, 100, 101)]
    questions = requests.questions(CALLER, pb.BatchVerifyRequest(requests=items), TOKENS)
    assert [question is not None for question in questions] == [True, True, False]


@pytest.mark.parametrize("size", [100, 5_000])
def test_long_demands_are_not_remembered(size: int) -> None:
    """Checked demands of Verify are cached only while their texts are short, so callers cannot fill memory."""
    before = requests._checked_before.cache_info().currsize
    scopes = [f"{size}:{'s' * 100}:{number}" for number in range(size // 100)]
    asked = requests.question(CALLER, pb.VerifyRequest(required_scopes=scopes), TOKENS)
    assert asked.demand.required_scopes == tuple(scopes)
    assert requests._checked_before.cache_info().currsize - before == (1 if size == 100 else 0)
