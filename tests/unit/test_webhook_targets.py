"""Which URLs and addresses a webhook may go to."""

import ipaddress
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from tests.domain import judge
from tests.harness import FrozenClock
from tumbler_server.clock import SECOND
from tumbler_server.errors import Overloaded
from tumbler_server.webhooks.targets import (
    LONGEST,
    MOST_REMEMBERED,
    REMEMBERED,
    Judge,
    Refused,
    Resolver,
    Target,
    TargetRules,
    Unresolvable,
    parse,
    permitted,
)

PATIENCE = 30.0
"""How long a test waits before it fails, in seconds."""

PUBLIC = TargetRules()
LOOPBACK = TargetRules(loopback=True)
PROXIED = TargetRules(proxied=True)

HOOK = parse("https://hooks.example.com/", PUBLIC)

INSIDE = "must not lead to a private or special network"


def resolver(*addresses: str) -> Resolver:
    """Return a resolver that resolves every name to these addresses."""
    return Resolver(lambda _: addresses)


TAKEN_APART = {
    "https://hooks.example.com": ("https", "hooks.example.com", 443, "/"),
    "HTTPS://Hooks.Example.COM./A?b=C": ("https", "hooks.example.com", 443, "/A?b=C"),
    "https://hooks.example.com:8443/a/b?c=d/e?f": ("https", "hooks.example.com", 8443, "/a/b?c=d/e?f"),
    "https://hooks.example.com?a=b": ("https", "hooks.example.com", 443, "/?a=b"),
    "https://a_b.xn--bcher-kva.example:65535/": ("https", "a_b.xn--bcher-kva.example", 65_535, "/"),
    "https://8.8.8.8:1/": ("https", "8.8.8.8", 1, "/"),
    "https://[2606:4700:0:0::0001]/%20": ("https", "2606:4700::1", 443, "/%20"),
    "https://1e100.example/": ("https", "1e100.example", 443, "/"),
}

REFUSED = {
    "https://hooks.example.com/" + "a" * LONGEST: "must be at most 2,048 characters",
    "https://bücher.example/": "must be ASCII: write a name in its xn-- form, everything else as %XX",
    "https://hooks.example.com/#": "must have no fragment",
    "https://hooks.example.com/a b": "must have only characters of RFC 3986: write others as %XX",
    "https://user@hooks.example.com/": "must have no user name or password",
    "hooks.example.com": "must be a URL like https://hooks.example.com/path",
    "ftp://hooks.example.com/": "must be https",
    "http://hooks.example.com/": "must be https",
    "https://hooks.example.com:65536/": "must have no port, or one from 1 to 65535",
    "https://127.1/": "must have a DNS name or an IP address in its usual form as its host",
    "https://10.0.0.1/": INSIDE,
}


class TestParse:
    """Checks on a URL that need no DNS."""

    @pytest.mark.parametrize("url", TAKEN_APART)
    def test_taken_apart(self, url: str) -> None:
        """A URL is split into its parts: the host is normalized, and the path is unchanged."""
        assert parse(url, PUBLIC) == Target(*TAKEN_APART[url])

    @pytest.mark.parametrize(("url", "rule"), REFUSED.items(), ids=range(len(REFUSED)))
    def test_refused(self, url: str, rule: str) -> None:
        """The error names the violated rule, and contains nothing of the URL."""
        with pytest.raises(Refused) as refused:
            parse(url, PUBLIC)
        assert str(refused.value) == rule

    def test_longest(self) -> None:
        """A URL may have up to 2,048 characters."""
        url = "https://hooks.example.com/"
        assert parse(url.ljust(LONGEST, "a"), PUBLIC)

    @pytest.mark.parametrize(("length", "accepted"), [(63, True), (64, False)], ids=["63 characters", "64 characters"])
    def test_label(self, length: int, accepted: bool) -> None:
        """A label of a name has at most 63 characters."""
        assert is_accepted(f"https://{'a' * length}.example/", PUBLIC) is accepted

    @pytest.mark.parametrize(
        ("length", "accepted"), [(253, True), (254, False)], ids=["253 characters", "254 characters"]
    )
    def test_name(self, length: int, accepted: bool) -> None:
        """A name has at most 253 characters."""
        assert is_accepted(f"https://{'a.' * 120}{'a' * (length - 240)}/", PUBLIC) is accepted

    def test_secret_in_path(self) -> None:
        """A target's repr does not contain its path, because many receivers put secrets there."""
        assert "hunter2" not in repr(parse("https://hooks.example.com/hunter2", PUBLIC))


