"""The only wiring: turns a configuration into a server."""

import asyncio
import contextlib
import math
import os
import resource
import signal
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from tumbler.v1 import api_key_service_pb2
from tumbler_server import limits, logs, shares
from tumbler_server.clock import SECOND, Clock, monotonic, system_clock
from tumbler_server.config import Config, Tls
from tumbler_server.errors import CannotListen, SetupError
from tumbler_server.events.retention import Retention
from tumbler_server.freshness.board import Board
from tumbler_server.freshness.glance import Glance
from tumbler_server.freshness.poller import Poller
from tumbler_server.freshness.tail import Tail
from tumbler_server.keys.ledger import Ledger
from tumbler_server.keys.lifecycle import Lifecycle
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.rotation import Rotations
from tumbler_server.keys.trail import Trail
from tumbler_server.keys.webhook_admin import WebhookAdmin
from tumbler_server.ports import demand_free
from tumbler_server.rpc import auth, health, reflecting
from tumbler_server.rpc.accepting import Accepting, Service
from tumbler_server.rpc.engine import BEHIND, Engine, Lanes, lane_limits
from tumbler_server.rpc.exchange import House
from tumbler_server.rpc.gathering import Gathering
from tumbler_server.rpc.health import Health
from tumbler_server.rpc.hotpath import HotPath
from tumbler_server.rpc.lanes import Lane, stand_back
from tumbler_server.rpc.loop import LoopThread
from tumbler_server.rpc.parting import Parting
from tumbler_server.rpc.policing import Policing
from tumbler_server.rpc.reflecting import Reflection
from tumbler_server.rpc.servicer import Servicer
from tumbler_server.rpc.shedding import Shedding
from tumbler_server.rpc.spreading import VerifyTurns
from tumbler_server.rpc.unsent import Unsent
from tumbler_server.rpc.vitals import Vitals
from tumbler_server.rpc.watch import Watching
from tumbler_server.scheduler import timekeeping
from tumbler_server.scheduler.timekeeping import Timekeeper
from tumbler_server.secrets.claim_tokens import ClaimTokens
from tumbler_server.secrets.opaque_tokens import open_opaque_tokens
from tumbler_server.secrets.pepper import vault
from tumbler_server.secrets.roster import Roster
from tumbler_server.secrets.secret import Hasher
from tumbler_server.store import migrations
from tumbler_server.store.database import POSTGRESQL, Store, open_store
from tumbler_server.streams.hub import Hub
from tumbler_server.verify.cache import ProofCache
from tumbler_server.verify.first_use import FirstUses
from tumbler_server.verify.rehasher import Rehasher
from tumbler_server.verify.usage import LAST, Usage
from tumbler_server.verify.verifier import Verifier
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.targets import Judge, LookUp, Resolver

SERVICE = api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"]

_LAST_WORD = 0.25
"""Seconds for health watchers to learn that the server stops, before they are cut off."""

_UNREAD = 3.0
"""Seconds for callers to read how their streams end, if no call is in flight."""

LOOKERS, STREAM_READERS = 2, 2
"""Threads that read what is new in the log, for calls and for streams."""

_FILES = 512
"""Open files other than connections: databases, listeners, webhooks."""

_ANY_SIZE = 1 << 30

_BEHIND = 5
"""Niceness of gRPC's threads, which read what peers send. If all processors are busy, ours go first, and a flood
waits."""

_OPTIONS = (
    # Pings are answered however often they come, and gRPC stops reading from a peer that does not read the answers. If
    # they counted as strikes, each further one would make gRPC copy all earlier complaints, as long as the peer does
    # not read.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES.most),
    ("grpc.max_send_message_length", limits.ANSWER_BYTES.most + limits.MIB),
    ("grpc.max_concurrent_streams", shares.STREAMS.most),
    # It would count ended calls among a connection's streams until all of gRPC has released them, and refuse new ones
    # meanwhile: every fifth call of an honest gateway with 90 calls in flight. rpc.policing handles resets.
    ("grpc.http.overload_protection", 0),
    # Calls that wait to be accepted. Beyond its own limit of 1,000, gRPC cancels some of them, honest ones too.
    ("grpc.server.max_pending_requests", shares.PENDING.most),
    ("grpc.server.max_pending_requests_hard_limit", 2 * shares.PENDING.most),
    # Calls that have waited this long are dropped, and do not reach the loop: their callers have given up.
    ("grpc.server_max_unrequested_time_in_server", shares.SECONDS_PENDING.most),
    # The engine refuses headers above our limit. gRPC would refuse some smaller ones, at random and without a reason.
    # It would also hand on the refused ones, after building a text of all their names and sizes.
    ("grpc.max_metadata_size", _ANY_SIZE),
    ("grpc.absolute_max_metadata_size", _ANY_SIZE),
    ("grpc.server_handshake_timeout_ms", shares.SECONDS_TO_SHAKE_HANDS.most * 1_000),
    ("grpc.max_connection_idle_ms", shares.SECONDS_IDLE.most * 1_000),
    ("grpc.max_connection_age_ms", shares.SECONDS_OF_AGE.most * 1_000),
    ("grpc.max_connection_age_grace_ms", shares.SECONDS_OF_GRACE * 1_000),
    # How much a peer may send before the server asks for it. The server asks for more as it receives messages.
    ("grpc.http2.lookahead_bytes", 64 * limits.KIB),
    ("grpc.http2.bdp_probe", 0),
)

