"""Which call carries which key, without any call."""

import logging
from concurrent import futures
from typing import Any

import grpc
import pytest

from tests.clients.python.conftest import Clock
from tests.clients.python.fake import OWN_KEY, key_of
from tumbler._base import demand_of
from tumbler._desk import MOST_KEYS, Desk, Failure, Flight, Sending
from tumbler._memory import Answer, Memory
from tumbler._settings import Settings
from tumbler.decide import Code
from tumbler.errors import InvalidRequest, Unavailable
from tumbler.v1 import api_key_service_pb2 as pb

NOTHING_IN_PARTICULAR = demand_of((), None, None)


@pytest.fixture
def desk(passing: Clock) -> Desk:
    """Give a desk whose memory has no stream."""
    settings = Settings("localhost:1", OWN_KEY, None, False, 10, 15, 5, 2, False, None, logging.getLogger("tests"))
    return Desk(settings, Memory(settings, passing), passing)


def join(desk: Desk, number: int) -> tuple[Flight, Sending | None]:
    """Ask for a key."""
    return desk.join(key_of(number), NOTHING_IN_PARTICULAR, futures.Future)


def answer(desk: Desk, sending: Sending) -> Sending | None:
    """Let a call come back: no such key, for each."""
    response = pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)
    return desk.answered(
        sending, pb.BatchVerifyResponse(responses=[response] * len(sending.flights)) if sending.is_batch else response
    )


def fill(desk: Desk) -> list[Sending]:
    """Have as many calls under way as there may be."""
    sendings = [join(desk, number)[1] for number in range(1, 5)]
    assert all(sending is not None and not sending.is_batch for sending in sendings)
    return [sending for sending in sendings if sending is not None]


def outcome(flight: Flight) -> Any:
    """Return what a flight brought."""
    return flight.future.result(0)


class TestDesk:
    """Few calls, and every flight ends."""

    def test_four_calls_at_most(self, desk: Desk) -> None:
        """The fifth key waits; when a call is back, it goes out in its place."""
        (first, *_) = fill(desk)
        waiting, sending = join(desk, 5)
        assert sending is None
        following = answer(desk, first)
        assert following is not None
        assert (following.flights, following.is_batch) == ([waiting], False)
        assert outcome(first.flights[0]).code is Code.NOT_FOUND

    def test_those_that_wait_go_together(self, desk: Desk) -> None:
        """What has gathered goes out as one call, in order, and of no more than 500 keys."""
        first, second, *_ = fill(desk)
        waiting = [join(desk, number)[0] for number in range(5, 5 + MOST_KEYS + 1)]
        full, rest = answer(desk, first), answer(desk, second)
        assert full is not None
        assert rest is not None
        assert full.is_batch
        assert full.flights + rest.flights == waiting
        assert len(full.flights) == MOST_KEYS
        assert answer(desk, full) is None
        assert {outcome(flight).code for flight in full.flights} == {Code.NOT_FOUND}

    def test_the_same_key_waits_once(self, desk: Desk) -> None:
        """Who asks for a key that waits to be sent waits with it."""
        fill(desk)
        assert join(desk, 5)[0] is join(desk, 5)[0]

    def test_an_undecided_item_is_asked_alone(self, desk: Desk) -> None:
        """An item that a batch leaves open is asked for again by itself, to be told why; the others are done."""
        first, *_ = fill(desk)
        bad, good = join(desk, 5)[0], join(desk, 6)[0]
        batch = answer(desk, first)
        assert batch is not None
        alone = desk.answered(
            batch,
            pb.BatchVerifyResponse(responses=[pb.VerifyResponse(), pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)]),
        )
        assert alone is not None
        assert (alone.flights, alone.is_batch) == ([bad], False)
        assert isinstance(outcome(good), Answer)
        assert desk.failed(alone, grpc.StatusCode.INVALID_ARGUMENT, "required_scopes[0]") is None
        assert outcome(bad) == Failure(InvalidRequest, "required_scopes[0]")

    def test_a_refused_batch_is_asked_one_by_one(self, desk: Desk) -> None:
        """A batch that is refused as a whole is nobody's fault until each was asked for by itself."""
        first, *_ = fill(desk)
        waiting = [join(desk, number)[0] for number in (5, 6)]
        batch = answer(desk, first)
        assert batch is not None
        asked = []
        following = desk.failed(batch, grpc.StatusCode.INVALID_ARGUMENT, "")
        while following is not None:
            asked += following.flights
            following = answer(desk, following)
        assert sorted(map(id, asked)) == sorted(map(id, waiting))

    def test_a_batch_of_another_length(self, desk: Desk) -> None:
        """An answer with too few items is an answer to none of them."""
        first, *_ = fill(desk)
        waiting = [join(desk, number)[0] for number in (5, 6)]
        batch = answer(desk, first)
        assert batch is not None
        desk.answered(batch, pb.BatchVerifyResponse(responses=[pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)]))
        assert [outcome(flight).kind for flight in waiting] == [Unavailable, Unavailable]

    def test_nobody_waits_any_more(self, desk: Desk, passing: Clock) -> None:
        """A key whose callers have all given up is not asked for; who comes later is."""
        first, *_ = fill(desk)
        given_up, _ = join(desk, 5)
        passing.pass_by(2)
        assert answer(desk, first) is None
        flight, sending = join(desk, 5)
        assert flight is not given_up
        assert sending is not None

    def test_closed(self, desk: Desk) -> None:
        """Closing settles what is under way and what waits, and lets nobody begin."""
        first, *_ = fill(desk)
        waiting, _ = join(desk, 5)
        desk.close("closed")
        assert outcome(waiting) == outcome(first.flights[0]) == Failure(Unavailable, "closed")
        assert answer(desk, first) is None
        with pytest.raises(Unavailable):
            join(desk, 6)

    def test_nothing_shows_a_key(self, desk: Desk) -> None:
        """Printing a flight or a call shows no key."""
        flight, sending = join(desk, 1)
        assert "0" * 43 not in repr(flight) + repr(sending)
