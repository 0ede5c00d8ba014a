"""How keys are assigned to calls, without any call."""

import logging
from concurrent import futures
from typing import Any

import grpc
import pytest

from tests.clients.python.conftest import Clock
from tests.clients.python.fake_server import OWN_KEY, key_of
from tumbler._base import demand_of
from tumbler._batcher import MAX_BATCH_BYTES, MAX_BATCH_KEYS, Batch, Batcher, Failure, Flight
from tumbler._cache import Answer, Cache
from tumbler._settings import Settings
from tumbler.decide import Code, Demand
from tumbler.errors import InvalidRequest, NotAllowed, Unavailable
from tumbler.v1 import api_key_service_pb2 as pb

NOTHING_IN_PARTICULAR = demand_of((), None, None)


@pytest.fixture
def batcher(passing: Clock) -> Batcher:
    """Return a batcher whose cache has no stream."""
    settings = Settings(
        "localhost:1", OWN_KEY, None, False, 10, 2**20, 15, 5, 2, False, None, logging.getLogger("tests")
    )
    return Batcher(settings, Cache(settings, passing), passing)


def join(batcher: Batcher, number: int, demand: Demand = NOTHING_IN_PARTICULAR) -> tuple[Flight, Batch | None]:
    """Join the flight of a key."""
    return batcher.join(key_of(number), demand, futures.Future)


def gather(batcher: Batcher, number: int) -> tuple[list[Flight], Batch]:
    """Queue this many keys behind a full set of calls, and return the batch that they share."""
    first, *_ = fill(batcher)
    waiting = [join(batcher, 5 + place)[0] for place in range(number)]
    batch = answer(batcher, first)
    assert batch is not None
    assert batch.flights == waiting
    return waiting, batch


def answer(batcher: Batcher, batch: Batch) -> Batch | None:
    """Answer a call: every key is NOT_FOUND."""
    response = pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)
    return batcher.answered(
        batch, response if batch.is_single else pb.BatchVerifyResponse(responses=[response] * len(batch.flights))
    )


def fill(batcher: Batcher) -> list[Batch]:
    """Start as many calls as may be in flight."""
    batches = [join(batcher, number)[1] for number in range(1, 5)]
    assert all(batch is not None and batch.is_single for batch in batches)
    return [batch for batch in batches if batch is not None]


def outcome(flight: Flight) -> Any:
    """Return the outcome of a flight."""
    return flight.future.result(0)


