"""Watch over real sockets: which events a client receives, when, and how its stream ends."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.e2e.service import PATIENCE, Client, Service, Watch, eventually, seconds
from tests.harness import Refused
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

VERIFY = "tumbler:keys:verify"

SOON = 1.0
"""Seconds within which a change arrives, on a machine that is busy with other tests."""

OPENED_AT_ONCE = 100
"""Streams that a client opens before it waits for them: gRPC itself refuses calls if 1,000 are waiting."""


def open_many(clients: list[Client], count: int, **fields: object) -> list[Watch]:
    """Open ``count`` streams, round robin over these connections, and read the first response of each."""
    streams: list[Watch] = []
    while len(streams) < count:
        new = [
            clients[number % len(clients)].watch(timeout=10 * PATIENCE, **fields)
            for number in range(min(OPENED_AT_ONCE, count - len(streams)))
        ]
        streams += [stream.opened() for stream in new]
    return streams


def opened(clients: list[Client], count: int) -> list[Watch]:
    """Open ``count`` streams. Return none if the server has no room for all."""
    streams: list[Watch] = []
    try:
        while len(streams) < count:
            streams += open_many([clients[len(streams) % len(clients)]], 1)
    except Refused:
        for stream in streams:
            stream.cancel()
        return []
    return streams


def types(events: list[event_pb2.KeyEvent]) -> list[str]:
    """Return the types of events as names."""
    return [event_pb2.KeyEventType.Name(event.type).removeprefix("KEY_EVENT_TYPE_") for event in events]


def memory(server: Service) -> int:
    """Return the server's resident memory in KiB."""
    assert server.process is not None
    with open(f"/proc/{server.process.pid}/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def deaf(server: Service) -> Client:
    """Open a connection with a small flow-control window, so that unread responses soon queue at the server."""
    client = server.connect()
    client.close()
    options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
    small = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384))
    client.channel = grpc.insecure_channel(server.target, (*options, *small))
    client.stub = ApiKeyServiceStub(client.channel)
    return client


def make_noise(server: Service, project: str) -> int:
    """Make enough changes to fill an unread stream, and return the number of events."""
    made = server.create(project_id=project, name="🔑" * 255, scopes=["tumbler:keys:update"])  # sent in each event
    key_id = server.create(project_id=project).api_key.id
    noisy = server.connect(made.key)
    for number in range(200):
        noisy.set_active(key_id, bool(number % 2))
    noisy.close()
    return 202


class TestRefusals:
    """Watch refuses bad requests as any other call does, before it sends anything."""

    def test_bad_input(self, server: Service) -> None:
        """A heartbeat interval out of bounds or a foreign cursor is refused with the name of the field."""
        cursor = server.create().consistency_token
        for fields, wrong in (
            ({"beat": 0.999}, ["heartbeat_interval"]),
            ({"beat": 3_600.001}, ["heartbeat_interval"]),
            ({"beat": 0}, ["heartbeat_interval"]),
            ({"beat": -1}, ["heartbeat_interval"]),
            ({"start_cursor": "garbage"}, ["start_cursor"]),
            ({"start_cursor": cursor[1:]}, ["start_cursor"]),
            ({"start_cursor": "x" * 5_000}, ["start_cursor"]),
            ({"project_id": "no such/project"}, ["project_id"]),
        ):
            with pytest.raises(Refused) as refused:
                server.watch(**fields).next()  # type: ignore[arg-type]
            assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
            assert refused.value.fields == wrong
        for beat in (1, 3_600):
            server.watch(beat=beat).opened().cancel()

    def test_who_may(self, server: Service, project: str) -> None:
        """Watch needs the scope of Verify and the caller's own project."""
        allowed = server.caller(VERIFY, project_id=project)
        for client, fields, code, reason in (
            (server.connect(""), {}, "UNAUTHENTICATED", "UNAUTHENTICATED"),
            (server.caller("*", project_id=project), {}, "PERMISSION_DENIED", "SCOPE_MISSING"),
            (allowed, {"project_id": "elsewhere"}, "PERMISSION_DENIED", "OTHER_PROJECT"),
        ):
            with pytest.raises(Refused) as refused:
                client.watch(**fields).next()  # type: ignore[arg-type]
            assert (refused.value.code.name, refused.value.reason) == (code, reason)
        allowed.watch(project_id=project).opened().cancel()

    def test_too_many_streams(self, embedded: Service) -> None:
        """Streams beyond --max-watch-streams are refused with a retry delay until one ends."""
        embedded.start("--max-watch-streams", "3")
        first, *_ = [embedded.watch().opened() for _ in range(3)]
        with pytest.raises(Refused) as refused:
            embedded.watch().next()
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refused.value.retry_delay > 0
        first.cancel()

        eventually(lambda: opened([embedded], 1))