_log = logs.get_logger(__name__)

Closable = TypeVar("Closable", bound="SupportsClose")


class SupportsClose(Protocol):
    """What is closed when the core is."""

    def close(self) -> None:
        """Finish the work in progress, and stop."""


@dataclass(frozen=True)
class Core:
    """The domain, wired to a database, and what serves it on a loop. ``opened`` closes all its parts."""

    store: Store
    lifecycle: Lifecycle
    servicer: Servicer
    tail: Tail
    poller: Poller
    hub: Hub
    rehasher: Rehasher
    usage: Usage
    first_uses: FirstUses
    retention: Retention
    roster: Roster
    looking: ThreadPoolExecutor
    glance: Glance
    engine: Engine
    shedding: Shedding
    lanes: Lanes
    opened: contextlib.ExitStack

    def start(self) -> None:
        """Start the background work."""
        self.poller.start()
        self.usage.start()
        self.first_uses.start()
        self.retention.start()
        self.roster.start()

    def close(self, seconds: float = LAST) -> None:
        """Finish the work in progress, and close the database. The loop must not serve any more.

        The last uses of keys are written for at most ``seconds``.
        """
        self.usage.patience = seconds
        self.opened.close()


def build_core(
    config: Config,
    clock: Clock = system_clock,
    board: Board | None = None,
    monotonic: Clock = monotonic,
    look_up: LookUp | None = None,
) -> Core:
    """Wire the domain. ``board`` is the one that the server's workers share, if there are several.

    ``look_up`` resolves host names if given, otherwise the system does. Raises ``SetupError`` if the installation is
    not ready; then nothing stays open.
    """
    with contextlib.ExitStack() as opened:
        return _core(opened, config, clock, board, monotonic, look_up)


