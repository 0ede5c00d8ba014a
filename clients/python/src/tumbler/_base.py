"""The parts that the two verifiers share: everything except the calls."""

import logging
import os
import time
import weakref
from collections.abc import Iterable

import grpc

from tumbler._batcher import Batcher, Failure, Flight
from tumbler._cache import Answer, Cache, Clock, steady_clock
from tumbler._sessions import Sessions
from tumbler._settings import Settings
from tumbler._watcher import Watcher
from tumbler.decide import Code, Demand
from tumbler.errors import InvalidRequest, Unavailable
from tumbler.keyformat import MAX_LENGTH, is_well_formed
from tumbler.projects import AnyProject, ProjectId, projects_of
from tumbler.verification import Verification

_MIN_RECONNECT_INTERVAL = 10.0
"""Minimum seconds between two replacements of the channel, so that they do not burden a server that is only slow."""

LINGER = 1.0
"""Seconds that a replaced channel stays open after the deadline of its last call."""

_MALFORMED = Verification(Code.MALFORMED)
_CLOSED = "the verifier is closed"
_FORKED = "the verifier was made before this process was forked; make one in each process"


class BaseVerifier:
    """Options, cache, and what happens to a key before and after a call."""

    def __init__(
        self,
        target: str,
        *,
        api_key: str,
        project_id: ProjectId | AnyProject | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        insecure: bool = False,
        cache_size: int = 10_000,
        cache_bytes: int = 32 * 1024 * 1024,
        max_staleness: float = 15.0,
        heartbeat: float = 5.0,
        timeout: float = 2.0,
        watch: bool = True,
        fixed_ttl: float | None = None,
        logger: logging.Logger | None = None,
        clock: Clock = steady_clock,
    ) -> None:
        """Create a verifier. Durations are in seconds.

        Args:
            target: The server, ``HOST:PORT`` or any gRPC target.
            api_key: The verifier's own key. It needs the scope ``tumbler:keys:verify``.
            project_id: The project whose keys are accepted, or several. A key of another project is NOT_FOUND. Default:
                the project of ``api_key``. If that key sees all projects (it belongs to the reserved project
                ``tumbler``), you must name a project or pass `ANY_PROJECT`.
            credentials: TLS, ``grpc.ssl_channel_credentials()`` for example. Default: plaintext, which is refused
                unless the target is this machine.
            insecure: Allow plaintext to another machine.
            cache_size: Maximum number of cached keys. 0: no cache.
            cache_bytes: Maximum size of the cache. A key counts as the server's answer plus 1,024 bytes. 0: no cache.
            max_staleness: Maximum age of the instant that the stream's last heartbeat confirms. The cache does not
                answer beyond it. Also the maximum age of the server's answer to a call, counted from sending it.
            heartbeat: The longest silence of a healthy stream: 1 second to 1 hour, shorter than ``max_staleness``.
            timeout: The longest wait for the server in one ``verify``.
            watch: Follow the server's stream of changes. Without it nothing is cached, unless ``fixed_ttl`` is set.
            fixed_ttl: Cache for this long without the stream (``watch=False`` only). A revoked key may pass that long.
            logger: Receives reports of trouble with the stream. Default: the logger ``tumbler``. No key is ever logged.
            clock: Returns microseconds of a monotonic clock. For tests.

        Raises:
            ValueError: An option breaks its rule. The message names both.
            RuntimeError: gevent has patched threads, so gRPC would hang. The message says what to do.

        """
        self._settings = Settings(
            target,
            api_key,
            credentials,
            insecure,
            cache_size,
            cache_bytes,
            max_staleness,
            heartbeat,
            timeout,
            watch,
            fixed_ttl,
            logger or logging.getLogger("tumbler"),
            project_id,
        )
        self._clock = clock
        self._cache = Cache(self._settings, clock)
        self._batcher = Batcher(self._settings, self._cache, clock)
        self._watcher = Watcher(self._settings, self._cache, clock)
        self._sessions = Sessions(self._settings, self._cache, clock)
        self._cache.on_change = self._sessions.changed
        self._closed = False
        self._reconnected_at = -_MIN_RECONNECT_INTERVAL
        self._open()
        _living.add(self)

    def _open(self) -> None:
        """Prepare to make calls."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} of {self._settings.target}>"

    @property
    def remembered(self) -> int:
        """How many keys are cached at the moment."""
        return len(self._cache)

    def _verify_locally(self, key: str, demand: Demand) -> Verification | None:
        """Return the verdict if it needs no call, else None."""
        if len(key) > MAX_LENGTH or not key.isascii():
            return _MALFORMED
        found = self._cache.lookup(key, demand)
        if found is None and not is_well_formed(key):
            return _MALFORMED
        return found

    def _verdict_of(self, flight: Flight, demand: Demand, outcome: Answer | Failure) -> Verification | None:
        """Return the verdict that a flight brought.

        None: the flight failed because of another caller's demand, so this caller must ask again.

        Raises:
            TumblerError: The flight brought no verdict.

        """
        if isinstance(outcome, Answer):
            now = self._clock()
            if self._cache.is_too_old(outcome, now):  # this process may have stood still since the answer arrived
                raise Unavailable("the server's answer is too old")
            return outcome.verdict(demand, now, was_sent=demand == flight.demand)
        if outcome.kind is InvalidRequest and demand != flight.demand:
            return None
        raise outcome.kind(outcome.text)

    def _may_reconnect(self) -> bool:
        """Return whether to replace the channel, now that the server has been silent for too long.

        If the other end has stopped while its kernel still acknowledges packets, the connection looks healthy.
        """
        now = time.monotonic()
        if self._closed or now - self._reconnected_at < _MIN_RECONNECT_INTERVAL:
            return False
        self._reconnected_at = now
        return True

    def _late(self) -> Unavailable:
        return Unavailable(f"the server did not answer within {self._settings.timeout:g} s")

    def _shut(self) -> bool:
        """Empty the cache and fail all waiting callers. Return whether this is the first time, so more must close."""
        first, self._closed = not self._closed, True
        if first:
            self._cache.invalidate()
            self._batcher.close(_CLOSED)
            self._sessions.close(Unavailable(_CLOSED))
        return first

    def _abandon(self) -> None:
        # gRPC's channel does not work in a forked process. It cannot even be closed.
        self._closed = True
        self._cache.abandon()
        self._batcher.abandon(_FORKED)
        self._sessions.abandon(Unavailable(_FORKED))


def demand_of(
    required_scopes: Iterable[str],
    client_ip: str | None,
    environment_id: str | None,
    project_id: ProjectId | None = None,
) -> Demand:
    """Return what a caller demands of a key."""
    if isinstance(required_scopes, str):
        raise TypeError("required_scopes: must be a sequence of scopes, not one string")
    try:
        projects = () if project_id is None else projects_of(project_id)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    # Demand(...) would call a Python function and cost twice as much. Every verification runs this.
    return tuple.__new__(Demand, (projects, environment_id or "", tuple(required_scopes), client_ip or ""))


_living: "weakref.WeakSet[BaseVerifier]" = weakref.WeakSet()


def _after_fork() -> None:
    for verifier in list(_living):
        verifier._abandon()  # noqa: SLF001 - it belongs to this module, and is nothing for users to call


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
