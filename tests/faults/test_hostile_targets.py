"""Hostile webhook targets: none inside is reached, and none holds a sender for longer than the timeout."""

import contextlib
import itertools
import logging
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from tests.domain import judge
from tests.receivers import Authority, Behave, Receiver, answer, full_backlog, read_request
from tumbler_server.webhooks.post import LONGEST_BODY, HttpResponse, Poster, PostFailed
from tumbler_server.webhooks.targets import Refused, Resolver, TargetRules

HEADERS = {"webhook-id": "msg_1", "webhook-signature": "v1,c2lnbmF0dXJl"}

SHORT = 0.5
"""The timeout of posts that must run into it, in seconds."""

HOLD = 3.0
"""The timeout of posts to many receivers at once, in seconds."""

LONG = 30.0
"""The timeout of posts that must end before it, in seconds."""

MARGIN = 10.0
"""Seconds that a busy machine may take beyond the timeout."""

PUBLIC = TargetRules()
LOOPBACK = TargetRules(loopback=True)
NETWORK = TargetRules(networks=(IPv4Network("127.0.0.0/8"),))

BOTH = TargetRules(loopback=True, networks=NETWORK.networks)

INSIDE = "refused: must not lead to a private or special network"


class Names:
    """A look-up that returns one answer after the other, repeats the last one forever, and counts its calls."""

    def __init__(self, *answers: Iterable[str]) -> None:
        self.asked = 0
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))

    def __call__(self, _: str) -> Iterable[str]:
        self.asked += 1
        return next(self._answers)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that records the addresses to which this thread connects any socket."""
    addresses: list[Any] = []
    connect, here = socket.socket.connect, threading.get_ident()

    def recorded(self: socket.socket, address: Any) -> None:
        if threading.get_ident() == here:
            addresses.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", recorded)
    return addresses


@pytest.fixture
def sentinel() -> Iterator[Receiver]:
    """Yield an internal receiver that no connection may reach."""
    with Receiver(answer("200 OK")) as receiver:
        yield receiver
        assert receiver.connections == 0, "it was reached"


@pytest.fixture(scope="module", autouse=True)
def _system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make the system trust only one unused authority, since its hundred authorities are slow to load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(Authority(tmp_path_factory.mktemp("system")).file))
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("empty")))
        yield


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the authority that our posters trust."""
    return Authority(tmp_path_factory.mktemp("certificates"))


def post(poster: Poster, url: str, timeout: float = LONG, body: bytes = b"{}") -> HttpResponse | str:
    """Post, and return the response, or the reason why there is none. Assert that it ends by the timeout."""
    start = time.monotonic()
    try:
        return poster.post(url, body, HEADERS)
    except PostFailed as failed:
        return failed.reason
    finally:
        assert time.monotonic() - start < timeout + MARGIN


OTHER_FORMS = [
    # Numbers that some programs read as 127.0.0.1
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://127.0.0.01:{port}/",
    "http://127.0.0.1.:{port}0/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.255.255.254:{port}/",
    "http://127.0.0.1.5:{port}/",
    "http://256.0.0.1:{port}/",
    "http://4294967297:{port}/",
    "https://2130706433:{port}/",
    "https://0x7f000001:{port}/",
    "https://0177.0.0.1:{port}/",
    "https://127.1:{port}/",
    "https://0.0.0.0:{port}/",
    "https://127.0.0.2:{port}/",
    # IPv6 addresses that equal or embed it
    "http://[::]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[0:0:0:0:0:ffff:7f00:0001]:{port}/",
    "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[::1%lo]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[::1.]:{port}/",
    "http://[127.0.0.1]:{port}/",
    "http://::1:{port}/",
    "http://[v1.7f000001]:{port}/",
    "https://[::]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/",
    # URLs that programs read differently
    "http://hooks.example.com@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@hooks.example.com/",
    "http://user:password@127.0.0.1:{port}/",
    "http://@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@hooks.example.com/",
    "http://hooks.example.com\\@127.0.0.1:{port}/",
    "http://hooks.example.com#@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#.example.com/",
    "http://127.0.0.1:{port}/#",
    "http:/127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
    "http://127.0.0.1:{port}:443/",
    "http://127.0.0.1:+{port}/",
    "http://127.0.0.1:0{port}/",
    "http://127.0.0.1:/",
    "http://127.0.0.1: {port}/",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/ ",
    "\thttp://127.0.0.1:{port}/",
    "ht\ntp://127.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1\x00:{port}/",
    "http://127.0.0.1%00:{port}/",
    "http://127%2e0.0.1:{port}/",
    "http://%6cocalhost:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127.0.0.１:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://ⓛocalhost:{port}/",
    "http://localhost..:{port}/",
    "http://.localhost:{port}/",
    "http://local_host,:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: hooks.example.com",
    "http://127.0.0.1:{port}/?\r\n\r\nGET / HTTP/1.1",
    "https://127.0.0.1:{port}/\r\nX: y",
    # Names of this machine, which need no resolver, and other schemes
    "http://a.localhost:{port}/",
    "https://a.localhost:{port}/",
    "http://hooks.example.com:{port}/",
    "ftp://127.0.0.1:{port}/",
    "file://127.0.0.1:{port}/etc/passwd",
    "gopher://127.0.0.1:{port}/_",
    "ws://127.0.0.1:{port}/",
    "unix:///run/docker.sock",
    "https://",
    "https:///",
    "https://:{port}/",
    "",
]

