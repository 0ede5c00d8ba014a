"""A connection to a peer that may be hostile: only to judged addresses, and with one deadline, whatever the peer sends.

``httpcore`` implements the protocol and uses this as its network backend. It restarts its timeout at each operation.
Here one deadline covers all of them.
"""

import contextlib
import functools
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import httpcore

MOST_TRIED = 3
"""Most addresses of a name that are tried. Each gets a share of the time, so a dead one leaves some for the next."""

MOST_RECEIVED = 256 * 1024
"""Most bytes read from one connection: a handshake, headers, and the part of the body that is read, with room."""

_CHUNK = 16 * 1024

# OpenSSL's error numbers for rejected certificates: X509_V_ERR_… in its x509_vfy.h.
_CERTIFICATE = {
    9: "the certificate is not valid yet",
    10: "the certificate has expired",
    18: "the certificate's issuer is not trusted",
    19: "the certificate's issuer is not trusted",
    20: "the certificate's issuer is not trusted",
    21: "the certificate's issuer is not trusted",
    62: "the certificate is for another name",
    64: "the certificate is for another address",
}

T = TypeVar("T")


class PostFailed(Exception):
    """There is no response. ``reason`` says why, in our own words: it quotes nothing from the other side."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Deadline:
    """One deadline for a whole exchange."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout

    def left(self) -> float:
        """Return the seconds that are left, always more than 0. Raises ``PostFailed`` if none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> PostFailed:
        """Return the error to raise after the deadline."""
        return PostFailed(f"timed out after {self._timeout:g} s")


class Dialer(httpcore.NetworkBackend):
    """A network backend that connects to one of the given addresses, whatever host is requested, and resolves nothing.

    ``tls`` and ``name`` replace those of ``httpcore``, which sets options of its context at each connection. That is
    not safe for a context that several threads share. ``unreachable`` is the reason to give if no address answers.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        port: int,
        tls: ssl.SSLContext,
        name: str,
        deadline: Deadline,
        unreachable: str = "no connection",
    ) -> None:
        self._addresses = addresses[:MOST_TRIED]
        self._port = port
        self._tls = tls
        self._name = name
        self._deadline = deadline
        self._unreachable = unreachable
        self._sockets = contextlib.ExitStack()

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - a name, which may resolve to another address by now
        port: int,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers in its share of the time. Raises ``PostFailed``."""
        for waiting in range(len(self._addresses), 0, -1):
            share = self._deadline.left() / waiting
            try:
                return _Connection(
                    self._connected(self._addresses[-waiting], share), self._deadline, self._tls, self._name
                )
            except OSError:
                continue
        self._deadline.left()
        raise PostFailed(self._unreachable)

    def close(self) -> None:
        """Close all sockets that were opened."""
        self._sockets.close()

    def _connected(self, address: str, timeout: float) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        opened = self._sockets.enter_context(socket.socket(family, socket.SOCK_STREAM))
        opened.settimeout(timeout)
        opened.connect((address, self._port))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened


class _Connection(httpcore.NetworkStream):
    """A connected socket with a deadline and a limit on the bytes that it reads."""

    def __init__(self, connected: socket.socket, deadline: Deadline, tls: ssl.SSLContext, name: str) -> None:
        self._socket = connected
        self._deadline = deadline
        self._tls = tls
        self._name = name
        self._room = MOST_RECEIVED

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - it has its own deadline
        if not self._room:
            raise PostFailed("the response is too long")
        try:
            self._socket.settimeout(self._deadline.left())
            data = self._socket.recv(min(max_bytes, _CHUNK, self._room))
        except TimeoutError:
            raise self._deadline.passed() from None
        except OSError:
            raise httpcore.ReadError from None
        self._room -= len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        rest = memoryview(buffer)
        try:
            while rest:
                self._socket.settimeout(self._deadline.left())
                rest = rest[self._socket.send(rest) :]
        except TimeoutError:
            raise self._deadline.passed() from None
        except OSError:
            raise httpcore.WriteError from None  # httpcore then reads a response that may have come before

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,  # noqa: ARG002
        server_hostname: str | None = None,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        return _Tls(self, self._tls, self._name)


class _Tls(httpcore.NetworkStream):
    """TLS over a connection by memory buffers. On a socket, OpenSSL's read goes on for as long as data keeps coming."""

    def __init__(self, connection: _Connection, context: ssl.SSLContext, name: str) -> None:
        self._connection = connection
        self._received = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=name)
        try:
            self._run(self._tls.do_handshake)
        except httpcore.NetworkError:
            raise PostFailed("TLS failed: the handshake was aborted") from None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._run(functools.partial(self._tls.read, max_bytes))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        rest = memoryview(buffer)
        while rest:
            rest = rest[self._run(functools.partial(self._tls.write, rest)) :]

    def close(self) -> None:
        self._connection.close()

    def _run(self, step: Callable[[], T]) -> T:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                if data := self._connection.read(_CHUNK):
                    self._received.write(data)
                else:
                    self._received.write_eof()
            except ssl.SSLCertVerificationError as failure:
                why = _CERTIFICATE.get(failure.verify_code, "the certificate is not accepted")
                raise PostFailed(f"TLS failed: {why}") from None
            except ssl.SSLEOFError:
                raise httpcore.ReadError from None
            except ssl.SSLError:
                raise PostFailed("TLS failed: TLS 1.2 or newer could not be agreed on") from None
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if self._to_send.pending:
            self._connection.write(self._to_send.read())
