"""Measures a request before anything else reads it: entries of lists and maps, and lengths of texts.

What to measure comes from the descriptors, once, and how much is allowed from ``limits``. A field without a row there
keeps the server from starting.
"""

from collections.abc import Callable, Iterator, Sized
from operator import attrgetter
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tumbler.v1 import api_key_service_pb2 as service_pb
from tumbler_server.errors import InvalidFields, Violation
from tumbler_server.limits import ENTRIES, LENGTHS

OTHERWISE_ANSWERED = frozenset({"key", "claim_token"})
"""Texts whose length is not checked here: a key that is too long is MALFORMED, and a long claim token is invalid."""

COUNTED_WHERE_READ = frozenset({service_pb.VerifyRequest.DESCRIPTOR.full_name})
"""Requests that ``requests.question`` measures, because it reads each field anyway.

Reading a field again costs a tenth of a microsecond, and most calls are a Verify.
"""


JUDGED_BY_MASK = frozenset({"tumbler.v1.ApiKey"})
"""Messages whose texts may break rules, if the update_mask does not name them."""


class FieldLimit(NamedTuple):
    """A field to measure: its path from the request, how much it may hold, and of what."""

    path: str
    most: int
    unit: str


def field_limits(descriptor: Descriptor, path: str = "") -> Iterator[FieldLimit]:
    """Yield what to measure in a message and its submessages, but not in entries of lists."""
    for field in descriptor.fields:
        name = f"{path}{field.name}"
        if is_repeated(field):
            yield FieldLimit(name, ENTRIES[field.name], "entries")
        elif descriptor.full_name in JUDGED_BY_MASK or field.name in OTHERWISE_ANSWERED:
            pass
        elif field.message_type is not None:
            yield from field_limits(field.message_type, f"{name}.")
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            yield FieldLimit(name, LENGTHS[field.name], "characters")


def is_repeated(field: FieldDescriptor) -> bool:
    """Return whether a field is a list or a map, in every supported version of protobuf."""
    return isinstance(field.default_value, list)


def _measures(request: Descriptor) -> list[tuple[Callable[[Any], Sized], int, FieldLimit]]:
    if request.full_name in COUNTED_WHERE_READ:
        return []
    # Fields of an unset message read as their defaults.
    return [(attrgetter(row.path), row.most, row) for row in field_limits(request)]


_MEASURES = {
    GetMessageClass(method.input_type): _measures(method.input_type)
    for method in service_pb.DESCRIPTOR.services_by_name["ApiKeyService"].methods
}


def demand(request: Message) -> None:
    """Raise ``InvalidFields`` if a request holds more than it may. Copies nothing, and reads no entry.

    Of a BatchVerify, only the items are counted: each is a request of its own.
    """
    measures = _MEASURES[type(request)]
    for read, most, _ in measures:
        if len(read(request)) > most:
            raise InvalidFields(
                [
                    Violation(row.path, f"must hold at most {row.most:,} {row.unit}")
                    for read, most, row in measures
                    if len(read(request)) > most
                ]
            )