PLAIN_FORMS = [
    "http://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://[::1]:{port}/",
    "https://[0:0:0:0:0:0:0:1]:{port}/",
    "http://localhost:{port}/",
    "https://localhost:{port}/",
    "https://LOCALHOST.:{port}/",
]
"""Targets that the operator may open, and has not."""

ADDRESSES = [
    # loopback, and this network
    "127.0.0.1", "127.0.0.53", "127.255.255.255", "::1", "0.0.0.0", "0.1.2.3", "::",  # noqa: S104
    # private
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fc00::1", "fd12:3456:789a::1", "fec0::1",
    # link-local
    "169.254.0.1", "fe80::1", "fe80::1%1", "fe80::a9fe:a9fe",
    # metadata of clouds
    "169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "192.0.0.192",
    "fd00:ec2::254", "fd20:ce::254",
    # IPv4 within IPv6: mapped, translated, compatible, NAT64, 6to4, Teredo, ISATAP
    "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::ffff:0:10.0.0.1", "::10.0.0.1", "::8.8.8.8",
    "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::", "2002:7f00:1::1",
    "2001:0:a9fe:a9fe::1", "2606:4700::5efe:a9fe:a9fe", "2606:4700::200:5efe:a00:1",
    # multicast and broadcast
    "224.0.0.1", "239.255.255.250", "255.255.255.255", "ff02::1", "ff0e::1",
    # documentation, benchmarks, the network's own services, and reserved addresses
    "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.88.99.1", "192.0.0.8", "240.0.0.1",
    "2001:db8::1", "3fff::1", "2001:10::1", "2001:20::1", "100::1", "5f00::1", "4000::1", "::ffff:0:0",
]  # fmt: skip
"""Addresses to which a hostile name may lead."""


def test_corpus() -> None:
    """The corpus has the promised size, without duplicates."""
    urls = [*OTHER_FORMS, *PLAIN_FORMS]
    assert len(set(urls)) == len(urls) > 60
    assert len(set(ADDRESSES)) == len(ADDRESSES) > 60


class TestForms:
    """URLs that lead inside by their form."""

    @pytest.mark.parametrize(
        ("url", "rules"),
        [(url, rules) for rules in (PUBLIC, LOOPBACK) for url in OTHER_FORMS] + [(url, PUBLIC) for url in PLAIN_FORMS],
        ids=itertools.count(),
    )
    def test_refused(self, url: str, rules: TargetRules, sentinel: Receiver, dialled: list[Any]) -> None:
        """The URL is refused at Create and at each send, before a name is looked up or a connection is made."""
        names = Names(["127.0.0.1"])
        url = url.format(port=sentinel.port)
        with pytest.raises(Refused):
            judge(url, rules, Resolver(names), LONG)
        reason = post(Poster(rules, Resolver(names)), url)
        assert isinstance(reason, str)
        assert reason.startswith("refused: must ")
        assert (names.asked, dialled) == (0, [])