class TestChanges:
    """Which events a stream receives."""

    def test_at_once(self, server: Service, project: str) -> None:
        """A stream receives each change at once, with its type, its key and its actor."""
        stream = server.caller(VERIFY, project_id=project).watch().opened()
        made = server.create(project_id=project, environment_id="live")
        (event,) = stream.events(1)
        assert types([event]) == ["CREATED"]
        assert (event.key_id, event.project_id, event.environment_id) == (made.api_key.id, project, "live")
        assert event.actor.name == "first operator"
        assert event.hash == b""
        told = []
        for _ in range(20):
            server.set_active(made.api_key.id, active=len(told) % 2 == 1)
            done = time.monotonic()
            told.append((types(stream.events(1)), time.monotonic() - done))
        assert [what for what, _ in told] == [["DEACTIVATED"], ["ACTIVATED"]] * 10
        assert sorted(late for _, late in told)[10] < SOON

    def test_by_other_servers(self, server: Service, other: Service, project: str) -> None:
        """A change made through another server of the installation arrives soon, too."""
        stream = server.caller(VERIFY, project_id=project).watch().opened()
        made = other.create(project_id=project)
        done = time.monotonic()
        assert [event.key_id for event in stream.events(1)] == [made.api_key.id]
        assert time.monotonic() - done < SOON
        other.revoke(made.api_key.id)
        assert types(stream.events(1)) == ["REVOKED"]

    def test_own_project_alone(self, server: Service, project: str) -> None:
        """A caller receives only its own project's events; an operator receives all, or those of a project it names."""
        ours = server.caller(VERIFY, project_id=project).watch(beat=1).opened()
        every, named = server.watch().opened(), server.watch(project_id=project).opened()
        keys = [server.create(project_id=name).api_key.id for name in (project, f"{project}-other", project)]
        for stream in (ours, named):
            assert [event.key_id for event in stream.events(2)] == [keys[0], keys[2]]
        seen: list[str] = []
        while len(seen) < 3:  # other tests may change keys meanwhile
            seen += [event.key_id for event in every.events(1) if event.key_id in keys]
        assert seen == keys

    def test_in_order_while_many_write(self, server: Service, other: Service, project: str) -> None:
        """While many clients write through two servers, every stream receives each change once, in commit order."""
        streams = [stream for each in (server, other) for stream in open_many([each.connect()], 10, project_id=project)]
        writers = [each.connect() for each in (server, other) for _ in range(3)]

        def write(client: Client) -> None:
            for _ in range(10):
                made = client.create(project_id=project)
                client.revoke(made.api_key.id)

        with ThreadPoolExecutor(len(writers)) as pool:
            list(pool.map(write, writers))
        written = [
            revision
            for (revision,) in server.read("SELECT revision FROM event WHERE project_id = ? ORDER BY revision", project)
        ]
        assert len(written) == 120
        for stream in streams:
            assert [event.revision for event in stream.events(120)] == written

    def test_after_a_broken_stream(self, server: Service, other: Service, project: str) -> None:
        """A stream resumes from its last cursor, on any server, and misses nothing."""
        stream = server.watch(project_id=project).opened()
        server.create(project_id=project)
        stream.events(1)
        stream.cancel()
        keys = [server.create(project_id=project).api_key.id for _ in range(3)]
        again = other.watch(project_id=project, start_cursor=stream.cursor)
        assert [event.key_id for event in again.events(3)] == keys
        assert again.next().events == []  # Sent at once: the stream has caught up.
        token = server.create(project_id=project).consistency_token
        assert server.watch(project_id=project, start_cursor=token).opened()

    def test_a_cursor_is_a_consistency_token(self, server: Service, other: Service, project: str) -> None:
        """A Verify with a stream's cursor as its consistency token knows every event up to it, on any server."""
        stream = server.watch(project_id=project).opened()
        made = server.create(project_id=project)
        server.revoke(made.api_key.id)
        stream.events(2)
        consistency = pb.Consistency(at_least_as_fresh=stream.cursor)
        assert other.verdict(made.key, consistency=consistency) == "REVOKED"

    def test_reset(self, installed: Service) -> None:
        """If events after a cursor are no longer kept, the stream starts with a reset and goes on from the present."""
        installed.start()
        old = installed.create().consistency_token
        for _ in range(3):
            installed.create()
        assert installed.stop() == 0
        installed.tamper(
            "UPDATE log_head SET anchor_hash = (SELECT hash FROM event WHERE event.revision = log_head.revision - 1), "
            "anchor_revision = revision - 1",
            "DELETE FROM event WHERE revision <= (SELECT anchor_revision FROM log_head)",
        )
        installed.start()
        stream = installed.watch(start_cursor=old)
        first = stream.next()
        assert (first.reset, list(first.events)) == (True, [])
        assert stream.heartbeat()
        made = installed.create()
        assert [event.key_id for event in stream.events(1)] == [made.api_key.id]
        assert installed.watch(start_cursor=first.cursor).events(1)[0].key_id == made.api_key.id


