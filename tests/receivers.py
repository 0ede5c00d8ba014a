"""Receivers of webhooks on loopback, good and bad, and the certificates that they show."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Behave = Callable[[socket.socket, threading.Event], None]
"""The behavior of a receiver on a connection. The event is set when the test is over."""

LONGEST = 60.0
"""Seconds after which a receiver gives up on a connection."""


class Receiver:
    """A receiver that accepts connections on 127.0.0.1, counts them, and runs ``behave`` on each.

    With ``tls``, it speaks TLS.
    """

    def __init__(self, behave: Behave, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self._behave = behave
        self._tls = tls
        self._over = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # Only shut down here. Each socket is closed by its own thread, since its descriptor may be reused by then.
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a receiver does not end"

    def _accept(self) -> None:
        with contextlib.suppress(OSError), self._listener:
            while not self._over.is_set():
                connection, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(LONGEST)
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_:
            open_.enter_context(connection)
            if self._tls:
                wrapped = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                connection = open_.enter_context(wrapped)
            self._open.append(connection)
            if self._over.is_set():
                return
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            self._behave(connection, self._over)


def read_request(connection: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """Read one request. Return its first line, its headers by lower-case name, and its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert len(headers) == len(lines), "a header came twice"
    while len(body) < int(headers.get("content-length", 0)):
        body += _some(connection)
    return first, headers, body


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectionError("the request is not complete")
    return data


def answer(status: str, *headers: str, body: bytes = b"") -> Behave:
    """Return a behavior that reads a request and answers it."""
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""])

    def behave(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(head.encode("ascii") + body)

    return behave


@contextlib.contextmanager
def full_backlog(host: str, port: int = 0) -> Iterator[int]:
    """Yield a port on which connection attempts hang: the listener accepts none, and its backlog is full."""
    with contextlib.ExitStack() as open_:
        listener = open_.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(8):
            waiting = open_.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


class Authority:
    """A certificate authority. ``file`` is its own certificate, for clients that trust it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Tumbler's tests")
        key = self._key.public_key()
        certificate = (
            _unsigned(self._name, self._name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / "authority.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context(self, *hosts: str, days: int = 1, self_signed: bool = False) -> ssl.SSLContext:
        """Return a server's TLS context, with a certificate for some hosts that expires ``days`` days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name("a receiver")
        certificate = (
            _unsigned(subject, subject if self_signed else self._name, key.public_key(), days)
            .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((key if self_signed else self._key).public_key()),
                critical=False,
            )
            .sign(key if self_signed else self._key, hashes.SHA256())
        )
        file = self._folder / f"{certificate.serial_number}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


_SIGNS = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int = 1
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), now - datetime.timedelta(days=30),
        now + datetime.timedelta(days=days),
    )  # fmt: skip
