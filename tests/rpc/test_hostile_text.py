"""Text that PostgreSQL cannot store: a NUL in any string of a request is the caller's error, never an internal one."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.harness import Refused, World
from tests.rpc.test_callers import request_for
from tumbler_server.rpc.counting import is_repeated
from tumbler_server.server import SERVICE

METHODS = [method.name for method in SERVICE.methods]

TEXTS = ("\0", "a\0b", "abc\0", "https://hooks.example.com/\0")

ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,  # a claim token that is not valid
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,  # an etag that is not current
}

Path = tuple[FieldDescriptor, ...]


def strings(descriptor: Descriptor, before: Path = ()) -> Iterator[Path]:
    """Yield the path of each string in a message, including those in lists, maps and nested messages."""
    for field in descriptor.fields:
        path = (*before, field)
        if field.message_type is not None:
            yield from strings(field.message_type, path)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            yield path


def put(message: Message, path: Path, text: str) -> None:
    """Set one string of a message."""
    field, *rest = path
    here = getattr(message, field.name)
    if not rest:
        if is_repeated(field):
            here.append(text)
        else:
            setattr(message, field.name, text)
    elif field.message_type.GetOptions().map_entry:
        name, value = (text, "value") if rest[0].name == "key" else ("name", text)
        here[name] = value
    else:
        put(here[0] if is_repeated(field) else here, tuple(rest), text)


def named(path: Path) -> str:
    """Return a path as text."""
    return ".".join(field.name for field in path)


CASES = [(method.name, path) for method in SERVICE.methods for path in strings(method.input_type)]


def code(world: World, method: str, request: Message) -> grpc.StatusCode:
    """Call an RPC and return its status code."""
    try:
        world.call(method, request)
    except Refused as refused:
        return refused.code
    return grpc.StatusCode.OK


def test_every_rpc_takes_some_text() -> None:
    """CASES, which is built from the descriptors, covers each RPC."""
    assert {method for method, _ in CASES} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_nul_is_never_a_fault_of_ours(world: World, method: str) -> None:
    """A request with a NUL in any string gets a response or the caller's error, on every database."""
    key_id = world.create().api_key.id
    for path in (path for name, path in CASES if name == method):
        for text in TEXTS:
            request = request_for(method, key_id)
            put(request, path, text)
            assert code(world, method, request) in ALLOWED, (named(path), text)
    assert world.get(key_id).id == key_id
