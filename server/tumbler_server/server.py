"""The only wiring: a configuration becomes a server."""

import functools
import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from tumbler.v1 import api_key_service_pb2
from tumbler_server.clock import Clock, system_clock, uptime
from tumbler_server.config import Config, Tls
from tumbler_server.errors import CannotListen, SetupError, StoreUnavailable
from tumbler_server.events.board import Board
from tumbler_server.events.follow import Following
from tumbler_server.events.retention import Retention
from tumbler_server.events.tail import Tail
from tumbler_server.events.watch import Hub
from tumbler_server.keys.cache import ProofCache
from tumbler_server.keys.claims import Claims
from tumbler_server.keys.deliveries import Deliveries
from tumbler_server.keys.ledger import Ledger
from tumbler_server.keys.lifecycle import Lifecycle
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.pepper import vault
from tumbler_server.keys.prover import BcryptPool
from tumbler_server.keys.resealer import Resealer
from tumbler_server.keys.rotation import Rotations
from tumbler_server.keys.secret import Hasher
from tumbler_server.keys.tokens import open_tokens
from tumbler_server.keys.trail import Trail
from tumbler_server.keys.usage import Usage
from tumbler_server.keys.verifier import Verifier
from tumbler_server.rpc import auth
from tumbler_server.rpc.open_services import OpenServices
from tumbler_server.rpc.servicer import Broken, Servicer
from tumbler_server.rpc.watch import Watching
from tumbler_server.store import migrations
from tumbler_server.store.database import POSTGRESQL, Store, open_store
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.targets import Judge, LookUp, Resolver

SERVICE = api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"]

_LAST_WORD = 0.25
"""Seconds for the word that the server ends to reach those who watch its health, before they are cut off."""

HEALTH_INTERVAL = 2.0
"""Seconds between two looks at the database."""

