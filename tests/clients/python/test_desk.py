"""How keys are assigned to calls, without any call."""

import logging
from concurrent import futures
from typing import Any

import grpc
import pytest

from tests.clients.python.conftest import Clock
from tests.clients.python.fake import OWN_KEY, key_of
from tumbler._base import demand_of
from tumbler._desk import MOST_BYTES, MOST_KEYS, Desk, Failure, Flight, Sending
from tumbler._memory import Answer, Memory
from tumbler._settings import Settings
from tumbler.decide import Code, Demand
from tumbler.errors import InvalidRequest, NotAllowed, Unavailable
from tumbler.v1 import api_key_service_pb2 as pb

NOTHING_IN_PARTICULAR = demand_of((), None, None)


@pytest.fixture
def desk(passing: Clock) -> Desk:
    """Return a desk whose cache has no stream."""
    settings = Settings(
        "localhost:1", OWN_KEY, None, False, 10, 2**20, 15, 5, 2, False, None, logging.getLogger("tests")
    )
    return Desk(settings, Memory(settings, passing), passing)


def join(desk: Desk, number: int, demand: Demand = NOTHING_IN_PARTICULAR) -> tuple[Flight, Sending | None]:
    """Join the flight of a key."""
    return desk.join(key_of(number), demand, futures.Future)


def gather(desk: Desk, number: int) -> tuple[list[Flight], Sending]:
    """Queue this many keys behind a full set of calls, and return the batch that they share."""
    first, *_ = fill(desk)
    waiting = [join(desk, 5 + place)[0] for place in range(number)]
    batch = answer(desk, first)
    assert batch is not None
    assert batch.flights == waiting
    return waiting, batch


def answer(desk: Desk, sending: Sending) -> Sending | None:
    """Answer a call: every key is NOT_FOUND."""
    response = pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)
    return desk.answered(
        sending, pb.BatchVerifyResponse(responses=[response] * len(sending.flights)) if sending.is_batch else response
    )


def fill(desk: Desk) -> list[Sending]:
    """Start as many calls as may be in flight."""
    sendings = [join(desk, number)[1] for number in range(1, 5)]
    assert all(sending is not None and not sending.is_batch for sending in sendings)
    return [sending for sending in sendings if sending is not None]


def outcome(flight: Flight) -> Any:
    """Return the outcome of a flight."""
    return flight.future.result(0)