class TestAddresses:
    """Names that lead inside."""

    @pytest.mark.parametrize("rules", [PUBLIC, LOOPBACK], ids=["public", "loopback"])
    @pytest.mark.parametrize("address", ADDRESSES)
    def test_refused(self, address: str, rules: TargetRules, sentinel: Receiver, dialled: list[Any]) -> None:
        """A name with such an address, alone or among good ones, is refused at Create and at each send."""
        url = f"https://hooks.example.com:{sentinel.port}/"
        for found in ([address], ["8.8.8.8", address], [address, "2606:4700::1"]):
            with pytest.raises(Refused):
                judge(url, rules, Resolver(Names(found)), LONG)
            assert post(Poster(rules, Resolver(Names(found))), url) == INSIDE
        assert dialled == []

    @pytest.mark.parametrize("address", ADDRESSES)
    def test_literal(self, address: str, sentinel: Receiver, dialled: list[Any]) -> None:
        """The literal address is refused as well, even if a proxy would dial it."""
        host = f"[{address}]" if ":" in address else address
        for rules, proxy in ((PUBLIC, ""), (TargetRules(proxied=True), f"http://127.0.0.1:{sentinel.port}")):
            reason = post(Poster(rules, Resolver(Names([address])), proxy), f"https://{host}/")
            assert isinstance(reason, str)
            assert reason.startswith("refused: must ")
        assert dialled == []


class TestRebinding:
    """Names that resolve to different addresses from one moment to the next."""

    def test_after_create(self, sentinel: Receiver, dialled: list[Any]) -> None:
        """A name that was accepted at Create is judged again at each send."""
        resolver = Resolver(Names(["8.8.8.8"], ["127.0.0.1"]))
        url = f"https://hooks.example.com:{sentinel.port}/"
        judge(url, PUBLIC, resolver, LONG)
        assert post(Poster(PUBLIC, resolver), url) == INSIDE
        assert dialled == []

    def test_within_a_post(self, dialled: list[Any]) -> None:
        """A post looks the name up once, and dials that answer: a second answer would never be judged."""
        names = Names(["127.0.0.1"], ["127.0.0.2"])
        with Receiver(closes) as receiver:
            assert post(Poster(NETWORK, Resolver(names)), f"https://hooks.test:{receiver.port}/") == NO_HANDSHAKE
            assert dialled == [("127.0.0.1", receiver.port)]
        assert names.asked == 1

    def test_each_post(self) -> None:
        """Each post looks the name up again."""
        names = Names([])
        poster = Poster(PUBLIC, Resolver(names))
        for _ in range(3):
            assert post(poster, "https://hooks.test/") == "the name cannot be resolved"
        assert names.asked == 3

    def test_hanging_look_up(self) -> None:
        """A look-up that hangs holds a post no longer than the timeout."""
        over = threading.Event()

        def look_up(name: str) -> list[str]:
            over.wait(60)
            return []

        reason = post(Poster(PUBLIC, Resolver(look_up), timeout=SHORT), "https://hooks.test/", SHORT)
        assert reason == "the name cannot be resolved"
        over.set()

    def test_slow_look_up(self) -> None:
        """The time of a look-up counts against the timeout of the post."""

        def look_up(name: str) -> list[str]:
            time.sleep(SHORT / 2)
            return ["127.0.0.1"]

        with Receiver(stalls) as receiver:
            url = f"https://hooks.test:{receiver.port}/"
            assert post(Poster(NETWORK, Resolver(look_up), timeout=SHORT), url, SHORT) == TIMED_OUT


# Behaviors of bad receivers


def stalls(connection: socket.socket, over: threading.Event) -> None:
    """Read everything, and never answer."""
    while connection.recv(65_536):
        pass


def deaf(connection: socket.socket, over: threading.Event) -> None:
    """Read nothing, and never answer."""
    over.wait(60)


