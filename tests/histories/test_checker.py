"""The checker of histories finds what breaks a promise, and nothing else."""

from typing import Any

import grpc
import pytest

from tests.histories.checker import SHOWN, Findings, Promise, check, quantile
from tests.histories.history import REVOKED, VALID, Freshness, History, Revoke, Verify, failed, named
from tumbler.v1 import api_key_service_pb2 as pb

MS = 1_000_000
BOUND = 2_000 * MS

TWO_SERVERS = Promise(BOUND, servers=frozenset("AB"), changing=frozenset("A"), linear=frozenset("AB"))
WORKERS = Promise(BOUND, servers=frozenset("A"), changing=frozenset("A"), linear=frozenset())

REVOKE = Revoke(key=0, invoked=1_000 * MS, returned=1_010 * MS)


def verify(server: str, invoked: int, answer: int, freshness: Freshness = Freshness.LATENCY, took: int = 1) -> Verify:
    """Return a verification of the revoked key that began at ``invoked`` and lasted ``took``, in milliseconds."""
    return Verify(REVOKE.key, server, freshness, invoked * MS, (invoked + took) * MS, answer)


def checked(*verifies: Verify, promise: Promise = TWO_SERVERS) -> Findings:
    """Check a history of the one revocation and these verifications."""
    return check(History([REVOKE], verifies), promise)


KEPT: dict[str, list[Verify]] = {
    "denied from then on": [verify("A", 900, VALID), verify("A", 1_011, REVOKED), verify("B", 1_011, REVOKED)],
    "either answer meanwhile": [verify("A", 999, REVOKED, took=5), verify("B", 1_009, VALID, took=500)],
    "a slow answer that began before": [verify("A", 1_010, VALID, took=9_000)],
    "another server, within the bound": [verify("B", 1_011, VALID), verify("B", 3_010, VALID)],
    "another server, at last": [verify("B", 3_010, VALID), verify("B", 3_011, REVOKED)],
    "two answers at the same time": [verify("B", 1_100, REVOKED, took=10), verify("B", 1_105, VALID)],
    "a fresh denial": [verify("B", 1_011, REVOKED, Freshness.TOKEN), verify("B", 1_011, REVOKED, Freshness.FULL)],
    "one server knows it before another": [verify("A", 1_001, REVOKED), verify("B", 1_005, VALID)],
}

