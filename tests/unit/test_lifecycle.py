"""Limits of a key's life; tests/rpc has its rules."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.domain import Domain
from tumbler_server.clock import DAY, END, HOUR, NEVER, rfc3339


class TestLifetime:
    """The life of a successor without a requested expiry."""

    @pytest.mark.parametrize("lived", [0, HOUR, 10 * DAY - 1])
    def test_counted_from_now(self, domain: Domain, lived: int) -> None:
        """A successor lives as long as the key was created to live, counted from the rotation."""
        issued = domain.create(ttl=10 * DAY)
        domain.clock.advance(lived)
        assert domain.rotate(issued.key.id).key.expire_time == domain.clock.now + 10 * DAY

    def test_never(self, domain: Domain) -> None:
        """The successor of a key that never expires never expires."""
        assert domain.rotate(domain.create().key.id).key.expire_time == NEVER

    def test_the_end_of_time(self, domain: Domain) -> None:
        """No successor lives past the year 9999, the last that a Timestamp can hold."""
        issued = domain.create(expire_time=END)
        domain.clock.advance(DAY)
        successor = domain.rotate(issued.key.id).key
        assert successor.expire_time == END
        Timestamp().FromJsonString(rfc3339(successor.expire_time))