class TestBatcher:
    """Few calls are in flight, and every flight ends."""

    def test_four_calls_at_most(self, batcher: Batcher) -> None:
        """The fifth key waits. When a call returns, the key goes out in its place."""
        (first, *_) = fill(batcher)
        waiting, batch = join(batcher, 5)
        assert batch is None
        following = answer(batcher, first)
        assert following is not None
        assert (following.flights, following.is_single) == ([waiting], True)
        assert outcome(first.flights[0]).code is Code.NOT_FOUND

    def test_those_that_wait_go_together(self, batcher: Batcher) -> None:
        """Queued keys go out as one call, in order, at most 500 of them."""
        first, second, *_ = fill(batcher)
        waiting = [join(batcher, number)[0] for number in range(5, 5 + MAX_BATCH_KEYS + 1)]
        full, rest = answer(batcher, first), answer(batcher, second)
        assert full is not None
        assert rest is not None
        assert not full.is_single
        assert full.flights + rest.flights == waiting
        assert len(full.flights) == MAX_BATCH_KEYS
        assert answer(batcher, full) is None
        assert {outcome(flight).code for flight in full.flights} == {Code.NOT_FOUND}

    def test_the_same_key_waits_once(self, batcher: Batcher) -> None:
        """A caller with a key that is queued joins its flight."""
        fill(batcher)
        assert join(batcher, 5)[0] is join(batcher, 5)[0]

    def test_an_undecided_item_is_asked_alone(self, batcher: Batcher) -> None:
        """An item that a batch leaves undecided is sent again by itself, to get its error. The others are done."""
        first, *_ = fill(batcher)
        bad, good = join(batcher, 5)[0], join(batcher, 6)[0]
        batch = answer(batcher, first)
        assert batch is not None
        alone = batcher.answered(
            batch,
            pb.BatchVerifyResponse(responses=[pb.VerifyResponse(), pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)]),
        )
        assert alone is not None
        assert (alone.flights, alone.is_single) == ([bad], True)
        assert isinstance(outcome(good), Answer)
        assert batcher.failed(alone, grpc.StatusCode.INVALID_ARGUMENT, "required_scopes[0]") is None
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
    def test_a_batch_that_fails_is_halved(self, batcher: Batcher, status: grpc.StatusCode) -> None:
        """If a batch fails as a whole, only the key at fault fails. No key is sent more than 1 + log2(n) times."""
        waiting, following = gather(batcher, 100)
        bad = waiting[37]
        sizes, calls_with_bad = [], 0
        while following is not None:
            sizes.append(len(following.flights))
            calls_with_bad += bad in following.flights
            fails = bad in following.flights
            following = batcher.failed(following, status, "too much") if fails else answer(batcher, following)
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
    def test_a_batch_that_half_of_it_would_not_mend(
        self, batcher: Batcher, status: grpc.StatusCode, kind: type
    ) -> None:
        """If the server is not reached, or refuses the verifier, the batch is not retried in smaller ones."""
        waiting, batch = gather(batcher, 3)
        assert batcher.failed(batch, status, "") is None
        assert [outcome(flight).kind for flight in waiting] == [kind] * 3

    def test_halving_ends_with_the_callers_patience(self, batcher: Batcher, passing: Clock) -> None:
        """Keys whose callers have given up are not retried."""
        _, batch = gather(batcher, 100)
        passing.pass_by(2)
        assert batcher.failed(batch, grpc.StatusCode.INTERNAL, "") is None

    def test_an_answer_without_room(self, batcher: Batcher) -> None:
        """Items that the answer had no room for are retried in smaller batches, until all are decided."""
        room = 30
        waiting, following = gather(batcher, 100)
        sizes = []
        while following is not None:
            sizes.append(len(following.flights))
            decided = [pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)] * min(room, len(following.flights))
            left = [pb.VerifyResponse()] * (len(following.flights) - len(decided))
            following = batcher.answered(following, pb.BatchVerifyResponse(responses=decided + left))
        assert sizes == [100, 50, 20, 20]
        assert {outcome(flight).code for flight in waiting} == {Code.NOT_FOUND}

    def test_a_batch_in_which_nothing_is_ever_decided(self, batcher: Batcher) -> None:
        """If the server decides nothing, the number of calls is bounded, and the outcome is an error."""
        waiting, following = gather(batcher, 16)
        calls = 0
        while following is not None:
            calls += 1
            left = [pb.VerifyResponse()] * len(following.flights)
            following = batcher.answered(
                following, left[0] if following.is_single else pb.BatchVerifyResponse(responses=left)
            )
        assert calls == 1 + 2 + 4 + 8 + 16
        assert {outcome(flight).kind for flight in waiting} == {Unavailable}

    def test_a_refused_cursor_is_found_by_halving(self, batcher: Batcher) -> None:
        """A batch refused for its cursor shrinks to one key. That key is retried without it, then the others follow."""
        cache = batcher._cache
        cache.cursor = "of another history"
        waiting, following = gather(batcher, 64)
        calls = 0
        while following is not None:
            calls += 1
            requests = getattr(following.request, "requests", [following.request])
            refused = any(request.consistency.at_least_as_fresh for request in requests)
            following = (
                batcher.failed(following, grpc.StatusCode.INVALID_ARGUMENT, "")
                if refused
                else answer(batcher, following)
            )
        assert {type(outcome(flight)) for flight in waiting} == {Answer}
        assert (calls, cache.cursor) == (7 + 1 + 6, "")

    def test_a_batch_is_bounded_in_bytes(self, batcher: Batcher) -> None:
        """The requests of one call have at most 256 KiB together. A larger one goes by itself."""
        first, *_ = fill(batcher)
        large = demand_of(["s" * 40_000], None, None)
        for number in range(5, 25):
            join(batcher, number, large)
        join(batcher, 25, demand_of(["s" * 300_000], None, None))
        join(batcher, 26)
        following: Batch | None = answer(batcher, first)
        sizes = []
        while following is not None:
            if not following.is_single:
                assert following.request.ByteSize() <= MAX_BATCH_BYTES
            sizes.append(len(following.flights))
            following = answer(batcher, following)
        assert sizes == [6, 6, 6, 2, 1, 1]

    def test_a_batch_of_another_length(self, batcher: Batcher) -> None:
        """An answer with too few items answers none of them."""
        first, *_ = fill(batcher)
        waiting = [join(batcher, number)[0] for number in (5, 6)]
        batch = answer(batcher, first)
        assert batch is not None
        batcher.answered(batch, pb.BatchVerifyResponse(responses=[pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)]))
        assert [outcome(flight).kind for flight in waiting] == [Unavailable, Unavailable]

    def test_nobody_waits_any_more(self, batcher: Batcher, passing: Clock) -> None:
        """A key whose callers have all given up is not sent. A later caller gets a new flight."""
        first, *_ = fill(batcher)
        given_up, _ = join(batcher, 5)
        passing.pass_by(2)
        assert answer(batcher, first) is None
        flight, batch = join(batcher, 5)
        assert flight is not given_up
        assert batch is not None

    def test_closed(self, batcher: Batcher) -> None:
        """Closing settles the flights that are sent or queued, and refuses new ones."""
        first, *_ = fill(batcher)
        waiting, _ = join(batcher, 5)
        batcher.close("closed")
        assert outcome(waiting) == outcome(first.flights[0]) == Failure(Unavailable, "closed")
        assert answer(batcher, first) is None
        with pytest.raises(Unavailable):
            join(batcher, 6)

    def test_nothing_shows_a_key(self, batcher: Batcher) -> None:
        """The repr of a flight or a call shows no key."""
        flight, batch = join(batcher, 1)
        assert "0" * 43 not in repr(flight) + repr(batch)
