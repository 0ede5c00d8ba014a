"""What both verifiers promise, against a fake server."""

import gc
import logging
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

import tumbler
from tests.clients.python.conftest import Clock
from tests.clients.python.fake_server import NONSENSE, NOW, OWN_KEY, PATIENCE, FakeServer, id_of, key_of
from tests.e2e.service import eventually
from tumbler import Code
from tumbler.decide import Demand
from tumbler.v1 import api_key_service_pb2 as pb

Opened = Callable[..., Any]


def no_thread(_: threading.Thread) -> None:
    """Fail as Python does when the system has no more threads."""
    raise RuntimeError("can't start new thread")


class TestVerification:
    """The result of a verification."""

    def test_everything_that_the_server_tells(self, fake: FakeServer, verifier: Any) -> None:
        """A verdict has the key's identity, from the server and from the cache."""
        key = fake.knows(
            1, environment_id="live", owner_id="o-1", name="ci", metadata={"tier": "gold"}, expire_time=NOW + 90
        )
        first, second = verifier.verify(key), verifier.verify(key)
        assert (first.valid, first.cached, second.cached) == (True, False, True)
        for told in (first, second):
            assert told
            assert (told.code, told.key_id, told.project_id) == (Code.VALID, id_of(key), "acme")
            assert (told.environment_id, told.owner_id, told.name) == ("live", "o-1", "ci")
            assert (told.scopes, dict(told.metadata)) == (("orders:*",), {"tier": "gold"})
            assert told.expire_time is not None
            assert told.expire_time.timestamp() == NOW + 90
            with pytest.raises(TypeError):
                told.metadata["tier"] = "lead"

    def test_what_is_demanded_is_sent(self, fake: FakeServer, verifier: Any) -> None:
        """A call carries the demand, and the verifier's own key."""
        key = fake.knows(1, environment_id="live")
        verifier.verify(key, required_scopes=["orders:read"], client_ip="192.0.2.7", environment_id="live")
        (call,) = fake.calls
        assert (call.key, list(call.required_scopes)) == (key, ["orders:read"])
        assert (call.client_ip, call.environment_id) == ("192.0.2.7", "live")
        assert fake.metadata["authorization"] == f"Bearer {OWN_KEY}"

    def test_denied(self, verifier: Any) -> None:
        """A key that the server does not know is denied, and a denial is false."""
        told = verifier.verify(key_of(1))
        assert not told
        assert (told.valid, told.code, told.key_id, told.scopes) == (False, Code.NOT_FOUND, "", ())

    @pytest.mark.parametrize("key", ["", "nonsense", "a" * 10**6, key_of(1)[:-1] + "x", key_of(1) + "\n", "\udc80"])
    def test_no_key_at_all(self, fake: FakeServer, verifier: Any, key: str) -> None:
        """Text that is not a key is MALFORMED, without a call."""
        assert verifier.verify(key).code is Code.MALFORMED
        assert fake.calls == []

    def test_one_text_is_no_list_of_scopes(self, verifier: Any) -> None:
        """A scope that is not in a list is an error, not a list of its letters."""
        with pytest.raises(TypeError, match="required_scopes"):
            verifier.verify(key_of(1), required_scopes="orders:read")