BROKEN: dict[str, tuple[list[Verify], str]] = {
    "stale in the same server": (
        [verify("A", 1_011, VALID)],
        "key 0 at A (LATENCY): VALID, begun 1.000 ms after the revocation returned",
    ),
    "stale beyond the bound": (
        [verify("B", 3_011, VALID)],
        "key 0 at B (LATENCY): VALID, begun 2001.000 ms after the revocation returned",
    ),
    "stale in spite of the token": (
        [verify("B", 1_011, VALID, Freshness.TOKEN)],
        "key 0 at B (TOKEN): VALID, begun 1.000 ms after the revocation returned",
    ),
    "stale in spite of fully_consistent": (
        [verify("B", 1_011, VALID, Freshness.FULL)],
        "key 0 at B (FULL): VALID, begun 1.000 ms after the revocation returned",
    ),
    "denied too early": (
        [verify("A", 998, REVOKED)],
        "key 0 at A (LATENCY): REVOKED, before the key was revoked",
    ),
    "back to VALID": (
        [verify("B", 1_020, REVOKED), verify("B", 1_030, VALID)],
        "key 0 at B (LATENCY): VALID, begun 9.000 ms after B itself had said REVOKED",
    ),
    "back to VALID before the revocation has returned": (
        [verify("A", 1_001, REVOKED), verify("A", 1_005, VALID)],
        "key 0 at A (LATENCY): VALID, begun 3.000 ms after A itself had said REVOKED",
    ),
    "back to VALID at another server, though fully consistent": (
        [verify("A", 1_001, REVOKED, Freshness.FULL), verify("B", 1_005, VALID, Freshness.FULL)],
        "key 0 at B (FULL): VALID, begun 3.000 ms after another fully_consistent call had said REVOKED",
    ),
    "another verdict": (
        [verify("A", 900, int(pb.VERIFY_CODE_NOT_FOUND))],
        "key 0 at A (LATENCY): NOT_FOUND: neither VALID nor REVOKED",
    ),
    "no verdict": (
        [verify("A", 900, failed(grpc.StatusCode.UNAVAILABLE))],
        "key 0 at A (LATENCY): UNAVAILABLE: neither VALID nor REVOKED",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_promise_that_was_kept(name: str) -> None:
    """Behavior that was promised, or that no promise covers, is no violation."""
    assert checked(*KEPT[name]).examples == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_promise_that_was_broken(name: str) -> None:
    """Each way to break a promise is reported, with the key's number and the extent."""
    verifies, told = BROKEN[name]
    findings = checked(*verifies)
    assert findings.examples == [told]
    assert findings.violations == 1


def test_one_stale_answer_among_many_is_found() -> None:
    """One wrong answer among ten thousand right ones is reported."""
    right = [verify("A", 1_011 + number, REVOKED) for number in range(10_000)]
    assert checked(*right).violations == 0
    wrong = verify("A", 6_000, VALID)
    findings = checked(*right[:5_000], wrong, *right[5_000:])
    assert any("begun 4990.000 ms after the revocation returned" in text for text in findings.examples)
    assert findings.stale == {"A": 1}


def test_workers_of_one_server_may_learn_of_it_one_after_another() -> None:
    """One of several workers may still answer VALID until the revocation has returned, and no longer."""
    known_to_one = verify("A", 1_001, REVOKED)
    assert checked(known_to_one, verify("A", 1_010, VALID), promise=WORKERS).violations == 0
    assert checked(known_to_one, verify("A", 1_011, VALID), promise=WORKERS).violations == 1


def test_a_key_that_nobody_revoked_is_never_denied() -> None:
    """A denial of a key that was not revoked is a violation."""
    (told,) = check(History([], [verify("B", 900, VALID), verify("B", 901, REVOKED)]), TWO_SERVERS).examples
    assert told == "key 0 at B (LATENCY): REVOKED, and nobody revoked the key"


def test_failures_that_are_bearable() -> None:
    """With injected faults, the listed failures are allowed and counted, and no others."""
    bearable = frozenset({failed(grpc.StatusCode.UNAVAILABLE)})
    promise = Promise(BOUND, frozenset("AB"), frozenset("A"), frozenset("AB"), bearable)
    unavailable = verify("A", 1_020, failed(grpc.StatusCode.UNAVAILABLE))
    findings = checked(unavailable, unavailable, promise=promise)
    assert (findings.violations, findings.failures) == (0, 2)
    assert checked(verify("A", 1_020, failed(grpc.StatusCode.INTERNAL)), promise=promise).violations == 1


def test_how_far_a_server_was_behind() -> None:
    """The lags run from the revocation's return to the last VALID's start, and to the first denial's return."""
    findings = checked(
        verify("B", 900, VALID),
        verify("B", 1_015, VALID),
        verify("B", 1_020, VALID, took=50),
        verify("B", 1_040, REVOKED, took=2),
        verify("B", 1_041, REVOKED),
        verify("A", 1_004, REVOKED),
    )
    assert findings.lags["B"].last_valid == [10 * MS]
    assert findings.lags["B"].first_denial == [32 * MS]
    assert (findings.lags["A"].last_valid, findings.lags["A"].first_denial) == ([0], [0])
    assert (findings.late, findings.stale) == ({"A": 0, "B": 4}, {"A": 0, "B": 2})


def test_answers_that_demanded_to_be_fresh_are_counted_apart() -> None:
    """Late answers that demanded freshness are counted, since without any the history would show nothing about them."""
    findings = checked(
        verify("B", 1_000, VALID, Freshness.FULL),
        verify("B", 1_011, REVOKED, Freshness.FULL),
        verify("A", 1_011, VALID, Freshness.TOKEN),
        verify("A", 1_011, REVOKED),
    )
    assert (findings.demanding, findings.stale_demanding) == (2, 1)


@pytest.mark.parametrize(
    ("verifies", "unseen"),
    [
        ([], {"A": 1, "B": 1}),
        ([verify("A", 900, VALID), verify("A", 1_020, REVOKED)], {"A": 0, "B": 1}),
        ([verify("A", 900, VALID), verify("B", 1_020, REVOKED)], {"A": 1, "B": 1}),
        ([verify("A", 900, VALID), verify("A", 1_020, failed(grpc.StatusCode.UNAVAILABLE))], {"A": 1, "B": 1}),
    ],
)
def test_a_history_that_shows_nothing(verifies: list[Verify], unseen: dict[str, Any]) -> None:
    """A key that was not verified at a server both before and after its revocation counts as unseen there."""
    assert checked(*verifies).unseen == unseen


def test_only_some_violations_are_told_and_all_are_counted() -> None:
    """All violations are counted, but only some are reported, so that a broken server does not fill the screen."""
    findings = checked(*[verify("A", 1_011 + number, VALID) for number in range(100)])
    assert (findings.violations, len(findings.examples)) == (100, SHOWN)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, 0), ([7], 0.99, 7), ([3, 1, 2, 4], 0.5, 2), (range(1, 101), 0.99, 99), (range(1, 101), 1.0, 100)],
)
def test_quantiles(values: Any, share: float, expected: int) -> None:
    """A quantile is the least of the values that the given share of them do not exceed."""
    assert quantile(values, share) == expected


def test_answers_have_names() -> None:
    """An answer has the contract's name of its code, or gRPC's name of its status."""
    answers = (VALID, REVOKED, failed(grpc.StatusCode.DEADLINE_EXCEEDED))
    assert [named(answer) for answer in answers] == ["VALID", "REVOKED", "DEADLINE_EXCEEDED"]