class TestDesk:
    """Few calls are in flight, and every flight ends."""

    def test_four_calls_at_most(self, desk: Desk) -> None:
        """The fifth key waits. When a call returns, the key goes out in its place."""
        (first, *_) = fill(desk)
        waiting, sending = join(desk, 5)
        assert sending is None
        following = answer(desk, first)
        assert following is not None
        assert (following.flights, following.is_batch) == ([waiting], False)
        assert outcome(first.flights[0]).code is Code.NOT_FOUND

    def test_those_that_wait_go_together(self, desk: Desk) -> None:
        """Queued keys go out as one call, in order, at most 500 of them."""
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
        """A caller with a key that is queued joins its flight."""
        fill(desk)
        assert join(desk, 5)[0] is join(desk, 5)[0]

    def test_an_undecided_item_is_asked_alone(self, desk: Desk) -> None:
        """An item that a batch leaves undecided is sent again by itself, to get its error. The others are done."""
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

    @pytest.mark.parametrize(
        "status",
        [
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.UNIMPLEMENTED,
        ],
        ids=lambda status: status.name,
    )
    def test_a_batch_that_fails_is_halved(self, desk: Desk, status: grpc.StatusCode) -> None:
        """If a batch fails as a whole, only the key at fault fails. No key is sent more than 1 + log2(n) times."""
        waiting, following = gather(desk, 100)
        bad = waiting[37]
        sizes, calls_with_bad = [], 0
        while following is not None:
            sizes.append(len(following.flights))
            calls_with_bad += bad in following.flights
            fails = bad in following.flights
            following = desk.failed(following, status, "too much") if fails else answer(desk, following)
        assert sizes[:5] == [100, 50, 25, 25, 13]
        assert (len(sizes), calls_with_bad) == (13, 7)
        for flight in waiting:
            assert isinstance(outcome(flight), Failure if flight is bad else Answer)
        assert "too much" in outcome(bad).text

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (grpc.StatusCode.UNAVAILABLE, Unavailable),
            (grpc.StatusCode.DEADLINE_EXCEEDED, Unavailable),
            (grpc.StatusCode.CANCELLED, Unavailable),
            (grpc.StatusCode.UNAUTHENTICATED, NotAllowed),
            (grpc.StatusCode.PERMISSION_DENIED, NotAllowed),
        ],
        ids=lambda value: getattr(value, "name", None),
    )
    def test_a_batch_that_half_of_it_would_not_mend(self, desk: Desk, status: grpc.StatusCode, kind: type) -> None:
        """If the server is not reached, or refuses the verifier, the batch is not retried in smaller ones."""
        waiting, batch = gather(desk, 3)
        assert desk.failed(batch, status, "") is None
        assert [outcome(flight).kind for flight in waiting] == [kind] * 3

    def test_halving_ends_with_the_callers_patience(self, desk: Desk, passing: Clock) -> None:
        """Keys whose callers have given up are not retried."""
        _, batch = gather(desk, 100)
        passing.pass_by(2)
        assert desk.failed(batch, grpc.StatusCode.INTERNAL, "") is None

    def test_an_answer_without_room(self, desk: Desk) -> None:
        """Items that the answer had no room for are retried in smaller batches, until all are decided."""
        room = 30
        waiting, following = gather(desk, 100)
        sizes = []
        while following is not None:
            sizes.append(len(following.flights))
            decided = [pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)] * min(room, len(following.flights))
            left = [pb.VerifyResponse()] * (len(following.flights) - len(decided))
            following = desk.answered(following, pb.BatchVerifyResponse(responses=decided + left))
        assert sizes == [100, 50, 20, 20]
        assert {outcome(flight).code for flight in waiting} == {Code.NOT_FOUND}

    def test_a_batch_in_which_nothing_is_ever_decided(self, desk: Desk) -> None:
        """If the server decides nothing, the number of calls is bounded, and the outcome is an error."""
        waiting, following = gather(desk, 16)
        calls = 0
        while following is not None:
            calls += 1
            left = [pb.VerifyResponse()] * len(following.flights)
            following = desk.answered(
                following, pb.BatchVerifyResponse(responses=left) if following.is_batch else left[0]
            )
        assert calls == 1 + 2 + 4 + 8 + 16
        assert {outcome(flight).kind for flight in waiting} == {Unavailable}

    def test_a_refused_cursor_is_found_by_halving(self, desk: Desk) -> None:
        """A batch refused for its cursor shrinks to one key. That key is retried without it, then the others follow."""
        memory = desk._memory
        memory.cursor = "of another history"
        waiting, following = gather(desk, 64)
        calls = 0
        while following is not None:
            calls += 1
            requests = getattr(following.request, "requests", [following.request])
            refused = any(request.consistency.at_least_as_fresh for request in requests)
            following = (
                desk.failed(following, grpc.StatusCode.INVALID_ARGUMENT, "") if refused else answer(desk, following)
            )
        assert {type(outcome(flight)) for flight in waiting} == {Answer}
        assert (calls, memory.cursor) == (7 + 1 + 6, "")

    def test_a_batch_is_bounded_in_bytes(self, desk: Desk) -> None:
        """The requests of one call have at most 256 KiB together. A larger one goes by itself."""
        first, *_ = fill(desk)
        large = demand_of(["s" * 40_000], None, None)
        for number in range(5, 25):
            join(desk, number, large)
        join(desk, 25, demand_of(["s" * 300_000], None, None))
        join(desk, 26)
        following: Sending | None = answer(desk, first)
        sizes = []
        while following is not None:
            if following.is_batch:
                assert following.request.ByteSize() <= MOST_BYTES
            sizes.append(len(following.flights))
            following = answer(desk, following)
        assert sizes == [6, 6, 6, 2, 1, 1]

    def test_a_batch_of_another_length(self, desk: Desk) -> None:
        """An answer with too few items answers none of them."""
        first, *_ = fill(desk)
        waiting = [join(desk, number)[0] for number in (5, 6)]
        batch = answer(desk, first)
        assert batch is not None
        desk.answered(batch, pb.BatchVerifyResponse(responses=[pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)]))
        assert [outcome(flight).kind for flight in waiting] == [Unavailable, Unavailable]

    def test_nobody_waits_any_more(self, desk: Desk, passing: Clock) -> None:
        """A key whose callers have all given up is not sent. A later caller gets a new flight."""
        first, *_ = fill(desk)
        given_up, _ = join(desk, 5)
        passing.pass_by(2)
        assert answer(desk, first) is None
        flight, sending = join(desk, 5)
        assert flight is not given_up
        assert sending is not None

    def test_closed(self, desk: Desk) -> None:
        """Closing settles the flights that are sent or queued, and refuses new ones."""
        first, *_ = fill(desk)
        waiting, _ = join(desk, 5)
        desk.close("closed")
        assert outcome(waiting) == outcome(first.flights[0]) == Failure(Unavailable, "closed")
        assert answer(desk, first) is None
        with pytest.raises(Unavailable):
            join(desk, 6)

    def test_nothing_shows_a_key(self, desk: Desk) -> None:
        """The repr of a flight or a call shows no key."""
        flight, sending = join(desk, 1)
        assert "0" * 43 not in repr(flight) + repr(sending)