class TestHeartbeats:
    """Heartbeats: responses without events."""

    def test_cadence(self, server: Service, project: str) -> None:
        """A stream sends something at least once per heartbeat interval, and no more often without need."""
        stream = server.watch(project_id=project, beat=1).opened()
        stream.heartbeat()
        began = time.monotonic()
        for _ in range(4):
            assert stream.next().events == []
        assert 3 < time.monotonic() - began < 8

    def test_the_cursor_goes_on(self, server: Service, project: str) -> None:
        """A heartbeat's cursor moves past changes outside the stream's scope, so that a resumed stream skips them."""
        stream = server.watch(project_id=project, beat=1).opened()
        before = stream.cursor
        server.create(project_id=f"{project}-other")
        eventually(lambda: stream.heartbeat() != before)
        assert server.watch(project_id=project, start_cursor=stream.cursor).opened()


class TestTheCallersKey:
    """A stream ends as soon as its caller's key would be refused."""

    def test_revoked(self, server: Service, project: str) -> None:
        """Revoking the caller's key ends its streams with UNAUTHENTICATED."""
        mine = server.caller(VERIFY, project_id=project)
        streams = [mine.watch().opened() for _ in range(3)]
        (key_id,) = [key.id for key in server.call("List", pb.ListRequest(project_id=project)).api_keys]
        server.revoke(key_id)
        for stream in streams:
            refused = stream.ended()
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")

    def test_revoked_through_another_server(self, server: Service, other: Service, project: str) -> None:
        """A deactivation through another server ends the stream as well."""
        stream = server.caller(VERIFY, project_id=project).watch().opened()
        (key_id,) = [key.id for key in other.call("List", pb.ListRequest(project_id=project)).api_keys]
        other.set_active(key_id, False)
        assert stream.ended().reason == "UNAUTHENTICATED"

    def test_expired(self, server: Service, project: str) -> None:
        """A stream ends when the caller's key expires, however long the heartbeat interval is."""
        mine = server.caller(VERIFY, project_id=project, ttl=seconds(2))
        refused = mine.watch(beat=3_600).opened().ended()
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")

    def test_narrowed(self, server: Service, project: str) -> None:
        """A stream ends with SCOPE_MISSING when its key loses the scope; other updates of the key leave it open."""
        mine = server.caller(VERIFY, "tumbler:keys:read", project_id=project)
        stream = mine.watch().opened()
        (key,) = server.call("List", pb.ListRequest(project_id=project)).api_keys
        server.call("Update", pb.UpdateRequest(api_key={"id": key.id, "name": "another name"}))
        assert types(stream.events(1)) == ["UPDATED"]
        server.call("Update", pb.UpdateRequest(api_key={"id": key.id, "scopes": ["tumbler:keys:read"]}))
        refused = stream.ended()
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        assert refused.info.metadata == {"scope": VERIFY}