def _core(
    opened: contextlib.ExitStack,
    config: Config,
    clock: Clock,
    board: Board | None,
    monotonic: Clock,
    look_up: LookUp | None,
) -> Core:
    # Parts are closed in the opposite order: first those that work for calls, then what these hand on to, the database
    # last.
    def keep(part: Closable) -> Closable:
        return opened.enter_context(contextlib.closing(part))

    store = keep(open_store(config.installation.database_url, timeout=config.database_timeout, warm=config.threads))
    migrations.check(store)
    peppers = config.installation.peppers()
    if not peppers:
        _log.warning("there is no pepper file: each key costs one bcrypt run when a process first sees it")
    store.notifies = config.database_notify and store.dialect == POSTGRESQL
    timekeeping.begin(store, clock())
    timekeeper = Timekeeper(store, clock, monotonic)
    usage = keep(Usage(store, translate=timekeeper.translate))
    roster = keep(Roster(store, [pepper.id for pepper in peppers], clock, monotonic))
    retention = keep(Retention(store, timekeeper.earliest, config.event_retention))

    hasher = Hasher(config.bcrypt_cost, peppers)
    cache = ProofCache(config.cache_size, config.cache_bytes)
    tail = Tail(store, cache, config.max_staleness, board, monotonic)
    tokens = open_opaque_tokens(store, tail.lineage.mark)
    resolver = Resolver(look_up)
    endpoints = Endpoints(vault(peppers), Judge(config.webhook_rules, resolver), config.max_webhook_urls)
    ledger = Ledger(store, hasher, clock, tail.committed, config.max_project_keys)
    lifecycle = Lifecycle(ledger, config.default_prefix, config.min_rotation_interval, endpoints)
    rehasher, first_uses = keep(Rehasher(store, hasher, clock)), keep(FirstUses(ledger))
    verifier = Verifier(
        store=store,
        hasher=hasher,
        tail=tail,
        cache=cache,
        rehasher=rehasher,
        usage=usage,
        first_uses=first_uses,
        clock=clock,
        stale_if_error=config.stale_if_error,
    )
    servicer = Servicer(
        verifier=verifier,
        lifecycle=lifecycle,
        rotations=Rotations(ledger, ClaimTokens(peppers)),
        listing=Listing(store, tokens, clock),
        trail=Trail(store, tokens, tail.lineage),
        tokens=tokens,
        webhook_admin=WebhookAdmin(store, tokens, endpoints, clock),
        cache_ttl=config.cache_ttl,
    )

    shedding = keep(Shedding())
    streams = opened.enter_context(ThreadPoolExecutor(STREAM_READERS, thread_name_prefix="streams"))
    looking = opened.enter_context(ThreadPoolExecutor(LOOKERS, thread_name_prefix="look"))
    rows = lane_limits(config.threads, max(1, (os.cpu_count() or 1) // config.workers))
    proofs, reads = keep(Lane(rows["proofs"], BEHIND)), keep(Gathering(rows["reads"], verifier.read))
    lanes = Lanes(
        batch=keep(Lane(rows["batch"])),
        stop=keep(Lane(rows["stop"])),
        claim=keep(Lane(rows["claim"], BEHIND)),
        issue=keep(Lane(rows["issue"], BEHIND)),
        change=keep(Lane(rows["change"])),
        read=keep(Lane(rows["read"])),
    )
    glance = Glance(tail, looking)
    hub = Hub(
        store=store,
        tail=tail,
        clock=clock,
        most=config.max_watch_streams,
        max_staleness=config.max_staleness,
        monotonic=monotonic,
        blocking=streams,
    )
    house = House(
        servicer=servicer,
        hotpath=HotPath(verifier, glance, reads, proofs),
        watching=Watching(hub, lifecycle, tokens, clock),
        shedding=shedding,
        unsent=Unsent(),
        verifying=VerifyTurns(shares.VERIFY_CROWD),
    )
    engine = Engine(SERVICE, house, lanes)
    poller = keep(Poller(store, tail, config.max_staleness))
    keep(resolver)  # first of all: a call that waits for a name keeps its lane from closing
    return Core(
        store=store,
        lifecycle=lifecycle,
        servicer=servicer,
        tail=tail,
        poller=poller,
        hub=hub,
        rehasher=rehasher,
        usage=usage,
        first_uses=first_uses,
        retention=retention,
        roster=roster,
        looking=looking,
        glance=glance,
        engine=engine,
        shedding=shedding,
        lanes=lanes,
        opened=opened.pop_all(),
    )


class Server:
    """A listening server. ``port`` is the actual port if the configuration said 0."""

    def __init__(self, core: Core, config: Config, services: Sequence[Service] = ()) -> None:
        """``services`` are offered in addition to our own."""
        auth.check_policy(SERVICE)
        self._core = core
        self._config = config
        self._services = services
        self._grace = config.shutdown_grace / SECOND
        self.failed = False
        """Whether the loop has ended by itself. Then no call is served, and the process must end and be restarted."""
        core.store.on_loss = self._lose
        self._patient = _begin_grpc()
        self._loop = LoopThread(self._fail)
        try:
            self.port = self._loop.run(self._listen())
        except BaseException:
            self._loop.close()
            self._patient.close()
            raise

    def start(self) -> None:
        """Start to serve."""
        self._core.start()
        self._loop.run(self._serve())

    def stop(self) -> None:
        """Refuse new calls, let those in flight finish within the grace period, and stop."""
        until = time.monotonic() + self._grace
        if not self.failed:
            self._loop.run(self._end())
        self._loop.close()
        self._patient.close()
        self._core.close(max(LAST, until - time.monotonic()))

    async def _listen(self) -> int:
        # Two servers on one port would each get half of the calls. Refuse the second, unless it is our own worker.
        reuse = ("grpc.so_reuseport", int(self._config.workers > 1))
        most = _room_for_connections()
        options = (*_OPTIONS, reuse, ("grpc.max_allowed_incoming_connections", most))
        self._health = Health(SERVICE.full_name, self._core.shedding)
        self._reflection: Reflection | None = None
        services: list[Service] = [self._core.engine, self._health, *self._services]
        if self._config.reflects:
            names = (SERVICE.full_name, health.SERVICE, reflecting.SERVICE)
            self._reflection = Reflection(names, self._core.shedding)
            services.append(self._reflection)
        self._accepting = Accepting(self._loop.loop, options, services, self._core.shedding.has_gone)
        tls = self._config.tls
        if self._config.workers == 1:
            demand_free(self._config.listen)
        port = self._accepting.listen(self._config.listen, _credentials(tls) if tls else None)
        if not port:
            raise CannotListen(self._config.listen)
        self._core.shedding.port, self._core.shedding.most = port, most
        return port

    async def _serve(self) -> None:
        self._core.hub.start(asyncio.get_running_loop())
        shedding = self._core.shedding
        policing = Policing(shedding, self._core.engine.awaited)
        vitals = Vitals(self._health, self._core.store, self._core.glance, self._core.looking)
        looking = (shedding.watch(), policing.watch(), vitals.watch(), vitals.watch_changes())
        going_on = (self._core.engine.sweep(), *looking)
        self._background = [asyncio.ensure_future(each) for each in going_on]
        await vitals.look()
        self._accepting.start()

    async def _end(self) -> None:
        for task in self._background:
            task.cancel()
        until = time.monotonic() + self._grace
        self._health.say_goodbye()
        self._core.hub.say_goodbye()
        await asyncio.sleep(_LAST_WORD)
        engine, shedding = self._core.engine, self._core.shedding
        engine.say_goodbye()
        shedding.say_goodbye()
        self._health.close()
        if self._reflection:
            self._reflection.say_goodbye()
        await self._core.hub.close()
        await Parting(shedding, self._accepting.under_way, lambda: engine.under_way).part(until)
        stopping = asyncio.ensure_future(self._accepting.stop(max(0.0, until - time.monotonic())))
        # Statuses may stay unread: only calls in flight are worth the grace period. A peer that does not even read that
        # its call was cancelled does not keep the process alive.
        quiet = 0.0
        while not stopping.done() and time.monotonic() < until + _LAST_WORD:
            await asyncio.wait((stopping,), timeout=_LAST_WORD)
            quiet = 0.0 if engine.under_way else quiet + _LAST_WORD
            if quiet >= _UNREAD:
                stopping = asyncio.ensure_future(self._accepting.stop(None))
                quiet = -math.inf

    def _fail(self) -> None:
        self.failed = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _lose(self, _: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    @property
    def lost(self) -> str:
        """Why the database is no longer usable, so that no server may continue with what it knows; usually empty."""
        return self._core.store.lost


def build_server(
    config: Config, clock: Clock = system_clock, board: Board | None = None, services: Sequence[Service] = ()
) -> Server:
    """Build a server that listens but does not serve yet, and also offers ``services``. Raises ``SetupError``."""
    core = build_core(config, clock, board)
    try:
        return Server(core, config, services)
    except BaseException:
        core.close()
        raise


def _begin_grpc() -> grpc.Channel:
    """Start gRPC on a thread of lower priority, and return what keeps gRPC running.

    That thread creates gRPC's own threads, which read what peers send, and they inherit its priority.
    """
    with ThreadPoolExecutor(1, initializer=stand_back, initargs=(_BEHIND,)) as thread:
        return thread.submit(grpc.insecure_channel, "localhost:0").result()  # it connects only when it is used


def _room_for_connections() -> int:
    """Raise the limit on open files as far as needed or allowed, and return how many connections that leaves."""
    wanted = shares.CONNECTIONS.most + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return shares.CONNECTIONS.most
    most = max(soft // 2, soft - _FILES)
    _log.warning("the limit on open files is low, which limits connections", open_files=soft, connections=most)
    return most


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    try:
        pair = (tls.key.read_bytes(), tls.cert.read_bytes())  # type: ignore[union-attr]  # Tls checks that both are there
        client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
        # gRPC would only report later that it cannot listen.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.client_ca)
        context.load_cert_chain(tls.cert, tls.key, password="")  # type: ignore[arg-type]  # likewise
    except ssl.SSLError:
        raise SetupError("a TLS file is not PEM, or the certificate and the private key do not match") from None
    except OSError as failure:
        raise SetupError(f"a TLS file cannot be read: {failure.filename}: {failure.strerror}") from None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)