def is_accepted(url: str, rules: TargetRules) -> bool:
    """Return whether a URL is accepted."""
    try:
        parse(url, rules)
    except Refused:
        return False
    return True


class TestLoopback:
    """What ``loopback`` allows."""

    @pytest.mark.parametrize("scheme", ["http", "https"])
    @pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[0:0::0:1]", "localhost", "LOCALHOST."])
    def test_opens(self, scheme: str, host: str) -> None:
        """``loopback`` allows both schemes for the three spellings of this machine; without it, none is allowed."""
        url = f"{scheme}://{host}:8080/"
        assert (is_accepted(url, LOOPBACK), is_accepted(url, PUBLIC)) == (True, False)

    @pytest.mark.parametrize(
        "host", ["127.0.0.2", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "a.localhost", "10.0.0.1"]
    )
    def test_nothing_else(self, host: str) -> None:
        """``loopback`` allows no other host, by either scheme."""
        assert not is_accepted(f"http://{host}/", LOOPBACK)
        assert not is_accepted(f"https://{host}/", LOOPBACK)

    @pytest.mark.parametrize(
        ("host", "address", "answer"),
        [
            ("localhost", "127.0.0.1", True),
            ("localhost", "::1", True),
            ("localhost", "127.0.0.2", False),
            ("localhost", "8.8.8.8", False),
            ("hooks.example.com", "127.0.0.1", False),
            ("hooks.example.com", "::1", False),
        ],
    )
    def test_addresses(self, host: str, address: str, answer: bool) -> None:
        """`localhost` may resolve to 127.0.0.1 or ::1 and nothing else, and no other name may resolve to these."""
        assert permitted(address, Target("https", host, 443, "/"), LOOPBACK) is answer

    def test_http_elsewhere(self) -> None:
        """Plain http only goes to loopback addresses, however the target was made."""
        assert not permitted("8.8.8.8", Target("http", "hooks.example.com", 80, "/"), LOOPBACK)


class TestHosts:
    """What ``hosts`` permits."""

    RULES = TargetRules(hosts=("hooks.example.com", "*.Example.org", "10.0.0.1"))

    @pytest.mark.parametrize(
        ("host", "accepted"),
        [
            ("hooks.example.com", True),
            ("HOOKS.example.com.", True),
            ("example.com", False),
            ("a.hooks.example.com", False),
            ("a.example.org", True),
            ("a.b.example.org", True),
            ("example.org", False),
            ("badexample.org", False),
            ("8.8.8.8", False),
            ("10.0.0.1", False),
        ],
    )
    def test_hosts(self, host: str, accepted: bool) -> None:
        """Only the listed hosts are accepted, and listing a host does not lift any other rule."""
        assert is_accepted(f"https://{host}/", self.RULES) is accepted


class TestNetworks:
    """What ``networks`` allows."""

    RULES = TargetRules(networks=(IPv4Network("10.1.0.0/16"), IPv6Network("fd00:1::/32")))

    @pytest.mark.parametrize(
        ("address", "answer"),
        [
            ("10.1.255.255", True),
            ("10.2.0.0", False),
            ("fd00:1::1", True),
            ("fd00:2::1", False),
            ("::ffff:10.1.0.1", False),
            ("64:ff9b::a01:1", False),
            ("2002:a01:1::", False),
            ("fd00:1::1%eth0", False),
        ],
    )
    def test_networks(self, address: str, answer: bool) -> None:
        """Listed networks are allowed in their own notation, and not mapped or embedded in other addresses."""
        assert permitted(address, HOOK, self.RULES) is answer

    def test_https_alone(self) -> None:
        """Listed networks are only allowed by https."""
        assert is_accepted("https://10.1.0.1/", self.RULES)
        assert not is_accepted("http://10.1.0.1/", replace(self.RULES, loopback=True))