class TestManyStreams:
    """Streams take no threads from calls and leave nothing behind."""

    def test_no_thread_each(self, embedded: Service) -> None:
        """With two threads, hundreds of streams do not delay Verify, and every stream receives a change."""
        embedded.start("--threads", "2")
        streams = open_many([embedded.connect() for _ in range(4)], 300)
        for _ in range(20):
            assert embedded.call("Verify", pb.VerifyRequest(key=embedded.key), timeout=5).valid
        made = embedded.create()
        assert {event.key_id for stream in streams for event in stream.events(1)} == {made.api_key.id}

    def test_whichever_worker(self, embedded: Service) -> None:
        """A change made through one worker arrives at the streams of all workers."""
        embedded.start("--workers", "2")
        streams = [embedded.connect().watch().opened() for _ in range(8)]
        made = embedded.create()
        assert [stream.events(1)[0].key_id for stream in streams] == [made.api_key.id] * 8

    def test_cancelled_streams_leave_nothing(self, embedded: Service) -> None:
        """Cancelled streams no longer count and hold no memory."""
        embedded.start("--max-watch-streams", "200")
        clients = [embedded.connect() for _ in range(4)]

        def come_and_go(times: int) -> None:
            for _ in range(times):
                for stream in eventually(lambda: opened(clients, 100)):
                    stream.cancel()

        come_and_go(5)
        before = memory(embedded)
        come_and_go(15)
        assert memory(embedded) < before + 8_000  # 1,500 streams, at most about 5 KiB left by each
        assert eventually(lambda: opened(clients, 100))

    def test_who_does_not_read(self, embedded: Service) -> None:
        """A client that does not read is cut off; other streams stay prompt, and the server's memory stays small."""
        embedded.start("--max-watch-streams", "25")
        slow, patient = deaf(embedded), embedded.connect()
        unread = open_many([slow], 20, project_id="noisy")
        others = open_many([patient], 5)
        before = memory(embedded)
        noise = make_noise(embedded, "noisy")
        for stream in others:
            stream.events(noise)
        late = []
        for _ in range(10):
            made = embedded.create(project_id="quiet")
            done = time.monotonic()
            for stream in others:
                assert [event.key_id for event in stream.events(1)] == [made.api_key.id]
            late.append(time.monotonic() - done)
        assert max(late) < 2 * SOON
        assert memory(embedded) < before + 30_000
        eventually(lambda: opened([patient], 20))  # There is room again: the server has dropped the slow streams.
        assert {stream.ended().code for stream in unread} <= {
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.CANCELLED,
        }
        made = embedded.create()
        assert [stream.events(1)[0].key_id for stream in others] == [made.api_key.id] * 5

    def test_who_reads_again_is_told_why(self, embedded: Service) -> None:
        """A slow client that reads again gets READER_TOO_SLOW with the advice to resume, and then misses nothing."""
        embedded.start()
        for attempt in range(1, 9):
            stream = deaf(embedded).watch(project_id="noisy").opened()
            cursor = stream.cursor
            noise = make_noise(embedded, "noisy")
            eventually(lambda: embedded.stderr.count("its client does not read fast enough") == attempt)  # noqa: B023
            refused = stream.ended()
            # On a very busy machine it reads again only after the server has given up waiting for that.
            if refused.code is not grpc.StatusCode.CANCELLED:
                break
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "READER_TOO_SLOW")
        assert "resume" in refused.message
        assert len(embedded.watch(project_id="noisy", start_cursor=cursor).events(noise)) == noise


class TestTheServersEnd:
    """How streams end when the server stops."""

    def test_told_at_once(self, installed: Service) -> None:
        """On shutdown, each stream ends with SERVER_STOPPING, and no stream, read or unread, delays the exit."""
        installed.start("--shutdown-grace", "1m")
        unread = deaf(installed).watch(project_id="noisy").opened()
        streams = open_many([installed.connect()], 20)
        make_noise(installed, "noisy")
        installed.signal(signal.SIGTERM)
        for stream in streams:
            refused = stream.ended()
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
            assert "resume" in refused.message
        assert installed.wait(10) == 0
        assert "Traceback" not in installed.stderr
        assert unread.ended().code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

    def test_calls_under_way_are_finished(self, installed: Service) -> None:
        """Streams end at once on shutdown, while calls in flight keep their grace period."""
        installed.start()
        stream = installed.watch().opened()
        with installed.writers_waiting():
            under_way = installed.begin("Create", pb.CreateRequest(project_id="acme"))
            assert installed.verdict(installed.key) == "VALID"
            installed.signal(signal.SIGTERM)
            assert stream.ended().reason == "SERVER_STOPPING"
            assert not under_way.done()
        assert under_way.result(PATIENCE).key
        assert installed.wait() == 0

    def test_resumed_after_a_restart(self, installed: Service) -> None:
        """A stream resumes from its last cursor after a restart, although the server's memory is empty."""
        installed.start()
        stream = installed.watch().opened()
        installed.restart()
        made = [installed.create().api_key.id for _ in range(3)]
        installed.restart()
        again = installed.watch(start_cursor=stream.cursor)
        assert [event.key_id for event in again.events(3)] == made