_OPTIONS = (
    # Clients that watch keep their connection alive with pings while nothing happens.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A key's record is at most some 100 KiB; nobody has reason to send more.
    ("grpc.max_receive_message_length", 1024 * 1024),
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Core:
    """The domain, wired to a database, and the servicer in front of it."""

    store: Store
    lifecycle: Lifecycle
    servicer: Servicer
    tail: Tail
    following: Following
    hub: Hub
    resealer: Resealer
    usage: Usage
    retention: Retention
    resolver: Resolver
    pool: BcryptPool

    def start(self) -> None:
        """Begin what goes on in the background."""
        self.following.start()
        self.hub.start()
        self.usage.start()
        self.retention.start()

    def close(self) -> None:
        """Finish what is under way, and let go of the database."""
        self.hub.close()
        self.resolver.close()
        self.following.close()
        self.pool.close()
        self.resealer.close()
        self.retention.close()
        self.usage.close()
        self.store.close()


def build_core(
    config: Config,
    clock: Clock = system_clock,
    board: Board | None = None,
    uptime: Clock = uptime,
    look_up: LookUp | None = None,
) -> Core:
    """Wire the domain. ``board`` is the one that the server's workers share, where there are several.

    Names are resolved by ``look_up`` where one is given, else as the system does. Raises ``SetupError`` where the
    installation is not ready for it.
    """
    store = open_store(config.installation.database_url, timeout=config.database_timeout, warm=config.threads)
    migrations.check(store)
    peppers = config.installation.peppers()
    if not peppers:
        _log.warning("there is no pepper file: each key costs a bcrypt run when a process first sees it")
    store.notifies = config.database_notify and store.dialect == POSTGRESQL
    hasher = Hasher(config.bcrypt_cost, peppers)
    cache = ProofCache(config.cache_size, config.cache_bytes)
    tail = Tail(store, cache, config.max_staleness, board, uptime)
    tokens = open_tokens(store)
    pool = BcryptPool(max(1, (os.cpu_count() or 1) // config.workers), most_waiting=max(1, config.threads // 2))
    resealer = Resealer(store, hasher)
    usage = Usage(store)
    claims = Claims(peppers)
    resolver = Resolver(look_up)
    endpoints = Endpoints(vault(peppers), Judge(config.webhook_rules, resolver), config.max_webhook_urls)
    ledger = Ledger(store, hasher, clock, tail.committed, config.max_project_keys)
    lifecycle = Lifecycle(ledger, config.default_prefix, config.min_rotation_interval, endpoints)
    rotations = Rotations(ledger, claims)
    verifier = Verifier(store, hasher, tail, cache, pool, resealer, usage, clock, config.stale_if_error)
    listing, trail = Listing(store, tokens, clock), Trail(store, tokens)
    hub = Hub(store, tail, clock, config.max_watch_streams, config.max_staleness, uptime)
    watching = Watching(hub, lifecycle, tokens, clock)
    deliveries = Deliveries(store, tokens, endpoints, clock)
    servicer = Servicer(verifier, lifecycle, rotations, listing, trail, tokens, watching, deliveries, config.cache_ttl)
    following = Following(store, tail, config.max_staleness)
    retention = Retention(store, clock, config.event_retention)
    return Core(store, lifecycle, servicer, tail, following, hub, resealer, usage, retention, resolver, pool)


class Server:
    """A server that is listening. ``port`` is the one it got where the configuration said 0."""

    def __init__(self, core: Core, config: Config) -> None:
        auth.check_policy(SERVICE)
        self._core = core
        self._grace = config.shutdown_grace / 1_000_000
        self._management = ThreadPoolExecutor(max(1, config.threads // 2), thread_name_prefix="management")
        self._batches = ThreadPoolExecutor(max(1, config.threads // 8), thread_name_prefix="batches")
        self._grpc = grpc.server(
            ThreadPoolExecutor(config.threads, thread_name_prefix="rpc"),
            handlers=[_handlers(core.servicer, self._management, self._batches)],
            # Two servers on one port would each serve half the calls: refuse the second, unless it is our own worker.
            options=(*_OPTIONS, ("grpc.so_reuseport", int(config.workers > 1))),
        )
        self._open = OpenServices(self._grpc, SERVICE.full_name, reflects=config.reflects)
        self.port = _listen(self._grpc, config)
        self._stopping = threading.Event()
        self._monitor = threading.Thread(target=self._watch_health, name="health", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._look()
        self._core.start()
        self._grpc.start()
        self._monitor.start()

    def stop(self) -> None:
        """Refuse new calls, let those under way finish within the grace, and end."""
        self._stopping.set()
        self._open.say_goodbye()
        self._core.hub.say_goodbye()
        stopped = self._grpc.stop(self._grace)
        stopped.wait(_LAST_WORD)
        self._open.cut()
        self._core.hub.close()
        stopped.wait()
        self._monitor.join()
        self._management.shutdown()
        self._batches.shutdown()
        self._core.close()

    def _watch_health(self) -> None:
        while not self._stopping.wait(HEALTH_INTERVAL):
            self._look()

    def _look(self) -> None:
        try:
            self._core.tail.catch_up()
        except StoreUnavailable:
            self._open.say_serving(False)
        else:
            self._open.say_serving(True)


def build_server(config: Config, clock: Clock = system_clock, board: Board | None = None) -> Server:
    """Build a server that listens and does not serve yet. Raises ``SetupError``."""
    core = build_core(config, clock, board)
    try:
        return Server(core, config)
    except BaseException:
        core.close()
        raise


def _handlers(
    servicer: Servicer, management: ThreadPoolExecutor, batches: ThreadPoolExecutor
) -> grpc.GenericRpcHandler:
    """Register the servicer as the generated code would, but with deserializers that do not answer INTERNAL.

    What does not verify runs on threads of its own: those who wait for the database's one writer take none from Verify.
    So do batches, on few: they are all work and hardly wait, and many at a time would only drive each other's data out
    of the processor's caches.
    """
    threads = {"Verify": None, "BatchVerify": batches}
    handlers = {}
    for method in SERVICE.methods:
        kind = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        request = getattr(api_key_service_pb2, method.input_type.name)
        response = getattr(api_key_service_pb2, method.output_type.name)
        behavior = getattr(servicer, method.name)
        as_bytes = getattr(behavior, "as_bytes", None)
        handlers[method.name] = kind(
            _run_on(
                threads.get(method.name, management), functools.partial(as_bytes, servicer) if as_bytes else behavior
            ),
            request_deserializer=_tolerant(request),
            # Verdicts, and a stream's messages, are made once for all who get the same, and come as bytes.
            response_serializer=None if as_bytes or method.server_streaming else response.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _run_on(threads: ThreadPoolExecutor | None, behavior: Any) -> Any:
    """Have gRPC run a method on these threads; without any, on the server's own."""
    if threads is None:
        return behavior
    # Wrapped, so that a stream's mark, that gRPC is to hold no thread for it, is not lost.
    run = functools.update_wrapper(functools.partial(behavior), behavior)
    run.experimental_thread_pool = threads  # type: ignore[attr-defined]
    return run


def _tolerant(message: Any) -> Any:
    def deserialize(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except Exception:
            # Whatever a parser makes of hostile bytes: it must not get away as INTERNAL.
            return Broken(message.DESCRIPTOR.full_name)

    return deserialize


def _listen(server: grpc.Server, config: Config) -> int:
    try:
        if config.tls:
            return int(server.add_secure_port(config.listen, _credentials(config.tls)))
        return int(server.add_insecure_port(config.listen))
    except RuntimeError:
        raise CannotListen(config.listen) from None


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    try:
        pair = (tls.key.read_bytes(), tls.cert.read_bytes())  # type: ignore[union-attr]  # Tls checks that both are there
        client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
        # gRPC would only say later that it cannot listen.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.client_ca)
        context.load_cert_chain(tls.cert, tls.key, password="")  # type: ignore[arg-type]
    except ssl.SSLError:
        raise SetupError("a TLS file is not PEM, or the certificate and the private key do not fit together") from None
    except OSError as failure:
        raise SetupError(f"a TLS file cannot be read: {failure.filename}: {failure.strerror}") from None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)