class TestProxied:
    """What is checked if a proxy resolves names."""

    @pytest.mark.parametrize(
        ("host", "accepted"),
        [
            ("hooks.internal", True),
            ("8.8.8.8", True),
            ("10.0.0.1", False),
            ("[fd00::1]", False),
            ("2130706433", False),
            ("localhost", False),
            ("a.localhost", False),
        ],
    )
    def test_literals(self, host: str, accepted: bool) -> None:
        """Addresses are checked; names are not, except those of this machine."""
        assert is_accepted(f"https://{host}/", PROXIED) is accepted

    def test_check(self) -> None:
        """Names are not resolved."""
        judge("https://hooks.example.com/", PROXIED, resolver("10.0.0.1"), 5)

    def test_local(self) -> None:
        """Names of this machine are still resolved, because they do not go through the proxy."""
        with pytest.raises(Refused):
            judge("https://localhost/", replace(PROXIED, loopback=True), resolver("127.0.0.1", "8.8.8.8"), 5)


EDGES = {
    "0.0.0.0/8": "1.0.0.0",
    "10.0.0.0/8": "9.255.255.255 11.0.0.0",
    "100.64.0.0/10": "100.63.255.255 100.128.0.0",
    "127.0.0.0/8": "126.255.255.255 128.0.0.0",
    "168.63.129.16/32": "168.63.129.15 168.63.129.17",
    "169.254.0.0/16": "169.253.255.255 169.255.0.0",
    "172.16.0.0/12": "172.15.255.255 172.32.0.0",
    "192.0.0.0/24": "191.255.255.255 192.0.1.0",
    "192.0.2.0/24": "192.0.1.255 192.0.3.0",
    "192.31.196.0/24": "192.31.195.255 192.31.197.0",
    "192.52.193.0/24": "192.52.192.255 192.52.194.0",
    "192.88.99.0/24": "192.88.98.255 192.88.100.0",
    "192.168.0.0/16": "192.167.255.255 192.169.0.0",
    "192.175.48.0/24": "192.175.47.255 192.175.49.0",
    "198.18.0.0/15": "198.17.255.255 198.20.0.0",
    "198.51.100.0/24": "198.51.99.255 198.51.101.0",
    "203.0.113.0/24": "203.0.112.255 203.0.114.0",
    "224.0.0.0/3": "223.255.255.255",
    "::/3": "2000::",
    "2001::/23": "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2001:200::",
    "2001:db8::/32": "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9::",
    "2002::/16": "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2003::",
    "2620:4f:8000::/48": "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff 2620:4f:8001::",
    "3ffe::/16": "3ffd:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "3fff::/20": "3fff:1000::",
    "4000::/2": "",
    "8000::/1": "",
}
"""Special networks, and the public addresses directly before and after each."""

SINGLE = {
    "2606:4700::5efe:a00:1": False,
    "2606:4700::200:5efe:a00:1": False,
    "2606:4700::5eff:a00:1": True,
    "2606:4700::100:5efe:a00:1": True,
    "2606:4700::1%1": False,
    "8.8.8.8": True,
    "08.8.8.8": False,
    "134744072": False,
    "8.8": False,
    "hooks.example.com": False,
    "": False,
}


class TestPermitted:
    """Which addresses are public."""

    @pytest.mark.parametrize("network", EDGES)
    def test_edges(self, network: str) -> None:
        """A special network is refused from its first address to its last, and no further."""
        special = ipaddress.ip_network(network)
        assert not permitted(str(special[0]), HOOK, PUBLIC)
        assert not permitted(str(special[-1]), HOOK, PUBLIC)
        assert [beside for beside in EDGES[network].split() if not permitted(beside, HOOK, PUBLIC)] == []

    @pytest.mark.parametrize("address", SINGLE)
    def test_single(self, address: str) -> None:
        """Addresses that embed IPv4, addresses with a zone, and texts that are not addresses are refused."""
        assert permitted(address, HOOK, PUBLIC) is SINGLE[address]

    def test_python_knows_no_more(self) -> None:
        """Every network that this Python considers private is refused, so a new IANA entry fails this test."""
        private = [
            network
            for constants in (ipaddress._IPv4Constants, ipaddress._IPv6Constants)  # type: ignore[attr-defined]
            for network in constants._private_networks
        ]
        assert len(private) > 20
        opened = [n for n in private if permitted(str(n[0]), HOOK, PUBLIC) or permitted(str(n[-1]), HOOK, PUBLIC)]
        assert opened == []