def sends(*parts: bytes, then: bytes = b"", pause: float = 0.0) -> Behave:
    """Return a behavior that answers with some parts, and repeats ``then`` forever if it is given."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        for part in parts if not then else itertools.chain(parts, itertools.repeat(then)):
            connection.sendall(part)
            if over.wait(pause) if pause else over.is_set():
                break

    return behave


def closes(connection: socket.socket, over: threading.Event) -> None:
    """Close the connection at once."""


def resets(connection: socket.socket, over: threading.Event) -> None:
    """Reset the connection after the request."""
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


HELD = f"timed out after {HOLD:g} s"
TIMED_OUT = f"timed out after {SHORT:g} s"
NO_ANSWER = "no complete HTTP response"
TOO_LONG = "the response is too long"
NO_HANDSHAKE = "TLS failed: the handshake was aborted"
OK = b"HTTP/1.1 200 OK\r\n"
FOUND = HttpResponse(200, None)
DRIP = 0.02

HOLDING: dict[str, tuple[Behave, HttpResponse | str]] = {
    "never answers": (stalls, HELD),
    "never reads": (deaf, HELD),
    "stalls in the status line": (sends(b"HTTP/1.1 2", then=b"", pause=60), HELD),
    "status line a byte at a time": (sends(b"HTTP/1.1 200 ", then=b"O", pause=DRIP), HELD),
    "a header a byte at a time": (sends(OK + b"X: ", then=b"y", pause=DRIP), HELD),
    "a header at a time": (sends(OK, then=b"X: y\r\n", pause=DRIP), HELD),
    "an interim answer at a time": (sends(then=b"HTTP/1.1 100 Continue\r\n\r\n", pause=DRIP), HELD),
    "empty lines": (sends(then=b"\r\n", pause=DRIP), NO_ANSWER),
    "stalls in the body": (sends(OK + b"Content-Length: 9\r\n\r\n1", pause=60), FOUND),
    "a body a byte at a time": (sends(OK + b"Content-Length: 99999\r\n\r\n", then=b"x", pause=DRIP), FOUND),
    "a chunk at a time": (sends(OK + b"Transfer-Encoding: chunked\r\n\r\n", then=b"1\r\nx\r\n", pause=DRIP), FOUND),
    "a body until the end": (sends(OK + b"\r\n", then=b"x", pause=DRIP), FOUND),
    "trailers at a time": (
        sends(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", then=b"X: y\r\n", pause=DRIP),
        FOUND,
    ),
}
"""Behaviors that would hold a sender forever, with the outcome of the post at its timeout."""

FLOOD = b"x" * 16_384

FLOODING: dict[str, tuple[Behave, HttpResponse | str]] = {
    "endless status line": (sends(b"HTTP/1.1 200 ", then=FLOOD), NO_ANSWER),
    "endless header": (sends(OK + b"X: ", then=FLOOD), NO_ANSWER),
    "endless headers": (sends(OK, then=b"X: y\r\n" * 2_000), NO_ANSWER),
    "endless interim answers": (sends(then=b"HTTP/1.1 100 Continue\r\n\r\n" * 500), TOO_LONG),
    "endless early hints": (sends(then=b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" * 500), TOO_LONG),
    "endless body": (sends(OK + b"\r\n", then=FLOOD), FOUND),
    "body of 2^60 bytes": (sends(OK + b"Content-Length: 1152921504606846976\r\n\r\n", then=FLOOD), FOUND),
    "endless chunks": (sends(OK + b"Transfer-Encoding: chunked\r\n\r\n", then=b"4000\r\n" + FLOOD + b"\r\n"), FOUND),
    "endless small chunks": (sends(OK + b"Transfer-Encoding: chunked\r\n\r\n", then=b"1\r\nx\r\n" * 3_000), FOUND),
    "endless chunk extension": (sends(OK + b"Transfer-Encoding: chunked\r\n\r\n1;x=", then=FLOOD), FOUND),
    "one chunk of 2^60 bytes": (
        sends(OK + b"Transfer-Encoding: chunked\r\n\r\n1000000000000000\r\n", then=FLOOD),
        FOUND,
    ),
    "endless trailers": (
        sends(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", then=b"X: y\r\n" * 2_000),
        FOUND,
    ),
}
"""Behaviors that would fill the memory, with the outcome of the post at a limit."""

BROKEN_HTTP: dict[str, tuple[Behave, HttpResponse | str]] = {
    "closes at once": (closes, NO_ANSWER),
    "closes after the request": (sends(), NO_ANSWER),
    "closes in the headers": (sends(OK + b"X: y"), NO_ANSWER),
    "closes after an interim answer": (sends(b"HTTP/1.1 100 Continue\r\n\r\n"), NO_ANSWER),
    "closes in the body": (sends(OK + b"Content-Length: 99\r\n\r\nx"), FOUND),
    "resets": (resets, NO_ANSWER),
    "garbage": (sends(b"\x00\xff\x16\x03\x01" * 100), NO_ANSWER),
    "another protocol": (sends(b"220 mail.example.com ESMTP\r\n"), NO_ANSWER),
    "HTTP/0.9": (sends(b"<html></html>"), NO_ANSWER),
    "HTTP/2": (sends(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), NO_ANSWER),
    "status 99": (sends(b"HTTP/1.1 99 ?\r\n\r\n"), NO_ANSWER),
    "status 2000": (sends(b"HTTP/1.1 2000 OK\r\n\r\n"), NO_ANSWER),
    "switches protocols": (sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), NO_ANSWER),
    "two lengths": (sends(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"), NO_ANSWER),
    "a length of 5,000 digits": (sends(OK + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n"), NO_ANSWER),
    "a negative length": (sends(OK + b"Content-Length: -1\r\n\r\n"), NO_ANSWER),
    "a chunk that is no number": (sends(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), FOUND),
    "an encoding nobody knows": (sends(OK + b"Transfer-Encoding: zip\r\n\r\n"), NO_ANSWER),
    "a null byte in a header": (sends(OK + b"X: \x00\r\n\r\n"), NO_ANSWER),
    "answers twice": (sends(OK + b"Content-Length: 0\r\n\r\nHTTP/1.1 500 No\r\n\r\n"), FOUND),
}
"""Behaviors that are not HTTP, or incomplete HTTP, with the outcome of the post."""

MISBEHAVIOURS = {**HOLDING, **FLOODING, **BROKEN_HTTP}


@pytest.fixture(scope="module")
def outcomes(authority: Authority) -> dict[tuple[str, bool], HttpResponse | str]:
    """Return the outcome of a post to each bad receiver, with and without TLS. The posts run in parallel."""
    poster = Poster(BOTH, Resolver(Names(["127.0.0.1"])), ca_file=authority.file, timeout=HOLD)
    patient = Poster(BOTH, Resolver(Names(["127.0.0.1"])), ca_file=authority.file, timeout=LONG)
    tls = authority.context("hooks.test")

    def outcome(case: tuple[str, bool]) -> HttpResponse | str:
        how, by_tls = case
        with Receiver(MISBEHAVIOURS[how][0], tls if by_tls else None) as receiver:
            host = "https://hooks.test" if by_tls else "http://127.0.0.1"
            if how in HOLDING:
                return post(poster, f"{host}:{receiver.port}/", HOLD)
            return post(patient, f"{host}:{receiver.port}/")

    cases = list(itertools.product(MISBEHAVIOURS, [False, True]))
    with ThreadPoolExecutor(2 * len(HOLDING)) as threads:
        return dict(zip(cases, threads.map(outcome, cases), strict=True))


class TestReceivers:
    """Receivers at permitted addresses that misbehave."""

    @pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
    @pytest.mark.parametrize("how", MISBEHAVIOURS)
    def test_ends(self, how: str, tls: bool, outcomes: dict[tuple[str, bool], HttpResponse | str]) -> None:
        """A post ends by the timeout, with a reason in our own words. A status that has arrived counts."""
        assert outcomes[how, tls] == MISBEHAVIOURS[how][1]

    @pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
    @pytest.mark.parametrize("scheme", ["http", "https", ""])
    def test_redirects(self, status: int, scheme: str, sentinel: Receiver, dialled: list[Any]) -> None:
        """A redirect is only a status, and is not followed."""
        location = f"{scheme}://127.0.0.1:{sentinel.port}/" if scheme else f"//127.0.0.1:{sentinel.port}/"
        with Receiver(
            answer(f"{status} Elsewhere", f"Location: {location}", f"Refresh: 0; url={location}")
        ) as receiver:
            found = post(Poster(LOOPBACK, Resolver()), f"http://127.0.0.1:{receiver.port}/")
            assert found == HttpResponse(status, None)
            assert dialled == [("127.0.0.1", receiver.port)]

    def test_little_is_read(self) -> None:
        """A body is read only up to the limit. Then the connection is closed, before the timeout."""
        closed = threading.Event()

        def behave(connection: socket.socket, over: threading.Event) -> None:
            read_request(connection)
            connection.sendall(OK + b"Content-Length: 1000000\r\n\r\n" + b"x" * LONGEST_BODY)
            with contextlib.suppress(ConnectionError):
                stalls(connection, over)
            closed.set()

        with Receiver(behave) as receiver:
            start = time.monotonic()
            assert post(Poster(LOOPBACK, Resolver(), timeout=LONG), f"http://127.0.0.1:{receiver.port}/") == FOUND
            assert closed.wait(LONG)
            assert time.monotonic() - start < LONG

    @pytest.mark.parametrize("pace", [60, DRIP], ids=["takes nothing", "takes little at a time"])
    def test_takes_little(self, pace: float) -> None:
        """A post to a receiver that does not read a large webhook, or reads slowly, ends at the timeout."""

        def behave(connection: socket.socket, over: threading.Event) -> None:
            while not over.wait(pace):
                connection.recv(100_000)

        with Receiver(behave) as receiver:
            poster = Poster(LOOPBACK, Resolver(), timeout=SHORT)
            url = f"http://127.0.0.1:{receiver.port}/"
            assert post(poster, url, SHORT, b"x" * 64 * 1024 * 1024) == TIMED_OUT

    def test_never_accepts(self) -> None:
        """A post to a receiver with a full backlog ends at the timeout."""
        with full_backlog("127.0.0.1") as port:
            poster = Poster(LOOPBACK, Resolver(), timeout=SHORT)
            assert post(poster, f"http://127.0.0.1:{port}/", SHORT) == TIMED_OUT

    def test_nobody_there(self) -> None:
        """A post to a port without a receiver reports that there is no connection."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert post(Poster(LOOPBACK, Resolver()), f"http://127.0.0.1:{port}/") == "no connection"

    def test_nothing_is_quoted(self, caplog: pytest.LogCaptureFixture) -> None:
        """Neither a response nor our signature enters a log."""
        caplog.set_level(logging.DEBUG)
        with Receiver(answer("500 hunter2", "X: hunter2", body=b"hunter2")) as receiver:
            found = post(Poster(LOOPBACK, Resolver()), f"http://127.0.0.1:{receiver.port}/hunter3")
        assert found == HttpResponse(500, None)
        assert not {"hunter2", "hunter3", HEADERS["webhook-signature"]} & set(caplog.text.split())
        assert "hunter" not in caplog.text


