"""One POST to a URL that a user chose. The URL is judged again, and a deadline holds whatever the receiver does."""

import contextlib
import functools
import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote_to_bytes

import httpcore

from tumbler_server.clock import SECOND, Clock, system_clock
from tumbler_server.errors import SetupError
from tumbler_server.webhooks.network import Deadline, Dialer, PostFailed
from tumbler_server.webhooks.targets import Refused, Resolver, Target, TargetRules, Unresolvable, by_proxy, parse

__all__ = ["HttpResponse", "PostFailed", "Poster"]

TIMEOUT = 15.0
"""Seconds for the whole POST: name resolution, connection, TLS, request and response."""

LONGEST_BODY = 64 * 1024
"""Bytes of a response body that are read and discarded before the connection is closed."""

_BROKEN = (httpcore.RemoteProtocolError, httpcore.NetworkError)

_PROXY = re.compile(
    r"http://(?:(?P<user>[^:@/]*):(?P<password>[^@/]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})/?"
)
_SECONDS = re.compile(rb"[0-9]{1,10}")
_DATE = re.compile(rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT")


@dataclass(frozen=True)
class HttpResponse:
    """A receiver's response. ``retry_after`` is in microseconds from now; None if it is missing or invalid."""

    status: int
    retry_after: int | None


@dataclass(frozen=True)
class _Proxy:
    url: httpcore.URL
    host: str
    port: int
    auth: tuple[bytes, bytes] | None = field(repr=False)


class Poster:
    """A client that posts to URLs within ``rules``, with a new connection for each post. Safe for use by many threads.

    ``proxy`` is ``http://[user:password@]host:port``, percent-encoded, or empty. The environment's proxy is never used.
    The operator sets the proxy, so its own address is not judged. The certificates in ``ca_file`` are trusted in
    addition to the system's. ``timeout`` is in seconds. Raises ``SetupError`` for an unusable proxy or file.
    """

    def __init__(
        self,
        rules: TargetRules,
        resolver: Resolver,
        proxy: str = "",
        ca_file: Path | None = None,
        timeout: float = TIMEOUT,
        clock: Clock = system_clock,
    ) -> None:
        if rules.proxied != bool(proxy):
            raise ValueError("the rules must say whether there is a proxy")
        self._rules = rules
        self._resolver = resolver
        self._proxy = _parse_proxy(proxy) if proxy else None
        self._timeout = timeout
        self._clock = clock
        self._authorities = _read_authorities(ca_file) if ca_file else ""
        self._unused_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpcore asks for one; see Dialer
        self._closed = False
        # At its finest level httpcore would log responses.
        logging.getLogger("httpcore").setLevel(logging.INFO)

    def post(self, url: str, body: bytes, headers: Mapping[str, str], project_id: str = "") -> HttpResponse:
        """Post ``body`` once, for a project, and return the response, whatever its status. Redirects are not followed.

        The response counts as soon as its headers have arrived; an error in its body changes nothing. Raises
        ``PostFailed``, at the timeout at the latest.
        """
        deadline = Deadline(self._timeout)
        if self._closed:
            raise PostFailed("this server is stopping")
        try:
            target = parse(url, self._rules)
            dialer, pool = self._way(target, deadline, project_id)
        except Refused as broken:
            raise PostFailed(f"refused: {broken}") from None
        except Unresolvable:
            raise PostFailed("the name cannot be resolved") from None
        where = httpcore.URL(scheme=target.scheme, host=target.bracketed, port=target.port, target=target.path)
        sent = [("Connection", "close"), *headers.items()]
        try:
            with contextlib.closing(dialer), pool, pool.stream("POST", where, headers=sent, content=body) as response:
                answer = HttpResponse(response.status, _retry_after(response.headers, self._clock()))
                with contextlib.suppress(PostFailed, *_BROKEN):
                    _skim(response)
                return answer
        except httpcore.ProxyError:
            raise PostFailed("the proxy refused") from None
        except _BROKEN:
            raise PostFailed("no complete HTTP response") from None

    def close(self) -> None:
        """Refuse new posts. Posts in flight go on until their deadlines at most."""
        self._closed = True

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        # Lazily, at the first post: loading the system's authorities takes 50 ms.
        context = ssl.create_default_context()
        context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
        if self._authorities:
            context.load_verify_locations(cadata=self._authorities)
        return context

    def _way(self, target: Target, deadline: Deadline, project_id: str) -> tuple[Dialer, httpcore.ConnectionPool]:
        if self._proxy is None or not by_proxy(target, self._rules):
            addresses = self._resolver.addresses(target, self._rules, deadline.left(), project_id)
            dialer = Dialer(addresses, target.port, self._tls, target.host, deadline)
            return dialer, httpcore.ConnectionPool(self._unused_tls, network_backend=dialer)
        unreachable = "the proxy cannot be reached"
        try:
            addresses = self._resolver.unjudged(self._proxy.host, deadline.left())
        except Unresolvable:
            raise PostFailed(unreachable) from None
        dialer = Dialer(addresses, self._proxy.port, self._tls, target.host, deadline, unreachable)
        return dialer, httpcore.HTTPProxy(
            self._proxy.url, self._proxy.auth, ssl_context=self._unused_tls, network_backend=dialer
        )


def _read_authorities(file: Path) -> str:
    try:
        text = file.read_text("ascii", errors="ignore")  # only comments are not ASCII
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (OSError, ValueError):  # SSLError is an OSError
        raise SetupError("--webhook-ca-file cannot be read, or holds no certificates in PEM") from None
    return text


def _parse_proxy(text: str) -> _Proxy:
    parts = _PROXY.fullmatch(text)
    if not parts or not 0 < int(parts["port"]) <= 65_535:
        raise SetupError("--webhook-proxy must be http://[user:password@]host:port")
    host, port = parts["host"], int(parts["port"])
    auth = (unquote_to_bytes(parts["user"]), unquote_to_bytes(parts["password"])) if parts["user"] is not None else None
    return _Proxy(httpcore.URL(scheme="http", host=host, port=port, target="/"), host.strip("[]"), port, auth)


def _skim(response: httpcore.Response) -> None:
    room = LONGEST_BODY
    for chunk in response.iter_stream():
        room -= len(chunk)
        if room <= 0:
            break


def _retry_after(headers: Sequence[tuple[bytes, bytes]], now: int) -> int | None:
    value = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    if _SECONDS.fullmatch(value):
        return int(value) * SECOND
    if not _DATE.fullmatch(value):
        return None
    try:
        wait = int(parsedate_to_datetime(value.decode("ascii")).timestamp()) * SECOND - now
    except (ValueError, TypeError):  # such as February 31
        return None
    return wait if wait >= 0 else None
