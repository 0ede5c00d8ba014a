"""Webhooks that arrive, and how their answers are read."""

import contextlib
import logging
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from tests.harness import FrozenClock
from tests.receivers import Authority, Receiver, answer, full_backlog, read_request
from tumbler_server.clock import DAY, SECOND
from tumbler_server.errors import SetupError
from tumbler_server.webhooks.network import MOST_TRIED
from tumbler_server.webhooks.post import HttpResponse, Poster, PostFailed
from tumbler_server.webhooks.targets import Resolver, TargetRules

NETWORK = TargetRules(networks=(IPv4Network("127.0.0.0/8"),))
LOOPBACK = TargetRules(loopback=True)

BODY = b'{"type": "key.rotated"}'
HEADERS = {"content-type": "application/json", "webhook-id": "msg_1"}


@pytest.fixture(scope="module", autouse=True)
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """Yield the CA that posters are given; the system's store trusts only another one."""
    folder = tmp_path_factory.mktemp("certificates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(Authority(tmp_path_factory.mktemp("system")).file))
        patch.setenv("SSL_CERT_DIR", str(folder))
        yield Authority(folder)


class Inbox:
    """Answers every request, and records it and the SNI names."""

    def __init__(self, status: str = "204 No Content", *headers: str) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.names: list[str | None] = []
        self._answer = f"HTTP/1.1 {status}\r\n{''.join(f'{header}{chr(13)}{chr(10)}' for header in headers)}\r\n"

    def __call__(self, connection: socket.socket, _over: threading.Event) -> None:
        self.requests.append(read_request(connection))
        connection.sendall(self._answer.encode("ascii"))

    def named(self, tls: ssl.SSLContext) -> ssl.SSLContext:
        """Return a server's TLS context that records the names."""
        tls.sni_callback = lambda _socket, name, _context: self.names.append(name)
        return tls


def resolver(*addresses: str) -> Resolver:
    """Return a resolver that resolves every name to these addresses."""
    return Resolver(lambda _: addresses)


class TestPost:
    """A successful post."""

    def test_by_name(self, authority: Authority) -> None:
        """The connection goes to the address; SNI, the certificate and the Host header have the URL's host."""
        inbox = Inbox("202 Accepted", "Retry-After: 120", "Set-Cookie: a=b")
        poster = Poster(NETWORK, resolver("127.0.0.1"), ca_file=authority.file)
        with Receiver(inbox, inbox.named(authority.context("hooks.test"))) as receiver:
            for _ in range(2):
                found = poster.post(f"https://Hooks.Test:{receiver.port}/a/b?c=d%20e", BODY, HEADERS)
                assert found == HttpResponse(202, 120 * SECOND)
            assert receiver.connections == 2
        assert inbox.names == ["hooks.test"] * 2
        expected = {
            **HEADERS,
            "host": f"hooks.test:{receiver.port}",
            "connection": "close",
            "content-length": str(len(BODY)),
        }
        assert inbox.requests == [("POST /a/b?c=d%20e HTTP/1.1", expected, BODY)] * 2

    def test_by_address(self, authority: Authority) -> None:
        """For an IP address there is no SNI, and the certificate must contain the address."""
        inbox = Inbox()
        with Receiver(inbox, inbox.named(authority.context("127.0.0.1"))) as receiver:
            poster = Poster(NETWORK, Resolver(), ca_file=authority.file)
            assert poster.post(f"https://127.0.0.1:{receiver.port}/", BODY, {}).status == 204
        assert inbox.names == [None]

    def test_ca_file_with_comments(self, authority: Authority, tmp_path: Path) -> None:
        """Text between the CA file's certificates is ignored, in any language."""
        file = tmp_path / "ca.pem"
        certificates = [Authority(tmp_path).file.read_text(), authority.file.read_text()]
        file.write_text("# Zertifizierungsstelle für Prüfungen\n".join(["", *certificates]), encoding="utf-8")
        with Receiver(Inbox(), authority.context("hooks.test")) as receiver:
            poster = Poster(NETWORK, resolver("127.0.0.1"), ca_file=file)
            assert poster.post(f"https://hooks.test:{receiver.port}/", BODY, {}).status == 204

    def test_ca_file_is_needed(self, authority: Authority) -> None:
        """Without the CA file the same receiver is not trusted."""
        with (
            Receiver(Inbox(), authority.context("hooks.test")) as receiver,
            pytest.raises(PostFailed, match=r"^TLS failed: the certificate's issuer is not trusted$"),
        ):
            Poster(NETWORK, resolver("127.0.0.1")).post(f"https://hooks.test:{receiver.port}/", BODY, {})

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_plain(self, host: str) -> None:
        """With ``loopback``, plain http to this machine is sent."""
        with Receiver(Inbox()) as receiver:
            poster = Poster(LOOPBACK, resolver("127.0.0.1"))
            assert poster.post(f"http://{host}:{receiver.port}/", BODY, {}) == HttpResponse(204, None)

    def test_next_address(self) -> None:
        """If an address refuses the connection, the next is tried."""
        with Receiver(Inbox()) as receiver:
            poster = Poster(LOOPBACK, resolver("::1", "127.0.0.1"))
            assert poster.post(f"http://localhost:{receiver.port}/", BODY, {}).status == 204

    def test_dead_address(self, authority: Authority) -> None:
        """A silent address gets only a share of the time, and the next is tried."""
        tls = authority.context("hooks.test")
        with Receiver(Inbox(), tls) as receiver, full_backlog("127.0.0.2", receiver.port):
            poster = Poster(NETWORK, resolver("127.0.0.2", "127.0.0.1"), ca_file=authority.file, timeout=2.0)
            assert poster.post(f"https://hooks.test:{receiver.port}/", BODY, {}).status == 204

    def test_few_addresses(self) -> None:
        """At most MOST_TRIED addresses are tried."""
        dead = [f"127.0.0.{last}" for last in range(2, 2 + MOST_TRIED)]
        with Receiver(Inbox()) as receiver:
            poster = Poster(NETWORK, resolver(*dead, "127.0.0.1"))
            with pytest.raises(PostFailed, match=r"^no connection$"):
                poster.post(f"https://hooks.test:{receiver.port}/", BODY, {})
            assert receiver.connections == 0

    def test_early_answer(self) -> None:
        """An answer sent before the receiver has read the body counts."""

        def behave(connection: socket.socket, over: threading.Event) -> None:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass

        with Receiver(behave) as receiver:
            found = Poster(LOOPBACK, Resolver()).post(f"http://127.0.0.1:{receiver.port}/", b"x" * 1_000_000, {})
        assert found.status == 413

    def test_many_threads(self, authority: Authority) -> None:
        """One poster serves many threads."""
        poster = Poster(NETWORK, resolver("127.0.0.1"), ca_file=authority.file)
        with (
            Receiver(Inbox(), authority.context("hooks.test")) as receiver,
            ThreadPoolExecutor(8) as threads,
        ):
            url = f"https://hooks.test:{receiver.port}/"
            found = list(threads.map(lambda _: poster.post(url, BODY, HEADERS).status, range(40)))
        assert found == [204] * 40

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Proxies in the environment are ignored."""
        with Receiver(answer("500 No")) as proxy, Receiver(Inbox()) as receiver:
            for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            poster = Poster(LOOPBACK, Resolver())
            assert poster.post(f"http://127.0.0.1:{receiver.port}/", BODY, {}).status == 204
            assert proxy.connections == 0

    def test_closed(self) -> None:
        """A closed poster sends nothing."""
        with Receiver(Inbox()) as receiver:
            poster = Poster(LOOPBACK, Resolver())
            poster.close()
            with pytest.raises(PostFailed, match=r"^this server is stopping$"):
                poster.post(f"http://127.0.0.1:{receiver.port}/", BODY, {})
            assert receiver.connections == 0


NOW = 1_893_456_000 * SECOND  # Tue, 01 Jan 2030 00:00:00 GMT

RETRY_AFTER = {
    "0": 0,
    "90": 90 * SECOND,
    "0090": 90 * SECOND,
    "9999999999": 9_999_999_999 * SECOND,
    "99999999999": None,
    "-1": None,
    "1.5": None,
    "+1": None,
    "1e3": None,
    "": None,
    "soon": None,
    "Tue, 01 Jan 2030 00:01:00 GMT": 60 * SECOND,
    "Wed, 02 Jan 2030 00:00:00 GMT": DAY,
    "Tue, 01 Jan 2030 00:00:00 GMT": 0,
    "Mon, 31 Dec 2029 23:59:59 GMT": None,
    "Sun, 31 Feb 2030 00:00:00 GMT": None,
    "Tue, 01 Foo 2030 00:00:00 GMT": None,
    "Tue, 01 Jan 2030 99:99:99 GMT": None,
    "Sat, 01 Jan 0000 00:00:00 GMT": None,
    "Tue, 01 Jan 2030 00:01:00 +0000": None,
    "2030-01-01T00:01:00Z": None,
}


@pytest.mark.parametrize("value", RETRY_AFTER)
def test_retry_after(value: str) -> None:
    """Retry-After is read as seconds or an HTTP date (RFC 9110, 10.2.3); past dates and other values are ignored."""
    with Receiver(Inbox("503 Later", f"retry-AFTER: {value}", "Retry-After: 7")) as receiver:
        poster = Poster(LOOPBACK, Resolver(), clock=FrozenClock(NOW))
        found = poster.post(f"http://127.0.0.1:{receiver.port}/", BODY, {})
    assert found == HttpResponse(503, RETRY_AFTER[value])


class Tunnel:
    """A proxy that connects every host to one port of this machine, and records the requests."""

    def __init__(self, port: int) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._port = port

    def __call__(self, connection: socket.socket, _over: threading.Event) -> None:
        self.requests.append(read_request(connection))
        with socket.create_connection(("127.0.0.1", self._port)) as onward:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self._copy, args=(onward, connection), daemon=True)
            back.start()
            self._copy(connection, onward)
            back.join()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class TestProxy:
    """Posts through an operator's proxy."""

    RULES = TargetRules(proxied=True)

    @pytest.mark.parametrize(
        ("url", "authority_form", "host", "sni"),
        [
            ("https://hooks.test/a", "hooks.test:443", "hooks.test", "hooks.test"),
            ("https://hooks.test:8443/a", "hooks.test:8443", "hooks.test:8443", "hooks.test"),
            ("https://[2606:4700::1]/a", "[2606:4700::1]:443", "[2606:4700::1]", None),
        ],
    )
    def test_tunnel(self, authority: Authority, url: str, authority_form: str, host: str, sni: str | None) -> None:
        """The proxy only sees the host; the receiver gets TLS and the Host header as without a proxy."""
        inbox = Inbox()
        tls = inbox.named(authority.context("hooks.test", "2606:4700::1"))
        with Receiver(inbox, tls) as receiver, Receiver(tunnel := Tunnel(receiver.port)) as proxy:
            poster = Poster(self.RULES, resolver("127.0.0.1"), f"http://proxy.test:{proxy.port}", authority.file)
            assert poster.post(url, BODY, HEADERS).status == 204
        assert [first for first, _, _ in tunnel.requests] == [f"CONNECT {authority_form} HTTP/1.1"]
        assert set(tunnel.requests[0][1]) == {"host", "accept"}
        assert inbox.names == [sni]
        assert [(first, headers["host"], body) for first, headers, body in inbox.requests] == [
            ("POST /a HTTP/1.1", host, BODY)
        ]

    def test_password(self, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
        """Only the proxy gets the operator's password: not the receiver, a log or a repr."""
        caplog.set_level(logging.DEBUG)
        inbox = Inbox()
        with (
            Receiver(inbox, authority.context("hooks.test")) as receiver,
            Receiver(tunnel := Tunnel(receiver.port)) as proxy,
        ):
            url = f"http://user:p%40ss%C3%A9@127.0.0.1:{proxy.port}"
            poster = Poster(self.RULES, Resolver(), url, authority.file)
            poster.post("https://hooks.test/", BODY, HEADERS)
        encoded = b64encode("user:p@ssé".encode()).decode()
        assert tunnel.requests[0][1]["proxy-authorization"] == f"Basic {encoded}"
        assert "proxy-authorization" not in inbox.requests[0][1]
        shown = caplog.text + repr(poster) + repr(vars(poster))
        assert [secret for secret in ("p@ss", "p%40ss", encoded) if secret in shown] == []

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_local(self, host: str) -> None:
        """Posts to this machine bypass the proxy, if loopback is allowed."""
        with Receiver(answer("500 No")) as proxy, Receiver(Inbox()) as receiver:
            url = f"http://127.0.0.1:{proxy.port}"
            poster = Poster(replace(self.RULES, loopback=True), resolver("127.0.0.1"), url)
            assert poster.post(f"http://{host}:{receiver.port}/", BODY, {}).status == 204
            assert proxy.connections == 0


class TestSetup:
    """Unusable settings."""

    @pytest.mark.parametrize(
        "proxy",
        [
            "proxy.test:3128",
            "http://proxy.test",
            "https://proxy.test:3128",
            "socks5://proxy.test:1080",
            "http://hunter2@proxy.test:3128",
            "http://proxy.test:0",
            "http://proxy.test:65536",
            "http://proxy.test:3128/path",
            "http://user:hunter2@:3128",
        ],
    )
    def test_proxy(self, proxy: str) -> None:
        """A proxy must have the documented form, and the error does not quote it, because it may contain a password."""
        with pytest.raises(SetupError, match=r"^--webhook-proxy must be http://\[") as refused:
            Poster(TargetRules(proxied=True), Resolver(), proxy)
        assert "hunter2" not in str(refused.value)

    @pytest.mark.parametrize(("proxied", "proxy"), [(True, ""), (False, "http://proxy.test:3128")])
    def test_half(self, proxied: bool, proxy: str) -> None:
        """Rules that do not match the proxy setting raise ValueError: otherwise no side would check names."""
        with pytest.raises(ValueError, match=r"^the rules must say whether there is a proxy$"):
            Poster(TargetRules(proxied=proxied), Resolver(), proxy)

    @pytest.mark.parametrize("content", [None, "", "no certificate"])
    def test_ca_file(self, content: str | None, tmp_path: Path) -> None:
        """A CA file that is missing or has no certificates is refused at once."""
        file = tmp_path / "ca.pem"
        if content is not None:
            file.write_text(content)
        with pytest.raises(SetupError, match=r"^--webhook-ca-file cannot be read"):
            Poster(TargetRules(), Resolver(), ca_file=file)