@pytest.fixture
def hanging() -> Iterator[Callable[..., Resolver]]:
    """Yield a function that makes resolvers whose lookups hang until the test ends."""
    over = threading.Event()

    def look_up(name: str) -> list[str]:
        over.wait(60)
        return ["8.8.8.8"]

    yield lambda **options: Resolver(look_up, **options)
    over.set()


class TestResolver:
    """Names and their addresses."""

    def test_addresses(self) -> None:
        """The resolver returns all addresses without duplicates, in their original order."""
        found = resolver("8.8.8.8", "2606:4700::1", "8.8.8.8").addresses(HOOK, PUBLIC, 5)
        assert found == ["8.8.8.8", "2606:4700::1"]

    def test_literal(self) -> None:
        """An IP address is not resolved."""
        assert resolver("10.0.0.1").addresses(parse("https://[2606:4700::1]/", PUBLIC), PUBLIC, 5) == ["2606:4700::1"]

    def test_each_waiter_has_its_own_failure(self) -> None:
        """A look-up that fails in an unexpected way raises another exception in each thread that waits for it."""
        go, joined = threading.Event(), threading.Semaphore(0)

        class Joined(Resolver):
            def _asked(self, *arguments: Any) -> Any:
                answer = super()._asked(*arguments)
                joined.release()
                return answer

        def look_up(_: str) -> list[str]:
            go.wait(PATIENCE)
            raise ValueError("a bug")

        shared = Joined(look_up)
        with ThreadPoolExecutor(2) as threads:
            waiting = [threads.submit(shared.unjudged, "hooks.example.com", PATIENCE) for _ in range(2)]
            assert all(joined.acquire(timeout=PATIENCE) for _ in range(2))
            go.set()
            first, second = (each.exception() for each in waiting)
        assert (type(first), str(first)) == (ValueError, "a bug")
        assert first is not second

    def test_one_is_bad(self) -> None:
        """One refused address refuses the whole name."""
        with pytest.raises(Refused, match=f"^{INSIDE}$"):
            resolver("8.8.8.8", "10.0.0.1").addresses(HOOK, PUBLIC, 5)

    def test_none(self) -> None:
        """A name without an address is unresolvable."""
        with pytest.raises(Unresolvable):
            resolver().addresses(HOOK, PUBLIC, 5)

    def test_system(self) -> None:
        """By default the system's resolver is used: it knows localhost, and not the reserved name.invalid."""
        assert set(Resolver().unjudged("localhost", 30)) & {"127.0.0.1", "::1"}
        with pytest.raises(Unresolvable):
            Resolver().unjudged("name.invalid", 30)

    def test_hangs(self, hanging: Callable[..., Resolver]) -> None:
        """The resolver waits for a hanging lookup no longer than the caller's timeout."""
        with pytest.raises(Unresolvable):
            hanging().addresses(HOOK, PUBLIC, 0.01)

    def test_bounded(self, hanging: Callable[..., Resolver]) -> None:
        """While hanging lookups hold all places, another name gets no thread and fails; an IP address succeeds."""
        busy = hanging(most=2)
        before = threading.active_count()
        for _ in range(5):
            with pytest.raises(Unresolvable):
                busy.addresses(HOOK, PUBLIC, 0.01)
        assert threading.active_count() <= before + 2
        assert busy.addresses(parse("https://8.8.8.8/", PUBLIC), PUBLIC, 0.01) == ["8.8.8.8"]

    def test_places_come_free(self) -> None:
        """A lookup frees its place, however it ends."""
        answers: Iterator[list[str]] = iter([["8.8.8.8"], ["10.0.0.1"]])

        def look_up(name: str) -> list[str]:
            return next(answers, []) or throw(OSError())

        single = Resolver(look_up, most=1)
        assert single.addresses(HOOK, PUBLIC, 5)
        with pytest.raises(Refused):
            single.addresses(HOOK, PUBLIC, 5)
        for _ in range(3):
            with pytest.raises(Unresolvable):
                single.addresses(HOOK, PUBLIC, 5)

    def test_keeps_nobody_alive(self, hanging: Callable[..., Resolver]) -> None:
        """A thread that hangs is a daemon, so it does not delay the process's exit."""
        with pytest.raises(Unresolvable):
            hanging().unjudged("hooks.example.com", 0.01)
        assert [t.daemon for t in threading.enumerate() if t.name == "webhook-resolver"] == [True]

    def test_no_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If no thread can be started, the lookup fails and its place is freed."""
        single = Resolver(lambda _: ["8.8.8.8"], most=1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda _: throw(RuntimeError()))
            for _ in range(2):
                with pytest.raises(Unresolvable):
                    single.addresses(HOOK, PUBLIC, 5)
        assert single.addresses(HOOK, PUBLIC, 5)

    def test_closed(self) -> None:
        """After close, nothing is resolved."""
        closed = resolver("8.8.8.8")
        closed.close()
        with pytest.raises(Unresolvable):
            closed.addresses(HOOK, PUBLIC, 5)


class TestSharing:
    """One resolver with many callers."""

    def test_same_name(self) -> None:
        """Calls for a name that is being looked up share the lookup; a later call starts a new one."""
        names = Names()
        asking = Resolver(names)
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(asking.unjudged, "a.test", PATIENCE, "acme") for _ in range(2)]
            names.wait_for(1)
            with pytest.raises(Unresolvable):
                asking.unjudged("a.test", 0.01, "globex")
            names.let_go()
            assert [answer.result() for answer in answers] == [["8.8.8.8"]] * 2
        before = len(names.asked)
        assert before <= 2  # the second may have come after the first had its answer
        asking.unjudged("a.test", PATIENCE)
        assert len(names.asked) == before + 1

    def test_joined(self) -> None:
        """A call that shares another's lookup takes no place."""
        names = Names()
        asking = Resolver(names, most=1)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(asking.unjudged, "a.test", PATIENCE, "acme")
            names.wait_for(1)
            with pytest.raises(Unresolvable):
                asking.unjudged("a.test", 0.01, "globex")
            names.let_go()
            assert first.result() == ["8.8.8.8"]
        assert names.asked == ["a.test"]

    @pytest.mark.parametrize(("most", "of_project"), [(32, 4), (8, 2), (1, 1)])
    def test_share(self, most: int, of_project: int) -> None:
        """A project gets only its share of places and threads, however many names it asks for."""
        names = Names()
        asking = Resolver(names, most)
        for number in range(2 * of_project + 2):
            with pytest.raises(Unresolvable):
                asking.unjudged(f"{number}.test", 0.01, "acme")
        names.wait_for(of_project)
        assert len(names.asked) == of_project
        if most > 1:
            with ThreadPoolExecutor(1) as threads:
                other = threads.submit(asking.unjudged, "other.test", PATIENCE, "globex")
                names.wait_for(of_project + 1)
                names.let_go()
                assert other.result() == ["8.8.8.8"]
        names.let_go()

    def test_waits_for_a_place(self) -> None:
        """A call that finds no place gets the next free one within its timeout."""
        names = Names()
        asking = Resolver(names, most=1)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(asking.unjudged, "a.test", PATIENCE, "acme")
            names.wait_for(1)
            second = threads.submit(asking.unjudged, "b.test", PATIENCE, "globex")
            names.let_go()
            assert (first.result(), second.result()) == (["8.8.8.8"], ["8.8.8.8"])
        assert names.asked == ["a.test", "b.test"]

    def test_closed_meanwhile(self) -> None:
        """Closing the resolver ends the calls that wait for a place."""
        names = Names()
        asking = Resolver(names, most=1)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(asking.unjudged, "a.test", PATIENCE, "acme")
            names.wait_for(1)
            second = threads.submit(asking.unjudged, "b.test", 100 * PATIENCE, "globex")
            asking.close()
            with pytest.raises(Unresolvable):
                second.result(PATIENCE)
            names.let_go()
            assert first.result() == ["8.8.8.8"]