def speaks(data: bytes, then: bytes = b"", pause: float = 0.0) -> Behave:
    """Return a behavior that reads the first bytes, whatever they are, and sends its own."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(data)
        while then and not over.wait(pause):
            connection.sendall(then)
        stalls(connection, over)

    return behave


BAD_TLS: dict[str, tuple[Behave, str]] = {
    "plain HTTP": (speaks(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "TLS failed: TLS 1.2 or newer could not be agreed on"),
    "garbage": (speaks(b"\xff" * 1_000), "TLS failed: TLS 1.2 or newer could not be agreed on"),
    "an alert": (speaks(b"\x15\x03\x03\x00\x02\x02\x28"), "TLS failed: TLS 1.2 or newer could not be agreed on"),
    "closes at once": (closes, NO_HANDSHAKE),
    "hangs": (stalls, TIMED_OUT),
    "deaf": (deaf, TIMED_OUT),
    "a byte at a time": (speaks(b"\x16\x03\x03\x40\x00", then=b"\x02", pause=DRIP), TIMED_OUT),
    "half a record": (speaks(b"\x16\x03\x03\x40\x00\x02\x00"), TIMED_OUT),
}
"""Behaviors that are not TLS, or an incomplete handshake, with the outcome of the post."""


class TestTls:
    """Receivers with bad TLS. None gets a byte of the webhook."""

    @staticmethod
    def found(authority: Authority, tls: ssl.SSLContext, host: str = "hooks.test") -> HttpResponse | str:
        """Post to a receiver with this TLS, and assert that it saw no request."""
        seen: list[bytes] = []

        def behave(connection: socket.socket, over: threading.Event) -> None:
            with contextlib.suppress(OSError):
                seen.append(connection.recv(65_536))

        with Receiver(behave, tls) as receiver:
            poster = Poster(NETWORK, Resolver(Names(["127.0.0.1"])), ca_file=authority.file)
            found = post(poster, f"https://{host}:{receiver.port}/")
        assert [data for data in seen if data] == []
        return found

    @pytest.mark.parametrize("how", BAD_TLS)
    def test_no_tls(self, how: str) -> None:
        """A post without a TLS handshake ends at once, or at the timeout."""
        behave, outcome = BAD_TLS[how]
        timeout = SHORT if outcome == TIMED_OUT else LONG
        with Receiver(behave) as receiver:
            poster = Poster(NETWORK, Resolver(Names(["127.0.0.1"])), timeout=timeout)
            assert post(poster, f"https://hooks.test:{receiver.port}/", timeout) == outcome

    def test_self_signed(self, authority: Authority) -> None:
        """A self-signed certificate is not accepted."""
        found = self.found(authority, authority.context("hooks.test", self_signed=True))
        assert found == "TLS failed: the certificate's issuer is not trusted"

    def test_other_authority(self, authority: Authority, tmp_path: Path) -> None:
        """A certificate from an untrusted authority is not accepted."""
        found = self.found(authority, Authority(tmp_path).context("hooks.test"))
        assert found == "TLS failed: the certificate's issuer is not trusted"

    @pytest.mark.parametrize("host", ["other.test", "hooks.test.other", "*.hooks.test", "127.0.0.1"])
    def test_other_name(self, authority: Authority, host: str) -> None:
        """A certificate for another name is not accepted."""
        assert self.found(authority, authority.context(host)) == "TLS failed: the certificate is for another name"

    def test_other_address(self, authority: Authority) -> None:
        """A certificate for a name is not accepted for its address."""
        found = self.found(authority, authority.context("hooks.test"), "127.0.0.1")
        assert found == "TLS failed: the certificate is for another address"

    def test_expired(self, authority: Authority) -> None:
        """A certificate that has expired is not accepted."""
        found = self.found(authority, authority.context("hooks.test", days=-1))
        assert found == "TLS failed: the certificate has expired"

    def test_old_version(self, authority: Authority) -> None:
        """TLS 1.1 is not used, even if the receiver offers nothing newer."""
        tls = authority.context("hooks.test")
        tls.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            tls.minimum_version = ssl.TLSVersion.TLSv1
            tls.maximum_version = ssl.TLSVersion.TLSv1_1
        assert self.found(authority, tls) == "TLS failed: TLS 1.2 or newer could not be agreed on"


PROXY_OUTCOMES: dict[str, tuple[Behave, str]] = {
    "forbids": (answer("403 hunter2"), "the proxy refused"),
    "wants a password": (answer("407 hunter2", 'Proxy-Authenticate: Basic realm="hunter2"'), "the proxy refused"),
    "redirects": (answer("302 Found", "Location: http://127.0.0.1/"), "the proxy refused"),
    "garbage": (sends(b"\x05\x00"), NO_ANSWER),
    "closes at once": (closes, NO_ANSWER),
    "hangs": (stalls, TIMED_OUT),
    "hangs in the tunnel": (sends(b"HTTP/1.1 200 OK\r\n\r\n", pause=60), TIMED_OUT),
    "no TLS in the tunnel": (
        sends(b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", pause=0.1),
        "TLS failed: TLS 1.2 or newer could not be agreed on",
    ),
}


class TestProxy:
    """Proxies that misbehave."""

    @pytest.mark.parametrize("how", PROXY_OUTCOMES)
    def test_misbehaves(self, how: str, dialled: list[Any]) -> None:
        """Whatever a proxy does, no other address is dialled, and the post ends by the timeout."""
        behave, outcome = PROXY_OUTCOMES[how]
        timeout = SHORT if outcome == TIMED_OUT else LONG
        with Receiver(behave) as proxy:
            poster = Poster(TargetRules(proxied=True), Resolver(), f"http://127.0.0.1:{proxy.port}", timeout=timeout)
            assert post(poster, "https://hooks.test/", timeout) == outcome
            assert dialled == [("127.0.0.1", proxy.port)]

    def test_not_there(self) -> None:
        """A proxy that is down, or whose name does not resolve, is reported as unreachable."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for names in (Names(["127.0.0.1"]), Names([])):
            poster = Poster(TargetRules(proxied=True), Resolver(names), f"http://proxy.test:{port}")
            assert post(poster, "https://hooks.test/") == "the proxy cannot be reached"


@pytest.mark.parametrize("behave", [stalls, closes], ids=["stalls", "closes"])
def test_nothing_is_left(behave: Callable[..., None]) -> None:
    """A failed post leaves no thread and no connection behind."""
    before = threading.active_count()
    with Receiver(behave) as receiver:
        for _ in range(3):
            post(Poster(LOOPBACK, Resolver(), timeout=0.05), f"http://127.0.0.1:{receiver.port}/", SHORT)
    assert threading.active_count() == before