class TestCache:
    """Records are cached, never verdicts."""

    def test_a_remembered_key_needs_no_call(self, fake: FakeServer, verifier: Any) -> None:
        """The second time a key is presented, no call is made."""
        key = fake.knows(1)
        assert [verifier.verify(key).cached for _ in range(3)] == [False, True, True]
        assert len(fake.calls) == verifier.verifier.remembered == 1

    def test_no_cache(self, fake: FakeServer, opened: Opened) -> None:
        """With a cache size of 0, nothing is cached."""
        verifier, key = opened(cache_size=0), fake.knows(1)
        assert [verifier.verify(key).cached for _ in range(2)] == [False, False]

    def test_eviction(self, fake: FakeServer, opened: Opened) -> None:
        """If the cache is full, the least recently used key is evicted."""
        verifier = opened(cache_size=2)
        one, two, three = (fake.knows(number) for number in (1, 2, 3))
        for key in (one, two, one, three):
            verifier.verify(key)
        assert verifier.verifier.remembered == 2
        assert [verifier.verify(key).cached for key in (one, three, two)] == [True, True, False]

    def test_eviction_by_bytes(self, fake: FakeServer, opened: Opened) -> None:
        """A record counts as the answer's size plus 1,024 bytes. The least recently used key is evicted."""
        one, two, three = (fake.knows(number, name="n" * 1_000) for number in (1, 2, 3))
        size = fake.answers[one].ByteSize() + 8 + 1_024  # the revision may differ by a byte; some spare
        verifier = opened(cache_bytes=2 * size)
        for key in (one, two, one, three):
            verifier.verify(key)
        assert verifier.verifier.remembered == 2
        assert [verifier.verify(key).cached for key in (one, three, two)] == [True, True, False]

    def test_bytes_are_given_back(self, fake: FakeServer, opened: Opened) -> None:
        """A record that is evicted or replaced frees its bytes."""
        verifier = opened(cache_bytes=4_000)
        one, two = (fake.knows(number, name="n" * 500) for number in (1, 2))
        for _ in range(5):
            assert verifier.verify(one).valid
            fake.send(one)
            fake.handled(verifier)
        assert [verifier.verify(key).cached for key in (one, two, one, two)] == [False, False, True, True]

    def test_a_record_that_is_larger_than_all_room(self, fake: FakeServer, opened: Opened) -> None:
        """A record larger than the whole cache is not cached, and evicts nothing."""
        verifier = opened(cache_bytes=4_000)
        small, large = fake.knows(1), fake.knows(2, name="n" * 4_000)
        for key in (small, large):
            assert verifier.verify(key).valid
        assert [verifier.verify(key).cached for key in (small, large)] == [True, False]

    def test_what_an_entry_holds(self, fake: FakeServer, verifier: Any) -> None:
        """An entry holds only what verdicts and callers need, neither the key's text nor the whole answer."""
        key = fake.knows(1, consistency_token="c" * 100)
        assert verifier.verify(key).valid
        assert verifier.verify(key).cached
        held, seen = list(verifier.verifier._cache._entries.values()), set()
        while held:
            each = held.pop()
            if isinstance(each, type) or id(each) in seen:
                continue
            seen.add(id(each))
            assert not isinstance(each, Message)
            assert each != key
            assert each != "c" * 100
            held += gc.get_referents(each)

    def test_another_secret(self, fake: FakeServer, verifier: Any) -> None:
        """A cached key with another secret is denied without a call, with all fields empty."""
        verifier.verify(fake.knows(1))
        told = verifier.verify(key_of(1, fill="1"))
        assert (told.code, told.cached, told.key_id) == (Code.NOT_FOUND, True, "")
        assert len(fake.calls) == 1

    def test_another_prefix(self, fake: FakeServer, verifier: Any) -> None:
        """The whole text counts, not only the secret."""
        verifier.verify(fake.knows(1))
        other = tumbler.keyformat.build("other", id_of(key_of(1)), "0" * 43)
        assert verifier.verify(other).code is Code.NOT_FOUND

    def test_a_wrong_check_of_a_remembered_key(self, fake: FakeServer, verifier: Any) -> None:
        """A typing error in a cached key is MALFORMED, as in any other key."""
        key = fake.knows(1)
        verifier.verify(key)
        assert verifier.verify(key[:-1] + ("0" if key[-1] != "0" else "1")).code is Code.MALFORMED

    @pytest.mark.parametrize(
        ("code", "remembered"),
        [
            (Code.VALID, 1),
            (Code.ENVIRONMENT_MISMATCH, 1),
            (Code.IP_NOT_ALLOWED, 1),
            (Code.INSUFFICIENT_SCOPE, 1),
            (Code.NOT_FOUND, 0),
            (Code.REVOKED, 0),
            (Code.SUPERSEDED, 0),
            (Code.INACTIVE, 0),
            (Code.EXPIRED, 0),
        ],
        ids=lambda value: getattr(value, "name", None),
    )
    def test_what_is_remembered(self, fake: FakeServer, verifier: Any, code: Code, remembered: int) -> None:
        """Only keys that are not revoked, superseded, inactive or expired are cached, whatever the demand was."""
        key = fake.knows(1, code=int(code))
        environment = "live" if code is Code.ENVIRONMENT_MISMATCH else None
        assert verifier.verify(key, required_scopes=["orders:read"], environment_id=environment).code is code
        assert verifier.verifier.remembered == remembered

    def test_without_a_lifetime(self, fake: FakeServer, verifier: Any) -> None:
        """An answer without cache_ttl is not cached."""
        verifier.verify(fake.knows(1, cache_ttl=0))
        assert verifier.verifier.remembered == 0

    def test_the_lifetime_counts_from_before_the_call(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """The time that a call takes counts toward the lifetime of 60 seconds."""
        key = fake.knows(1)
        release = fake.hold(key)
        begun = verifier.begin(key)
        fake.await_held(key)
        passing.pass_by(10)
        fake.send()
        fake.handled(verifier)
        release()
        assert begun.result(PATIENCE)
        for seconds, cached in ((10, True), (10, True), (10, True), (10, True), (9.9, True), (0.1, False)):
            passing.pass_by(seconds)
            fake.send()
            fake.handled(verifier)
            assert verifier.verify(key).cached is cached

    @pytest.mark.parametrize(
        ("fields", "demand", "code"),
        [
            ({"environment_id": "live"}, {"environment_id": "test"}, Code.ENVIRONMENT_MISMATCH),
            ({"environment_id": "live"}, {"environment_id": "live"}, Code.VALID),
            ({"allowed_cidrs": ["192.0.2.0/24"]}, {"client_ip": "198.51.100.1"}, Code.IP_NOT_ALLOWED),
            ({"allowed_cidrs": ["192.0.2.0/24"]}, {}, Code.IP_NOT_ALLOWED),
            ({"allowed_cidrs": ["192.0.2.0/24"]}, {"client_ip": "192.0.2.9"}, Code.VALID),
            ({}, {"required_scopes": ["orders:read", "invoices:read"]}, Code.INSUFFICIENT_SCOPE),
            ({}, {"required_scopes": ["orders:read"]}, Code.VALID),
        ],
    )
    def test_decided_anew(self, fake: FakeServer, verifier: Any, fields: Any, demand: Any, code: Code) -> None:
        """Each demand on a cached key is decided in the client, by the rules of the server."""
        key = fake.knows(1, **fields)
        verifier.verify(key, client_ip="192.0.2.7")
        told = verifier.verify(key, **demand)
        assert (told.code, told.valid, told.cached) == (code, code is Code.VALID, True)
        assert told.key_id == id_of(key)

    @pytest.mark.parametrize(("field", "code"), [("expire_time", Code.EXPIRED), ("grace_expire_time", Code.SUPERSEDED)])
    def test_ends_while_remembered(
        self, fake: FakeServer, verifier: Any, passing: Clock, field: str, code: Code
    ) -> None:
        """A cached key ends at its instant by the server's clock, however long it may be cached."""
        key = fake.knows(1, **{field: NOW + 10})
        verifier.verify(key)
        passing.pass_by(9.999_999)
        assert verifier.verify(key).code is Code.VALID
        passing.pass_by(0.000_001)
        told = verifier.verify(key)
        assert (told.code, told.cached) == (code, True)


class TestStream:
    """The cache answers while the stream confirms it."""

    def test_before_its_first_word(self, fake: FakeServer, opened: Opened) -> None:
        """Before the stream's first heartbeat nothing is cached, nor is the answer to a call that began before it."""
        fake.greets = False
        verifier, key = opened(), fake.knows(1)
        release = fake.hold(key)
        begun = verifier.begin(key)
        fake.await_held(key)
        fake.send()
        fake.handled(verifier)
        release()
        assert begun.result(PATIENCE)
        assert verifier.verifier.remembered == 0

    def test_an_event(self, fake: FakeServer, verifier: Any) -> None:
        """An event evicts its key, and no other."""
        one, two = fake.knows(1), fake.knows(2)
        verifier.verify(one)
        verifier.verify(two)
        fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
        fake.send(one)
        fake.handled(verifier)
        assert verifier.verify(one).code is Code.REVOKED
        assert verifier.verify(two).cached

    def test_a_reset(self, fake: FakeServer, verifier: Any) -> None:
        """A reset evicts everything."""
        key = fake.knows(1)
        verifier.verify(key)
        fake.send(reset=True)
        fake.handled(verifier)
        assert [verifier.verify(key).cached for _ in range(2)] == [False, True]

    def test_stale(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """If the last heartbeat is max_staleness old, the server is called again, until the next heartbeat."""
        key = fake.knows(1)
        verifier.verify(key)
        passing.pass_by(14.999)
        assert verifier.verify(key).cached
        passing.pass_by(0.001)
        assert [verifier.verify(key).cached for _ in range(2)] == [False, False]
        fake.send(age=15)
        fake.handled(verifier)
        assert verifier.verify(key).cached

    def test_a_word_that_was_long_on_its_way(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """Freshness counts from the instant that a heartbeat confirms, not from its arrival."""
        key = fake.knows(1)
        verifier.verify(key)
        passing.pass_by(10)
        fake.send(age=4)
        fake.handled(verifier)
        passing.pass_by(8.999)
        assert verifier.verify(key).cached
        passing.pass_by(0.001)
        assert not verifier.verify(key).cached

    @pytest.mark.parametrize("ages", [[15], [3, 14, 15]], ids=["one", "a pile"])
    def test_words_that_come_too_late(self, fake: FakeServer, verifier: Any, passing: Clock, ages: list[float]) -> None:
        """Heartbeats that are max_staleness old do not renew freshness. The stream is reopened."""
        key = fake.knows(1)
        verifier.verify(key)
        passing.pass_by(30)
        fake.greets = False
        for age in ages:
            fake.send(age=age)
        fake.until(lambda: len(fake.streams) == 2)
        assert not verifier.verify(key).cached
        fake.send(age=0)
        fake.handled(verifier)
        assert verifier.verify(key).cached

    def test_words_that_would_not_last(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """A stream is reopened when freshness would lapse between two of its heartbeats."""
        key = fake.knows(1)
        verifier.verify(key)
        passing.pass_by(12)
        fake.send(age=2)
        fake.handled(verifier)
        fake.send(age=1.999)
        fake.until(lambda: len(fake.streams) == 2)
        assert verifier.verify(key).cached

    def test_words_without_a_date(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """With an older server, only heartbeats of a stream opened after freshness had lapsed renew it."""
        key = fake.knows(1)
        verifier.verify(key)
        passing.pass_by(15)
        fake.greets = False
        fake.send()
        fake.until(lambda: len(fake.streams) == 2)
        assert not verifier.verify(key).cached
        fake.send()
        fake.handled(verifier)
        assert verifier.verify(key).cached

    @pytest.mark.parametrize(("age", "trusted"), [(1.5, True), (1.500_001, False)])
    def test_words_of_the_future(
        self, fake: FakeServer, verifier: Any, passing: Clock, age: float, trusted: bool
    ) -> None:
        """A heartbeat from the future shows that our clock stopped for a while. Freshness ends at once."""
        key = fake.knows(1)
        verifier.verify(key)
        passing.pass_by(1)
        fake.greets = False
        fake.send(age=age)
        if trusted:
            fake.handled(verifier)
        else:
            fake.until(lambda: len(fake.streams) == 2)
        assert verifier.verify(key).cached is trusted

    def test_news_is_no_heartbeat(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """A message with events does not say that there are no others, so it does not renew freshness."""
        key, other = fake.knows(1), fake.knows(2)
        verifier.verify(key)
        passing.pass_by(10)
        fake.send(other)
        fake.handled(verifier)
        passing.pass_by(5)
        assert not verifier.verify(key).cached

    def test_reconnects_from_its_cursor(self, fake: FakeServer, verifier: Any) -> None:
        """A broken stream is reopened at its cursor, and the cache is kept."""
        key = fake.knows(1)
        verifier.verify(key)
        fake.send()
        fake.handled(verifier)
        fake.cut()
        assert fake.streams[-1].request.start_cursor == fake.cursor
        assert verifier.verify(key).cached
        fake.send(key)
        fake.handled(verifier)
        assert not verifier.verify(key).cached

    def test_the_first_begins_at_now(self, fake: FakeServer, opened: Opened) -> None:
        """The first stream has no cursor, and requests the configured heartbeat."""
        opened(heartbeat=2.5)
        (stream,) = fake.streams
        assert stream.request.start_cursor == ""
        assert stream.request.heartbeat_interval.ToMilliseconds() == 2500

    def test_an_unknown_cursor(self, fake: FakeServer, verifier: Any) -> None:
        """A cursor that the server does not know is dropped, and everything is evicted."""
        key = fake.knows(1)
        verifier.verify(key)
        fake.unknown_cursor = fake.cursor
        fake.cut()
        fake.until(lambda: fake.streams[-1].request.start_cursor == "")
        fake.send()
        fake.handled(verifier)
        assert not verifier.verify(key).cached

    @pytest.mark.parametrize("status", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
    def test_its_own_key_refused(
        self, fake: FakeServer, verifier: Any, status: grpc.StatusCode, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If the verifier's own key is refused, everything is evicted at once, and the log says so."""
        key = fake.knows(1)
        verifier.verify(key)
        fake.refuses_streams = status
        with caplog.at_level(logging.ERROR, "tumbler"):
            fake.cut(status)
            fake.failures = [status]
            for _ in range(PATIENCE * 1000):
                try:
                    assert verifier.verify(key).cached
                except tumbler.NotAllowed:
                    break
            assert verifier.verifier.remembered == 0
            assert status.name in caplog.text

    def test_silence(self, fake: FakeServer, opened: Opened) -> None:
        """A stream that is silent for two and a half heartbeats is closed and reopened."""
        fake.greets = False
        opened(heartbeat=1, max_staleness=3)
        fake.until(lambda: len(fake.streams) == 2)

    def test_away_and_back(self, fake: FakeServer, verifier: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A broken stream is logged once, and so is its return."""
        with caplog.at_level(logging.INFO, "tumbler"):
            fake.cut()
            fake.send()
            fake.handled(verifier)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]

    @pytest.mark.usefixtures("unwritable")
    def test_a_logger_that_fails(self, fake: FakeServer, verifier: Any) -> None:
        """The stream is reopened and restored all the same, also after a refusal."""
        key = fake.knows(1)
        fake.cut()
        fake.cut()
        fake.send()
        fake.handled(verifier)
        assert [verifier.verify(key).cached for _ in range(2)] == [False, True]
        fake.cut(grpc.StatusCode.PERMISSION_DENIED)
        assert len(fake.streams) == 4


class TestCalls:
    """What happens to answers, and how few calls there are."""

    def test_overtaken_by_an_event(self, fake: FakeServer, verifier: Any) -> None:
        """An answer older than an event of its key is not cached."""
        key = fake.knows(1)
        release = fake.hold(key)
        begun = verifier.begin(key)
        fake.await_held(key)
        fake.send(key)
        fake.handled(verifier)
        release()
        begun.result(PATIENCE)
        assert verifier.verifier.remembered == 0
        assert [verifier.verify(key).cached for _ in range(2)] == [False, True]

    def test_overtaken_by_an_event_of_another_key(self, fake: FakeServer, verifier: Any) -> None:
        """An event of another key does not prevent caching."""
        key = fake.knows(1)
        release = fake.hold(key)
        begun = verifier.begin(key)
        fake.await_held(key)
        fake.send(key_of(2))
        fake.handled(verifier)
        release()
        begun.result(PATIENCE)
        assert verifier.verify(key).cached

    def test_overtaken_by_a_reset(self, fake: FakeServer, verifier: Any) -> None:
        """An answer to a call that began before a reset is not cached."""
        key = fake.knows(1)
        release = fake.hold(key)
        begun = verifier.begin(key)
        fake.await_held(key)
        fake.send(reset=True)
        fake.handled(verifier)
        release()
        begun.result(PATIENCE)
        assert verifier.verifier.remembered == 0

    @pytest.mark.parametrize(("changes", "remembered"), [(1_025, 1), (1_026, 0)])
    def test_overtaken_by_more_than_can_be_kept(
        self, fake: FakeServer, verifier: Any, changes: int, remembered: int
    ) -> None:
        """An answer older than a revision that was dropped from the list of changed keys is not cached."""
        key = fake.knows(1)
        release = fake.hold(key)
        fake.revision += 1
        begun = verifier.begin(key)
        fake.await_held(key)
        fake.revision -= 1  # the oldest of the changes is as old as the answer
        fake.send(*(key_of(number) for number in range(2, 2 + changes)))
        fake.handled(verifier)
        release()
        begun.result(PATIENCE)
        assert verifier.verifier.remembered == remembered

    @pytest.mark.parametrize(
        "code", [pb.VERIFY_CODE_REVOKED, pb.VERIFY_CODE_INACTIVE, pb.VERIFY_CODE_EXPIRED, pb.VERIFY_CODE_NOT_FOUND]
    )
    def test_a_refusal_ends_what_is_remembered(
        self, fake: FakeServer, verifier: Any, passing: Clock, code: pb.VerifyCode
    ) -> None:
        """Once the server has denied a key, the cache never accepts it, whatever the stream delivers."""
        key = fake.knows(1)
        verifier.verify(key)
        passing.pass_by(15)
        fake.knows(1, code=code)
        assert not verifier.verify(key).cached
        assert verifier.verifier.remembered == 0

    def test_a_refusal_of_another_secret_ends_nothing(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """A wrong secret for a cached id, which the server does not find, does not evict the key."""
        key = fake.knows(1)
        verifier.verify(key)
        passing.pass_by(15)
        assert verifier.verify(key_of(1, "1")).code is Code.NOT_FOUND
        assert verifier.verifier.remembered == 1

    @pytest.mark.parametrize(
        "lie",
        [{"key_id": id_of(key_of(2))}, {"key_id": ""}, {"check_time": None}, {"valid": False}, {"code": 77}],
        ids=["of another key", "of no key", "of no time", "not valid", "of no code"],
    )
    def test_an_answer_that_makes_no_sense(self, fake: FakeServer, verifier: Any, lie: dict[str, Any]) -> None:
        """An answer about another key, or one that contradicts itself, decides nothing and is not cached."""
        key = fake.knows(1)
        for name, value in lie.items():
            fake.answers[key].ClearField(name)
            if value:
                setattr(fake.answers[key], name, value)
        with pytest.raises(tumbler.Unavailable, match="this client version does not understand"):
            verifier.verify(key)
        assert verifier.verifier.remembered == 0

    def test_as_fresh_as_the_stream(self, fake: FakeServer, verifier: Any) -> None:
        """A call requests an answer that includes everything that the stream has delivered."""
        fake.send()
        fake.handled(verifier)
        verifier.verify(fake.knows(1))
        assert fake.calls[0].consistency.at_least_as_fresh == fake.cursor

    def test_a_cursor_that_verify_does_not_know(self, fake: FakeServer, verifier: Any) -> None:
        """If the server does not know the cursor, the call is repeated without one, and everything is evicted."""
        one, two = fake.knows(1), fake.knows(2)
        verifier.verify(one)
        fake.unknown_cursor = fake.cursor
        assert verifier.verify(two).valid
        assert verifier.verifier.remembered == 0
        assert [call.consistency.at_least_as_fresh for call in fake.calls[1:]] == [fake.cursor, ""]

    def test_no_more_threads(self, fake: FakeServer, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the channel cannot be replaced after a call that was too late, the caller still gets its error at once."""
        verifier = opened(timeout=0.2)
        monkeypatch.setattr(threading.Timer, "start", no_thread)
        release = fake.hold(fake.knows(1))
        batcher = verifier.verifier._batcher
        with pytest.raises(tumbler.Unavailable):
            verifier.verify(fake.knows(1))
        fake.until(lambda: batcher._calls_in_flight == 0)
        release()

    def test_many_callers_share_a_call(self, fake: FakeServer, verifier: Any) -> None:
        """Concurrent callers with the same key share one call, and each has its own demand decided."""
        key = fake.knows(1)
        release = fake.hold(key)
        first = verifier.begin(key)
        fake.await_held(key)
        others = [verifier.begin(key, required_scopes=[scope]) for scope in ("orders:read", "invoices:read") * 10]
        fake.handled(verifier)
        release()
        assert first.result(PATIENCE).code is Code.VALID
        codes = [other.result(PATIENCE).code for other in others]
        assert codes == [Code.VALID, Code.INSUFFICIENT_SCOPE] * 10
        assert len(fake.calls) == 1

    def test_nobody_shares_a_call_that_is_older_than_what_was_told(self, fake: FakeServer, verifier: Any) -> None:
        """A caller that arrives after an event does not join a call that was sent before it."""
        key = fake.knows(1)
        release = fake.hold(key)
        before = verifier.begin(key)
        fake.await_held(key)
        fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
        fake.send(key)
        fake.handled(verifier)
        after = verifier.begin(key)
        fake.until(lambda: len(fake.calls) == 2)
        release()
        assert before.result(PATIENCE).code is Code.VALID
        assert after.result(PATIENCE).code is Code.REVOKED

    def test_another_callers_fault(self, fake: FakeServer, verifier: Any) -> None:
        """A correct demand does not fail because of the wrong demand of another caller on the same call."""
        key = fake.knows(1)
        release = fake.hold(key)
        bad = verifier.begin(key, client_ip=NONSENSE)
        fake.await_held(key)
        good = verifier.begin(key)
        fake.handled(verifier)
        release()
        assert good.result(PATIENCE).valid
        with pytest.raises(tumbler.InvalidRequest):
            bad.result(PATIENCE)

    def test_large_answers(self, fake: FakeServer, verifier: Any) -> None:
        """An answer may have 16 MiB. By default gRPC refuses more than 4 MiB."""
        large, larger = (fake.knows(number, name="n" * (size << 20)) for number, size in ((1, 15), (2, 17)))
        assert verifier.verify(large).valid
        with pytest.raises(tumbler.Unavailable, match="RESOURCE_EXHAUSTED"):
            verifier.verify(larger)

    def test_a_batch_whose_answer_is_too_large(self, fake: FakeServer, verifier: Any) -> None:
        """A batch that fails costs no key its verdict: it is retried in halves."""
        keys = [fake.knows(number, name="n" * (2 << 20)) for number in range(1, 21)]
        releases = [fake.hold(key) for key in keys[:4]]
        first = [verifier.begin(key) for key in keys[:4]]
        fake.await_held(*keys[:4])
        later = [verifier.begin(key) for key in keys[4:]]
        eventually(lambda: len(verifier.verifier._batcher._queue) == 16)
        for release in releases:
            release()
        assert all(each.result(PATIENCE).valid for each in first + later)

    def test_gathered(self, fake: FakeServer, verifier: Any) -> None:
        """At most four calls are in flight. A hundred keys that arrive meanwhile share calls, and none is lost."""
        keys = [fake.knows(number) for number in range(1, 105)]
        releases = [fake.hold(key) for key in keys[:4]]
        first = [verifier.begin(key) for key in keys[:4]]
        fake.await_held(*keys[:4])
        later = [verifier.begin(key, required_scopes=["orders:read"]) for key in keys[4:]]
        assert len(fake.calls) == 4
        for release in releases:
            release()
        assert all(each.result(PATIENCE) for each in first + later)
        assert fake.most_at_once == 4
        assert len(fake.calls) < 100
        assert verifier.verifier.remembered == 104

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (grpc.StatusCode.UNAUTHENTICATED, tumbler.NotAllowed),
            (grpc.StatusCode.PERMISSION_DENIED, tumbler.NotAllowed),
            (grpc.StatusCode.DEADLINE_EXCEEDED, tumbler.Unavailable),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, tumbler.Unavailable),
            (grpc.StatusCode.INTERNAL, tumbler.Unavailable),
            (grpc.StatusCode.UNIMPLEMENTED, tumbler.Unavailable),
        ],
        ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else value.__name__,
    )
    def test_errors(
        self, fake: FakeServer, verifier: Any, status: grpc.StatusCode, error: type[tumbler.TumblerError]
    ) -> None:
        """Each failure of a call is one of three errors, and never a verdict."""
        key = fake.knows(1)
        fake.failures = [status]
        with pytest.raises(error, match=status.name) as raised:
            verifier.verify(key)
        assert key not in str(raised.value)
        assert verifier.verify(key).valid

    def test_invalid_request(self, fake: FakeServer, verifier: Any) -> None:
        """A demand of the wrong form is the caller's error, and cached keys stay cached."""
        other = fake.knows(1)
        verifier.verify(other)
        with pytest.raises(tumbler.InvalidRequest):
            verifier.verify(fake.knows(2), client_ip=NONSENSE)
        assert verifier.verify(other).cached

    def test_text_that_cannot_be_sent(self, fake: FakeServer, verifier: Any) -> None:
        """A demand that cannot be encoded is the caller's error too."""
        with pytest.raises(tumbler.InvalidRequest):
            verifier.verify(fake.knows(1), environment_id="\udc80")

    def test_unavailable_is_tried_again(self, fake: FakeServer, verifier: Any) -> None:
        """If the server is unavailable, a call is attempted up to three times."""
        key = fake.knows(1)
        fake.failures = [grpc.StatusCode.UNAVAILABLE] * 2
        assert verifier.verify(key).valid
        fake.send(key)
        fake.handled(verifier)
        fake.failures = [grpc.StatusCode.UNAVAILABLE] * 3
        with pytest.raises(tumbler.Unavailable):
            verifier.verify(key)

    def test_unreachable(self, opened: Opened) -> None:
        """Without a server, nothing is decided."""
        verifier = opened(target="127.0.0.1:1", watch=False)
        with pytest.raises(tumbler.Unavailable):
            verifier.verify(key_of(1))

    def test_too_slow(self, fake: FakeServer, opened: Opened) -> None:
        """If the server does not answer in time, nothing is decided, also for the callers whose keys are queued."""
        verifier = opened(watch=False, timeout=0.2)
        keys = [fake.knows(number) for number in range(1, 7)]
        for key in keys:
            fake.hold(key)
        begun = [verifier.begin(key) for key in keys]
        for each in begun:
            with pytest.raises(tumbler.Unavailable):
                each.result(PATIENCE)

    @pytest.mark.parametrize(
        "fields",
        [
            {"valid": True, "code": pb.VERIFY_CODE_REVOKED},
            {"valid": False, "code": pb.VERIFY_CODE_VALID},
            {"valid": True, "code": pb.VERIFY_CODE_UNSPECIFIED},
            {"valid": False, "code": pb.VERIFY_CODE_UNSPECIFIED},
            {"valid": True, "code": pb.VERIFY_CODE_VALID, "key_id": ""},
            {"valid": True, "code": 11},
            {"valid": False, "code": 11},
            {"valid": False, "code": 11, "key_id": "x"},
            {"valid": True, "code": pb.VERIFY_CODE_VALID, "key_id": "x", "allowed_cidrs": ["192.0.2.7/24"]},
        ],
        ids=str,
    )
    def test_odd_answers(self, fake: FakeServer, verifier: Any, fields: Any) -> None:
        """An answer that contradicts itself, or that this version does not understand, decides nothing."""
        key = key_of(1)
        fake.answers[key] = pb.VerifyResponse(**fields)
        with pytest.raises(tumbler.Unavailable):
            verifier.verify(key)


class TestUnknownCodes:
    """Answers of a newer server."""

    @pytest.mark.parametrize("code", [0, 77], ids=str)
    def test_a_denial_with_an_unknown_code(self, fake: FakeServer, verifier: Any, code: Any) -> None:
        """It denies like all others, and is not cached. Its check_time does not matter."""
        key = fake.knows(1)
        assert [verifier.verify(key).cached for _ in range(2)] == [False, True]
        fake.answers[key].valid, fake.answers[key].code = False, code
        fake.answers[key].ClearField("check_time")
        fake.send(key)
        fake.handled(verifier)
        told = verifier.verify(key)
        assert (told.code, told.key_id, told.project_id) == (Code.UNSPECIFIED, id_of(key), "acme")
        assert not told
        assert not told.valid
        assert verifier.verifier.remembered == 0
        assert not verifier.verify(key, project_id="acme").cached
        assert verifier.verify(key, project_id="another").code is Code.NOT_FOUND

    def test_a_denial_with_an_unknown_code_evicts(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """A record that was cached is dropped, without any event."""
        key = fake.knows(1, cache_ttl=1)
        verifier.verify(key)
        passing.pass_by(1)
        assert verifier.verifier.remembered == 1
        fake.answers[key].valid, fake.answers[key].code = False, 77  # type: ignore[assignment]
        assert verifier.verify(key).code is Code.UNSPECIFIED
        assert verifier.verifier.remembered == 0


class TestOldAnswers:
    """An answer that is handed out later than ``max_staleness`` after its call was sent."""

    @pytest.mark.parametrize("options", [{}, {"watch": False}, {"watch": False, "fixed_ttl": 60}], ids=str)
    def test_an_answer_that_was_long_on_its_way(
        self, fake: FakeServer, opened: Opened, passing: Clock, options: Any
    ) -> None:
        """It decides nothing, whatever it says: the key may have changed meanwhile."""
        verifier, valid, revoked = opened(**options), fake.knows(1), fake.knows(2, code=pb.VERIFY_CODE_REVOKED)
        for key in (valid, revoked):
            release = fake.hold(key)
            begun = verifier.begin(key)
            fake.await_held(key)
            passing.pass_by(15.000_001)
            release()
            with pytest.raises(tumbler.Unavailable, match="too old"):
                begun.result(PATIENCE)
            assert verifier.verifier.remembered == 0
        assert verifier.verify(valid).valid

    def test_an_answer_just_in_time(self, fake: FakeServer, verifier: Any, passing: Clock) -> None:
        """It counts until ``max_staleness`` is over."""
        key = fake.knows(1)
        release = fake.hold(key)
        begun = verifier.begin(key)
        fake.await_held(key)
        passing.pass_by(15)
        release()
        assert begun.result(PATIENCE).valid

    def test_a_process_that_stood_still_with_an_answer(self, passing: Clock) -> None:
        """The age counts when a caller is given the verdict, not when the answer arrives."""
        with tumbler.Verifier("127.0.0.1:1", api_key=OWN_KEY, watch=False, clock=passing) as verifier:
            key, demand = key_of(1), Demand()
            flight, batch = verifier._batcher.join(key, demand, futures.Future)
            assert batch is not None
            response = pb.VerifyResponse(valid=True, code=pb.VERIFY_CODE_VALID, key_id=id_of(key), project_id="acme")
            response.check_time.seconds = NOW
            verifier._batcher.answered(batch, response)
            outcome = flight.future.result(0)
            assert verifier._verdict_of(flight, demand, outcome)
            passing.pass_by(15.000_001)
            with pytest.raises(tumbler.Unavailable, match="too old"):
                verifier._verdict_of(flight, demand, outcome)


class TestWithoutStream:
    """With ``watch`` off."""

    def test_nothing_is_remembered(self, fake: FakeServer, opened: Opened) -> None:
        """Without a stream nothing is cached, and no stream is opened."""
        verifier, key = opened(watch=False), fake.knows(1)
        assert [verifier.verify(key).cached for _ in range(2)] == [False, False]
        assert fake.streams == []
        assert not fake.calls[0].consistency.at_least_as_fresh

    @pytest.mark.parametrize(("fixed_ttl", "lasts"), [(5, 5), (3_600, 60)])
    def test_a_fixed_time(
        self, fake: FakeServer, opened: Opened, passing: Clock, fixed_ttl: float, lasts: float
    ) -> None:
        """A fixed time to live limits how long a key is cached, and so does the server's cache_ttl."""
        verifier, key = opened(watch=False, fixed_ttl=fixed_ttl), fake.knows(1)
        verifier.verify(key)
        passing.pass_by(lasts - 0.001)
        assert verifier.verify(key).cached
        passing.pass_by(0.001)
        assert not verifier.verify(key).cached

    def test_no_call_is_shared_that_was_sent(self, fake: FakeServer, opened: Opened) -> None:
        """Without a stream no caller joins a call that was sent: its answer may be older than the request."""
        verifier, key = opened(watch=False), fake.knows(1)
        release = fake.hold(key)
        begun = [verifier.begin(key) for _ in range(2)]
        fake.until(lambda: len(fake.calls) == 2)
        release()
        assert all(each.result(PATIENCE).valid for each in begun)


class TestLife:
    """From construction to close."""

    def test_closed(self, fake: FakeServer, verifier: Any) -> None:
        """A closed verifier decides nothing, not even from the cache. Closing it twice does nothing."""
        key = fake.knows(1)
        verifier.verify(key)
        verifier.close()
        verifier.close()
        with pytest.raises(tumbler.Unavailable, match="closed"):
            verifier.verify(key)
        assert verifier.verifier.remembered == 0

    def test_closing_ends_waiting(self, fake: FakeServer, verifier: Any) -> None:
        """Callers that wait when a verifier is closed get an error at once."""
        keys = [fake.knows(number) for number in range(1, 7)]
        for key in keys[:4]:
            fake.hold(key)
        begun = [verifier.begin(key) for key in keys]
        fake.await_held(*keys[:4])
        verifier.close()
        for each in begun:
            with pytest.raises(tumbler.Unavailable, match="closed"):
                each.result(PATIENCE)

    def test_no_key_is_shown(self, fake: FakeServer, opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
        """Neither a presented key nor the verifier's own is in anything that is printed or logged."""
        own = key_of(9, fill="9")
        with caplog.at_level(logging.DEBUG):
            verifier, key = opened(api_key=own), fake.knows(1)
            told = verifier.verify(key)
            fake.cut()
            fake.failures = [grpc.StatusCode.INTERNAL]
            with pytest.raises(tumbler.Unavailable) as raised:
                verifier.verify(fake.knows(2))
        inner = vars(verifier.verifier).values()
        shown = [repr(verifier.verifier), repr(told), repr(raised.value), str(raised.value), caplog.text]
        for text in [*shown, *map(repr, inner)]:
            assert "0" * 43 not in text
            assert "9" * 43 not in text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target": ""}, "target"),
            ({"target": "https://tumbler.example"}, "target"),
            ({"api_key": ""}, "api_key"),
            ({"api_key": "tmb_secret\n"}, "api_key"),
            ({"target": "tumbler.example:443"}, "credentials"),
            ({"credentials": grpc.ssl_channel_credentials(), "insecure": True}, "insecure"),
            ({"cache_size": -1}, "cache_size"),
            ({"cache_bytes": -1}, "cache_bytes"),
            ({"timeout": 0}, "timeout"),
            ({"timeout": float("nan")}, "timeout"),
            ({"heartbeat": 0.5}, "heartbeat"),
            ({"heartbeat": 3_601, "max_staleness": 4_000}, "heartbeat"),
            ({"heartbeat": 15}, "max_staleness"),
            ({"max_staleness": float("inf")}, "max_staleness"),
            ({"fixed_ttl": 5}, "fixed_ttl"),
            ({"fixed_ttl": 0, "watch": False}, "fixed_ttl"),
        ],
        ids=lambda value: value if isinstance(value, str) else "-".join(value),
    )
    def test_options(self, fake: FakeServer, opened: Opened, options: Any, message: str) -> None:
        """An option that breaks its rule is refused by name, and no key is shown."""
        with pytest.raises(ValueError, match=f"^{message}:") as raised:
            opened(**options)
        assert "secret" not in str(raised.value)
        assert fake.streams == []

    @pytest.mark.parametrize(
        "options", [{"insecure": True}, {"credentials": grpc.ssl_channel_credentials()}], ids=["insecure", "tls"]
    )
    def test_another_machine(self, opened: Opened, options: Any) -> None:
        """Another machine may be called with TLS, or in plaintext if that is requested."""
        assert "tumbler.example" in repr(opened(target="tumbler.example:443", watch=False, **options).verifier)