class TestJudge:
    """What is checked when a URL is set, and how long that may take."""

    def test_form(self) -> None:
        """The form is checked without DNS."""
        names = Names()
        judging = Judge(PUBLIC, Resolver(names))
        assert judging.form("https://10.0.0.1/") == INSIDE
        assert judging.form("https://a.test/") == ""
        assert names.asked == []

    def test_literal(self) -> None:
        """An IP address is not resolved."""
        names = Names()
        assert Judge(PUBLIC, Resolver(names)).look_up("https://8.8.8.8/", "acme") == ""
        assert names.asked == []

    def test_two_at_a_time(self) -> None:
        """A project's third concurrent lookup is refused at once, whatever the name; another project's is not."""
        names = Names()
        judging = Judge(PUBLIC, Resolver(names), PATIENCE)
        with ThreadPoolExecutor(3) as threads:
            found = [threads.submit(judging.look_up, f"https://{name}.test/", "acme") for name in "ab"]
            names.wait_for(2)
            with pytest.raises(Overloaded) as refused:
                judging.look_up("https://c.test/", "acme")
            assert refused.value.retry_after == SECOND
            found.append(threads.submit(judging.look_up, "https://c.test/", "globex"))
            names.let_go()
            assert [each.result() for each in found] == ["", "", ""]
        assert judging.look_up("https://d.test/", "acme") == ""

    @pytest.mark.parametrize("hangs", [True, False], ids=["slow", "unknown"])
    def test_remembered(self, hangs: bool) -> None:
        """A name without a timely answer passes, and is not looked up again for ten seconds."""
        names, monotonic = Names(), FrozenClock(0)
        names.answer = []
        if not hangs:
            names.let_go()
        resolver = Resolver(names)
        judging = Judge(PUBLIC, resolver, 0.01 if hangs else PATIENCE, monotonic)
        assert judging.look_up("https://a.test/", "acme") == ""
        names.answer = ["8.8.8.8"]
        names.let_go()
        assert resolver.unjudged("a.test", PATIENCE) == ["8.8.8.8"]
        asked = len(names.asked)
        monotonic.advance(REMEMBERED - 1)
        assert judging.look_up("https://a.test/", "acme") == ""
        monotonic.advance(1)
        assert judging.look_up("https://a.test/", "acme") == ""
        names.wait_for(asked + 1)
        assert len(names.asked) == asked + 1

    def test_refused_is_not_remembered(self) -> None:
        """A name with a refused address is looked up each time, because its owner may correct it."""
        names = Names()
        names.let_go()
        names.answer = ["10.0.0.1"]
        judging = Judge(PUBLIC, Resolver(names))
        assert [judging.look_up("https://a.test/", "acme") for _ in range(2)] == [INSIDE] * 2
        names.answer = ["8.8.8.8"]
        assert judging.look_up("https://a.test/", "acme") == ""

    def test_bounded(self) -> None:
        """The number of remembered names is bounded; a new one evicts the oldest."""
        names = Names()
        names.let_go()
        names.answer = []
        judging = Judge(PUBLIC, Resolver(names))
        for number in range(MOST_REMEMBERED + 1):
            judging.look_up(f"https://{number}.test/", "acme")
        asked = len(names.asked)
        judging.look_up(f"https://{MOST_REMEMBERED}.test/", "acme")
        assert len(names.asked) == asked
        judging.look_up("https://0.test/", "acme")
        assert len(names.asked) == asked + 1


class Names:
    """A lookup that blocks until it is released, and records the names."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = ["8.8.8.8"]
        self._changed = threading.Condition()
        self._go = False

    def __call__(self, name: str) -> list[str]:
        with self._changed:
            self.asked.append(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._go, PATIENCE)
            return self.answer

    def wait_for(self, number: int) -> None:
        """Wait until this number of names has been looked up."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= number, PATIENCE)

    def let_go(self) -> None:
        """Release all lookups."""
        with self._changed:
            self._go = True
            self._changed.notify_all()


def throw(failure: Exception) -> list[str]:
    """Raise the given exception."""
    raise failure


class TestCheck:
    """What is checked before a URL is stored."""

    def test_good(self) -> None:
        """A name with public addresses passes."""
        judge("https://hooks.example.com/", PUBLIC, resolver("8.8.8.8", "2606:4700::1"), 5)

    @pytest.mark.parametrize("url", ["https://10.0.0.1/", "https://hooks.example.com/"])
    def test_bad(self, url: str) -> None:
        """A private address is refused, and so is a name that resolves to one."""
        with pytest.raises(Refused):
            judge(url, PUBLIC, resolver("10.0.0.1"), 5)

    def test_unresolvable(self) -> None:
        """A name without an address passes, because it is checked again before each send."""
        judge("https://hooks.example.com/", PUBLIC, resolver(), 5)
